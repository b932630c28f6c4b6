"""What a search of Browse found: the features in order, the figures beside them as columns, and a sentence about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing.spans import dotted, md, plain
from sae_explore.errors import ExploreError
from sae_explore.explore import find, text_view
from sae_explore.explore.find import Found
from sae_explore.explore.find_links import Search
from sae_explore.types import TextTrace
from sae_explore.views import find_fields, model_wait
from sae_explore.wording import count_of, sentence

FIT_HELP = (
    "Strength × log2(1 / density): large for a feature that fires strongly here and rarely elsewhere. One that is at its maximum on every "
    "token here, and fires on 1 token in 1,000 in the corpus, has 10."
)
_STRENGTH_HELP = "Mean over the tokens here of the activation as a share of the feature's own maximum on the corpus; tokens on which it is silent count 0."
_CONFIG = {
    "fit": st.column_config.NumberColumn("Fit", format="%.2f", width=50, help=FIT_HELP),
    "strength": st.column_config.NumberColumn("Strength", format="%.0f %%", width=72, help=_STRENGTH_HELP),
    "peak": st.column_config.TextColumn("On", width=92, help="The token of the phrase on which it fires most strongly."),
    "on": st.column_config.NumberColumn("On it", format="%.0f %%", width=58, help="Share of the token's occurrences on which it fires."),
    "of": st.column_config.NumberColumn("Of all", format="%.1f %%", width=62, help="Share of all firings of the feature that are on it."),
    "place": st.column_config.NumberColumn("Place", format="%d", width=54, help="Of the token in the feature's list: 1 is the first."),
    "logit": st.column_config.NumberColumn(
        "Logit", format="%.2f", width=58, help="What the logit lens says that the feature adds to the token, in the bundle's own convention."
    ),
    "token": st.column_config.TextColumn("Token", width=92, help="As it is spelled in the list; · is a leading space."),
    "share": st.column_config.NumberColumn("In it", format="%.0f %%", width=58, help="Share of its firings that lie in these texts."),
    "times": st.column_config.NumberColumn(
        "Times",
        format="%.1f",
        width=58,
        help="How many times as often as chance would have it: the share of its firings against the share of all tokens, after "
        f"{find.AT_CHANCE} firings at chance are added, so that a rare feature does not look like a rule.",
    ),
    "cosine": st.column_config.NumberColumn("Cosine", format="%.3f", width=64, help="Between the two decoder rows: 1 is the same direction."),
    "note": st.column_config.TextColumn("Note", width=150, help="From your list."),
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """What a search found. Without `found` there is nothing to list: `hint` says why."""

    found: Found | None = None
    said: str = ""  # after "12 features", as markdown: "that fire on the phrase"
    more: str = ""  # a sentence about where the figures come from, as markdown
    hint: str = ""
    trace: TextTrace | None = None
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)  # columns of words, a row a feature of `found`

    def table(self, at: np.ndarray) -> dict[str, np.ndarray | list[str]]:
        """The columns at these rows of `found`, as they are shown."""
        shown = {}
        for name in _CONFIG:
            if name in self.texts:
                shown[name] = [self.texts[name][i] for i in at]
            elif name in self.found.columns:
                values = self.found.columns[name][at]
                shown[name] = 100 * values if name in ("strength", "on", "of", "share") else values
        return shown


def config() -> dict:
    """The columns' looks, by the name under which they are in the table."""
    return {f"found_{name}": column for name, column in _CONFIG.items()}


def results(bundle: Bundle, search: Search, place) -> Results:
    """Run a search other than one in labels; `place`, an `st.empty`, shows the wait for the model."""
    query = search.query.strip(" ") if search.by in ("phrase", "similar") else search.query
    if not query:
        return Results(hint=_HINTS[search.by])
    return {
        "phrase": _phrase,
        "token": _token,
        "lens": _lens,
        "category": _category,
        "similar": _similar,
        "list": _list,
    }[search.by](bundle, search, place)


_HINTS = {
    "phrase": "Type a phrase and press Enter: features are ranked by how much they fire on it and not in general.",
    "token": "Type a token and press Enter: features are ranked by how much they fire on it in the stored texts, and not in general.",
    "lens": "Type a token and press Enter, to find the features that promote it most, or suppress it.",
    "category": "Choose a kind of text, to find the features that fire there more often than elsewhere.",
    "similar": "Type the number of a feature and press Enter, to find those whose directions are most like its own.",
    "list": "Choose one of your lists. A list is begun on the page Lists, on a feature's page, or here with “Keep as a list”.",
}


def _phrase(bundle: Bundle, search: Search, place) -> Results:
    try:
        text_view.check_own_text(search.query)
        if not model_wait.model_ready(bundle, place):
            return Results()
        with place, st.spinner("Reading the phrase …", show_time=True):
            trace = resources.get_trace(bundle, search.query)
    except ExploreError as error:
        place.error(md(sentence(public_mode.shown(error))), icon=":material/edit_off:")
        return Results()
    place.empty()
    found, n = find.by_trace(bundle, trace), int((~trace.ignored).sum())
    if not n:
        return Results(hint="All tokens of this phrase are ignored: the model uses them as a resting place. Try more words.")
    names = [dotted(t, b) for t, b in zip(trace.tokens.texts, trace.tokens.bytes, strict=True)]
    return Results(
        found,
        "that fire on the phrase",
        f"The phrase has {count_of(n, 'token')} that count" + (f"; {trace.ignored.sum()} are ignored." if trace.ignored.any() else "."),
        trace=trace,
        texts={"peak": [names[position] for position in found.columns["position"].tolist()]},
    )


def _token(bundle: Bundle, search: Search, place) -> Results:
    ids = resources.get_token_texts(bundle).matching(search.query)
    if not len(ids):
        return Results(hint=_no_token(bundle, search.query))
    seen = resources.get_on_token(bundle, ids)
    total = int(seen.counts.sum())
    if not total:
        return Results(hint=f"“{md(search.query)}” is a token of the model, but it stands nowhere in the stored texts.")
    order = np.argsort(-seen.counts, kind="stable")
    spelled = [(dotted(bundle.vocabulary.text_of(int(ids[i]))), int(seen.counts[i])) for i in order if seen.counts[i]]
    more = f"It stands {count_of(total, 'time')} in the texts: " + ", ".join(f"“{md(text)}” {n:,}" for text, n in spelled[:6])
    if seen.looked_at < total:
        more += f". The figures are from {seen.looked_at:,} of these places, drawn at random"
    return Results(seen.found, "that fire on the token", more + ".")


def _lens(bundle: Bundle, search: Search, place) -> Results:
    ids = resources.get_token_texts(bundle).matching(search.query)
    if not len(ids):
        return Results(hint=_no_token(bundle, search.query))
    side, verb = ("negative", "suppress") if search.suppressed else ("positive", "promote")
    found = find.by_lens(bundle, ids, side=side)
    listed = bundle.lens[f"{bundle.lens_default}.{side}_ids"].shape[1]
    if not len(found):
        return Results(hint=f"No feature has “{md(search.query)}” among the {listed} tokens that it {verb}s most.")
    texts = {i: dotted(bundle.vocabulary.text_of(i)) for i in set(found.columns["id"].tolist())}
    return Results(
        found,
        f"that {verb} the token",
        f"It is among the {listed} tokens that they {verb} most by the logit lens (convention “{md(bundle.lens_default)}”).",
        texts={"token": [texts[i] for i in found.columns["id"].tolist()]},
    )


def _no_token(bundle: Bundle, query: str) -> str:
    """What to try where the words are no token."""
    counts = np.bincount(bundle.ids, minlength=len(bundle.vocabulary))
    near = resources.get_token_texts(bundle).holding(query, counts)
    said = f"“{md(query[:60])}” is no token of this model; longer words are several tokens. "
    if len(near):
        said += "Tokens near it: " + ", ".join(f"“{md(dotted(bundle.vocabulary.text_of(int(i))))}”" for i in near) + ". "
    return said + "To search for several words, choose Phrase."


def _category(bundle: Bundle, search: Search, place) -> Results:
    share = bundle.category_share()[search.query]
    said = f"that fire more often in “{md(search.query)}” than elsewhere"
    return Results(find.by_category(bundle, search.query), said, f"The texts of this category hold {100 * share:.1f} % of all tokens.")


def _similar(bundle: Bundle, search: Search, place) -> Results:
    query = search.query.strip()
    number = int(query) if query.isascii() and query.isdigit() and len(query) <= 9 else -1
    if not 0 <= number < bundle.d_sae:
        return Results(hint=f"“{md(query[:40])}” is no feature of this bundle; it has features 0 to {bundle.d_sae - 1:,}.")
    found = find.similar(bundle, number)
    label = md(text_view.labels_of(bundle, [number])[0])
    return Results(found, f"most like feature {number}, “{label}”", "By the cosine of their decoder rows, over the whole dictionary.")


def _list(bundle: Bundle, search: Search, place) -> Results:
    saved = find_fields.list_named(bundle, search.query)
    if saved is None or not saved.entries:
        return Results(hint="This list is empty.")
    notes = [plain(entry.note.replace("\n", " ")) for entry in saved.entries]
    texts = {"note": notes} if any(notes) else {}
    return Results(
        Found(np.asarray(saved.features, np.int64)), f"of your list “{md(saved.name)}”", saved.note and md(saved.note), texts=texts
    )
