"""What to build: the choices of the Build page, with an estimate beside them that follows every change."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

import streamlit as st

from sae_explore import resources
from sae_explore.building import build_choices, build_jobs, estimate
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.estimate import Amount, Estimate, size_words, time_words
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.files.bundle_files import check_name
from sae_explore.models.model_facts import ModelFacts, facts_of
from sae_explore.models.model_sources import GPT2, SMOLLM2
from sae_explore.texts.text_specs import DIVERSE, EMBEDDED
from sae_explore.texts.uploads import MAX_FILE_MB, Upload, check_total, check_upload
from sae_explore.views.build_sae import choose_sae
from sae_explore.wording import count_of, sentence

_OTHER = "other"
_FILES, _HUB = "files", "hub"
_SOURCES = {DIVERSE: "Diverse", EMBEDDED: "Embedded", _FILES: "Your files", _HUB: "A Hub data set"}
_TYPES = ["txt", "csv", "tsv", "jsonl", "json", "parquet", "gz"]
_KEPT = {"persist_state": "session"}  # of widgets: their values stay when another page is looked at


@dataclass(frozen=True)
class Texts:
    """Chosen texts: specifications and how much they hold, and files that are not on this machine yet."""

    specs: tuple[str, ...] = ()
    uploads: tuple[Upload, ...] = ()
    amounts: tuple[Amount, ...] = ()


def build_form() -> None:
    """Draw it; what is wrong stands at the choice that is to be changed, and keeps the button off."""
    left, right = st.columns([8, 5], gap="large")
    with left:
        facts = _model()
        if facts is None:
            return
        request, layer = choose_sae(facts)
        texts = _texts()
        request = _more(request, facts)
        name = _name(request, facts, layer)
    with right:
        if name is None or not (texts.specs or texts.uploads):
            st.info("The estimate appears here once everything is chosen.", icon=":material/timer:")
            return
        specs = (*texts.specs, *(upload.spec(name) for upload in texts.uploads))
        _start(replace(request, name=name, texts=specs), facts, texts)


# ---- the model ---------------------------------------------------------------------------------------------------------


def _model() -> ModelFacts | None:
    st.subheader("Model", anchor=False)
    names = {GPT2: "GPT-2", SMOLLM2: "SmolLM2-135M", _OTHER: "Another"}
    chosen = st.segmented_control("Model", list(names), default=GPT2, required=True, format_func=names.get, key="build_model",
                                  label_visibility="collapsed", **_KEPT)  # fmt: skip
    spec = chosen
    if chosen == _OTHER:
        said = "A causal language model of the kind of GPT-2, Llama, GPT-NeoX, Gemma or Qwen. Code from repositories is never run."
        spec = st.text_input(
            "Hub id or folder", placeholder="HuggingFaceTB/SmolLM2-360M", help=said, key="build_model_name", **_KEPT
        ).strip()
        if not spec:
            st.caption("Give the name of a model on the Hugging Face Hub, or a folder on this machine.")
            return None
    asked = st.session_state.setdefault("_build_facts", {})  # what the Hub has said in this session
    try:
        facts = facts_of(spec, models=resources.cache_folder() / "models") or asked.get(spec)
        if facts is None and st.button("Look it up on the Hub", icon=":material/travel_explore:"):
            with st.spinner("Asking the Hub"):
                facts = asked[spec] = facts_of(spec, models=resources.cache_folder() / "models", ask_hub=True)
    except ExploreError as error:
        st.error(md(sentence(str(error))), icon=":material/error:")
        return None
    if facts is None:
        st.caption("This model is not on this machine; how many layers it has, the Hub knows.")
        return None
    where = "on this machine" if facts.here else "to be fetched"
    st.caption(
        f"{md(facts.display)}: {count_of(facts.layers, 'layer')}, {facts.parameters / 1e6:,.{0 if facts.parameters >= 1e7 else 1}f} M parameters, {where}."
    )
    return facts


# ---- texts -------------------------------------------------------------------------------------------------------------


def _texts() -> Texts:
    said = (
        "Diverse: 200 texts each of news, reviews, abstracts and an encyclopedia, from the Hub. Embedded: this project's own texts, in twelve "
        "categories. The features are shown on these texts, and an SAE of your own is trained on them."
    )
    st.subheader("Texts", anchor=False, help=said)
    chosen = st.pills("Texts", list(_SOURCES), selection_mode="multi", default=[DIVERSE, EMBEDDED], format_func=_SOURCES.get,
                      key="build_texts", label_visibility="collapsed", **_KEPT)  # fmt: skip
    if not chosen:
        st.caption("Choose at least one source of texts.")
        return Texts()
    specs, uploads, whole = [s for s in chosen if s in (DIVERSE, EMBEDDED)], [], True
    if _FILES in chosen:
        uploads = _files()
        whole = whole and bool(uploads)
    if _HUB in chosen:
        spec = _hub_set()
        specs += [spec] * bool(spec)
        whole = whole and bool(spec)
    if not whole:
        return Texts()
    return Texts(
        tuple(specs), tuple(uploads), tuple([estimate.amount_of(s) for s in specs] + [Amount(u.texts, u.characters) for u in uploads])
    )


def _files() -> list[Upload]:
    said = (
        "In .txt files paragraphs are texts; .csv, .tsv, .jsonl and .parquet files have a column of texts. Files may be packed with gzip. They are "
        "kept on this machine until the build is done."
    )
    files = st.file_uploader("Files", _TYPES, accept_multiple_files=True, max_upload_size=MAX_FILE_MB, help=said, key="build_files")
    said = "Of the files that have columns. Empty: the one called text, content, abstract, article, document or sentence."
    column = st.text_input("Column", placeholder="text", help=said, key="build_column", **_KEPT).strip() or None
    found, seen, whole = [], set(), True
    for file in files:
        try:
            upload = _checked(file, column)
            if (upload.digest, upload.name) not in seen:  # the same file twice
                found.append(upload)
            seen.add((upload.digest, upload.name))
        except ExploreError as error:
            st.error(md(sentence(str(error))), icon=":material/error:")
            whole = False
    if found:
        texts = sum(u.texts for u in found)
        st.caption(f"{count_of(texts, 'text')}, {sum(u.characters for u in found):,} characters.")
    try:
        check_total(found)
    except ExploreError as error:
        st.error(md(sentence(str(error))), icon=":material/error:")
        whole = False
    if not files:
        st.caption("Choose files, or take the other sources only.")
    return found if whole else []


def _checked(file, column: str | None) -> Upload:
    """The file read through, once: its result is kept as long as the file is."""
    kept = st.session_state.setdefault("_build_uploads", {})
    key = (file.file_id, column)
    if key not in kept:
        with st.spinner(f"Reading {md(file.name)}"):
            kept[key] = check_upload(file.name, file, column=column)
    return kept[key]


def _hub_set() -> str | None:
    columns = st.columns([3, 2, 2])
    name = columns[0].text_input("Data set", placeholder="USER/NAME", key="build_hub_name", **_KEPT)
    column = columns[1].text_input("Its column", placeholder="text", key="build_hub_column", **_KEPT)
    texts = columns[2].number_input("Texts", 1, 1_000_000, 1_000, 100, key="build_hub_texts", **_KEPT)
    columns = st.columns([3, 2, 2])
    config = columns[0].text_input("Configuration", placeholder="default", key="build_hub_config", **_KEPT)
    split = columns[1].text_input("Split", placeholder="train", key="build_hub_split", **_KEPT)
    if not name.strip():
        st.caption("Give the name of a data set on the Hugging Face Hub.")
        return None
    try:
        return build_choices.hub_texts(name, config=config, split=split, column=column, texts=texts)
    except ExploreError as error:
        st.error(md(sentence(str(error))), icon=":material/error:")
        return None


# ---- name, and the rest ------------------------------------------------------------------------------------------------


def _more(request: BuildRequest, facts: ModelFacts) -> BuildRequest:
    with st.expander("More options"):
        columns = st.columns(3)
        most = min(facts.positions, 1_024)
        said = "Tokens that the model reads at once. Longer texts are read in pieces that overlap."
        context = columns[0].number_input("Context", 8, most, min(128, most), 8, help=said, key="build_context", **_KEPT)
        said = "Texts in a forward pass. A smaller number needs less memory."
        batch = columns[1].number_input("Batch", 1, 1_024, 32, help=said, key="build_batch", **_KEPT)
        said = "Train on at most so many thousand tokens; 0 for all."
        tokens = columns[2].number_input("Thousand tokens", 0, 1_000_000, 0, 100, help=said, key="build_tokens", **_KEPT)
    return replace(request, context=context, batch_size=batch, max_tokens=1_000 * tokens or None)


def _name(request: BuildRequest, facts: ModelFacts, layer: int) -> str | None:
    st.subheader("Name", anchor=False)
    taken = [*resources.bundle_names(), *(job.name for job in build_jobs.jobs(resources.cache_folder()))]
    offered = build_choices.default_name(facts.spec, layer, trained=request.sae is None, taken=taken)
    name = (
        st.text_input("Name", placeholder=offered, max_chars=64, key="build_name", label_visibility="collapsed", **_KEPT).strip() or offered
    )
    try:
        check_name(name)
        replace(request, name=name).checked()
    except ExploreError as error:
        st.error(md(sentence(str(error))), icon=":material/error:")
        return None
    if request.sae == "":
        st.caption("Say which SAE it is to be.")
        return None
    return name


# ---- estimate and start ------------------------------------------------------------------------------------------------


def _start(request: BuildRequest, facts: ModelFacts, texts: Texts) -> None:
    machine = estimate.this_machine(resources.cache_folder())
    found = estimate_of(request, texts.amounts, facts)
    with st.container(border=True):
        st.subheader("Estimate", anchor=False, help="Worked out from sizes and one short measurement; good to about a factor of two.")
        rows = [
            ("Time", time_words(found.total), "at this machine's speed just now" + (", without downloads" if found.download else "")),
            ("Disk", size_words(found.disk), f"{size_words(machine.disk)} free; {size_words(found.kept)} of it stay"),
            ("Memory", size_words(found.memory), f"{size_words(machine.memory)} free" if machine.memory is not None else ""),
        ]
        for label, value, note in rows:
            st.markdown(f"{label}: **about {value}**" + (f"  \n:small[{note}]" if note else ""))
        fetched = f", {size_words(found.download)} to fetch" if found.download else ""
        st.caption(f"{count_of(sum(a.texts for a in texts.amounts), 'text')}, about {float(f'{found.tokens:.2g}'):,.0f} tokens{fetched}.")
        for warning in found.warnings:
            st.warning(md(sentence(warning)), icon=":material/warning:")
        replaced = request.name in resources.bundle_names()
        sure = not replaced or st.checkbox(f"Replace the bundle “{md(request.name)}”", key="build_replace")
        go = st.button("Start", type="primary", icon=":material/play_arrow:", disabled=not sure, width="stretch", key="build_start")
        if go and begin(request, uploads=texts.uploads, replace_bundle=replaced, expected=found.seconds):
            st.rerun()
        if not texts.uploads:
            with st.expander("The same in the terminal"):
                command = " ".join(["python -m sae_explore", *map(shlex.quote, build_jobs.command_of(request))])
                st.code(command, language=None, wrap_lines=True)


def estimate_of(request: BuildRequest, amounts: tuple[Amount, ...] | None = None, facts: ModelFacts | None = None) -> Estimate:
    """What a build will take here; its texts and its model's sizes are looked up unless they are given."""
    cache = resources.cache_folder()
    facts = facts or facts_of(request.model, models=cache / "models")
    amounts = tuple(map(estimate.amount_of, request.texts)) if amounts is None else amounts
    sae = build_choices.sizes_for_estimate(request.sae)
    return estimate.estimate(request, facts, amounts, estimate.this_machine(cache), **sae)


def begin(request: BuildRequest, *, uploads: tuple[Upload, ...] = (), replace_bundle: bool = False, expected: dict | None = None) -> bool:
    """Start a build; whether it runs now. What is wrong is said here, before anything has begun."""
    cache = resources.cache_folder()
    if not resources.builds_allowed():
        st.error("Nothing can be built here.", icon=":material/lock:")
        return False
    try:
        with st.spinner("Starting"):
            if problem := build_choices.missing_hub(request, models=cache / "models"):
                st.error(md(sentence(problem)), icon=":material/cloud_off:")
                return False
            build_jobs.start(request, cache=cache, uploads=uploads, replace=replace_bundle, expected=expected)
    except (ExploreError, OSError) as error:
        st.error(md(sentence(str(error))), icon=":material/error:")
        return False
    return True
