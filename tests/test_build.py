"""The pipeline: what a bundle holds, checked against brute force from the model and the SAE alone."""

import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from build_checks import CATEGORIES, CONTEXT, Reference, dense_store, held_out, write_corpus

from sae_explore.activations.feature_stats import NONE
from sae_explore.building.build import build
from sae_explore.building.build_request import BuildRequest
from sae_explore.building.recompute import recompute_metrics
from sae_explore.bundles.bundle import open_bundle
from sae_explore.bundles.tracer import Tracer
from sae_explore.errors import InputError
from sae_explore.files.bundle_files import sha256_of
from sae_explore.saes.sae_formats import save_sae

HOOK = "blocks.1.hook_resid_post"
FILES = {
    "activations.safetensors", "documents.parquet", "examples.safetensors", "features.parquet", "features.safetensors",
    "lens.safetensors", "map.safetensors", "sae/cfg.json", "sae/sae_weights.safetensors", "tokens.safetensors", "vocabulary.safetensors",
}  # fmt: skip
CASES = ("gpt2 trained", "llama trained", "gpt2 topk given", "llama standard given")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, corpus_texts):
    """(file, texts)."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    return path, write_corpus(path, corpus_texts)


@pytest.fixture(scope="module")
def built(tmp_path_factory, gpt2_folder, llama_folder, corpus, random_sae):
    """A function that builds a case once: (bundle, reference)."""
    cache, made = tmp_path_factory.mktemp("cache"), {}
    folders = {"gpt2": gpt2_folder, "llama": llama_folder}

    def get(case: str):
        if case not in made:
            model, kind, *given = case.split()
            options = {"latents": 48, "k": 4, "epochs": 3, "context": CONTEXT}
            if given:
                sae = random_sae(kind, 32, 48, seed=3, hook=HOOK, context=CONTEXT, prepend_bos=True)
                # Of the standard one, rows of uneven norm, and biases that keep most latents silent.
                scale = torch.linspace(0.3, 2.0, 48)[:, None] if kind == "standard" else torch.ones(48, 1)
                sae = replace(sae, W_dec=sae.W_dec * scale, b_enc=sae.b_enc - (8.0 if kind == "standard" else 0.0))
                save_sae(sae, cache / f"sae-{model}")
                options = {"sae": str(cache / f"sae-{model}")}
            request = BuildRequest(case.replace(" ", "-"), str(folders[model]), HOOK, texts=(str(corpus[0]),), **options)
            build(request, cache=cache)
            bundle = open_bundle(request.name, cache=cache)
            made[case] = bundle, Reference(bundle, folders[model], hook_block=1)
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_the_manifest_says_everything(built, corpus, case):
    bundle, reference = built(case)
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    on_disk = {p.relative_to(bundle.files).as_posix(): p for p in bundle.files.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == set(on_disk) == FILES
    for name, path in on_disk.items():
        assert manifest["files"][name] == {"sha256": sha256_of(path), "size": path.stat().st_size}
        assert path.stat().st_mode & 0o444 == 0o444
    assert {p.name for p in bundle.folder.iterdir()} == {"manifest.json", manifest["folder"]}
    assert not list(bundle.folder.parent.glob(".build-*"))

    tokens = sum(map(len, reference.ids))
    assert manifest["hook"] == HOOK
    assert (manifest["context"], manifest["bos"]) == (CONTEXT, True)
    assert manifest["model"]["n_layers"] == 4
    assert manifest["corpus"]["documents"] == len(corpus[1]) == bundle.n_documents
    assert manifest["corpus"]["tokens"] == tokens
    assert manifest["corpus"]["counted_tokens"] == sum(int(c.sum()) for c in reference.counted)
    assert manifest["corpus"]["categories"] == sorted(CATEGORIES)
    assert manifest["corpus"]["counted_tokens"] == tokens - 2  # two special tokens
    category_of = np.repeat(bundle.documents["category"].to_pylist(), [int(c.sum()) for c in reference.counted])
    shares = {name: float((category_of == name).mean()) for name in CATEGORIES}
    assert manifest["corpus"]["category_share"] == pytest.approx(shares, abs=1e-5)
    assert sorted(reference.texts) == sorted(corpus[1])
    assert (manifest["train"] is None) == ("given" in case)
    assert manifest["metrics"]["latents"] == manifest["sae"]["d_sae"] == 48
    assert manifest["request"]["name"] == bundle.name
    assert sum(manifest["features"]["kinds"].values()) == 48


@pytest.mark.parametrize("case", CASES)
def test_the_store_holds_what_the_sae_makes_of_the_model(built, case):
    bundle, reference = built(case)
    for i, (dense, acts) in enumerate(zip(dense_store(bundle), reference.acts, strict=True)):
        np.testing.assert_allclose(dense, acts.numpy(), rtol=2e-3, atol=2e-3, err_msg=f"document {i}")
        a, b = bundle.doc_offsets[i : i + 2]
        assert bundle.ids[a:b].tolist() == reference.ids[i]
        assert (~bundle.ignored[a:b]).tolist() == reference.counted[i].tolist()
        assert "".join(bundle.document_tokens(i).texts) == reference.texts[i]


@pytest.mark.parametrize("case", CASES)
def test_the_table_of_features(built, case):
    bundle, reference = built(case)
    acts = torch.cat(reference.acts).numpy()
    counted = torch.cat(reference.counted).sum().item()
    table = bundle.features.to_pandas()
    np.testing.assert_array_equal(table["count"], (acts > 0).sum(0))
    np.testing.assert_allclose(table["density"], (acts > 0).sum(0) / counted, rtol=1e-6)
    np.testing.assert_allclose(table["max"], acts.max(0), rtol=1e-3, atol=1e-6)
    live = acts.max(0) > 0
    assert live.sum() > 30
    means = np.array([column[column > 0].mean() for column in acts.T[live]])
    np.testing.assert_allclose(table["mean"][live], means, rtol=1e-3)
    np.testing.assert_allclose(table["decoder_norm"], reference.W["W_dec"].norm(dim=1), rtol=1e-4)
    np.testing.assert_allclose(bundle.maxima, table["max"])
    category_of = np.repeat([bundle.documents["category"][i].as_py() for i in range(bundle.n_documents)], list(map(len, reference.ids)))
    for feature in (0, 17, 47):
        edges, counts = bundle.histogram(feature)
        expected, _ = np.histogram(acts[acts[:, feature] > 0, feature], edges)
        assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() <= 2  # values at an edge, rounded to fp16
        assert bundle.category_counts(feature) == {c: int((acts[category_of == c, feature] > 0).sum()) for c in sorted(CATEGORIES)}


@pytest.mark.parametrize("case", CASES)
def test_top_examples_are_the_strongest_windows(built, case):
    """One example a window, equal surroundings once, strongest first."""
    bundle, reference = built(case)
    for feature in range(0, 48, 5):
        peaks = []
        for document, acts in enumerate(reference.acts):
            for start in range(0, len(acts), reference.capacity):
                window = acts[start : start + reference.capacity, feature]
                if float(window.max()) > 0:
                    at = start + int(window.argmax())
                    ids = reference.ids[document][start : start + reference.capacity]
                    local = at - start
                    around = tuple(ids[max(0, local - 8) : local + 4])
                    peaks.append((float(window.max()), document, at, (min(local, 8), around)))
        seen, expected = set(), []
        for value, document, at, around in sorted(peaks, key=lambda p: (-p[0], p[1], p[2])):
            if around not in seen:
                seen.add(around)
                expected.append((document, at, value))
        found = [(e.document, e.peak, e.max) for e in bundle.top_examples(feature, 20)]
        assert len(found) == min(20, len(expected))
        np.testing.assert_allclose([v for *_, v in found], [v for *_, v in expected[:20]], rtol=1e-3)
        if len(expected) > 1 and expected[0][2] > 1.01 * expected[1][2]:
            assert found[0][:2] == expected[0][:2]
        for example in bundle.top_examples(feature, 20):
            values = reference.acts[example.document][example.start : example.start + len(example.tokens), feature]
            np.testing.assert_allclose(example.values, values, rtol=2e-3, atol=2e-3)
            text = reference.texts[example.document]
            assert "".join(example.tokens) in text
            assert (example.start == 0) == (not example.cut_left)


@pytest.mark.parametrize("case", CASES)
def test_lens_and_neighbours(built, case):
    bundle, reference = built(case)
    folded = reference.folded_lens()
    raw = reference.W["W_dec"] @ reference.model.get_output_embeddings().weight.detach().double().T
    np.testing.assert_allclose(bundle.features["strength"].to_numpy(), folded.std(1, unbiased=False), rtol=1e-4)
    special = reference.tokenizer.all_special_ids
    for name, logits in (("folded", folded), ("raw", raw)):
        logits = logits.clone()
        logits[:, special] = -torch.inf
        best = logits.topk(15, dim=1)
        for feature in range(48):
            positive, negative = bundle.lens_tokens(feature, name)
            np.testing.assert_allclose([t.logit for t in positive], best.values[feature], rtol=2e-3, atol=1e-3)
            np.testing.assert_allclose([t.logit for t in positive], [float(logits[feature, t.id]) for t in positive], rtol=2e-3, atol=1e-3)
            assert all(a.logit <= b.logit for a, b in pairwise(negative))
            assert not {t.id for t in (*positive, *negative)} & set(special)
            assert positive[0].token == reference.tokenizer.decode([positive[0].id]) or "<0x" in positive[0].token
    for which, rows in (("decoder", reference.W["W_dec"]), ("encoder", reference.W["W_enc"].T)):
        unit = torch.nn.functional.normalize(rows, dim=1)
        cosine = (unit @ unit.T).fill_diagonal_(-2)
        for feature in range(48):
            found = bundle.neighbours(feature, which)
            np.testing.assert_allclose([c for _, c in found], cosine[feature].topk(10).values, atol=1e-3)
            np.testing.assert_allclose([c for _, c in found], [float(cosine[feature, i]) for i, _ in found], atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_metrics(built, case):
    bundle, reference = built(case)
    metrics = bundle.manifest["metrics"]
    documents = list(range(bundle.n_documents))
    if "trained" in case:
        documents = [i for i in documents if held_out(reference.texts[i])]
        assert len(documents) == 4
        assert metrics["evaluated_set"] == "held_out"
    variance, l0, tokens = reference.reconstruction(documents)
    assert metrics["tokens_eval"] == tokens
    assert metrics["explained_variance"] == pytest.approx(variance, abs=1e-4, rel=1e-4)
    assert metrics["l0"] == pytest.approx(l0, rel=1e-6)
    assert metrics["dead"] == int((torch.cat(reference.acts).amax(0) == 0).sum()) == bundle.manifest["features"]["dead"]
    losses = reference.losses(documents)
    for name, value in losses.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4), name
    assert metrics["ce_recovered"] == pytest.approx(
        (losses["ce_zero"] - losses["ce_sae"]) / (losses["ce_zero"] - losses["ce_clean"]), abs=1e-3
    )
    assert set(metrics["by_category"]) == {bundle.documents["category"][i].as_py() for i in documents}
    if "trained" in case:
        assert metrics["tokens_train"] == bundle.manifest["train"]["tokens"]
        assert metrics["tokens_train"] <= sum(len(reference.ids[i]) for i in range(bundle.n_documents) if i not in documents)
        assert metrics["held_out_of_training_sources"]["explained_variance"] == pytest.approx(variance, abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_figures_measured_again_are_the_same(built, case):
    bundle, _ = built(case)
    again = recompute_metrics(bundle)
    assert set(again) <= set(bundle.manifest["metrics"])
    for name, value in again.items():
        if name != "by_category":
            assert value == pytest.approx(bundle.manifest["metrics"][name], rel=1e-5), name


@pytest.mark.parametrize("case", CASES)
def test_a_stored_document_pasted_gives_its_stored_values(built, case):
    """Whole texts, one of them of several windows: the same tokens, the same ignored ones, the same activations."""
    bundle, reference = built(case)
    tracer = Tracer.load(bundle)
    longest = max(range(bundle.n_documents), key=lambda i: len(reference.ids[i]))
    assert len(reference.ids[longest]) > 3 * CONTEXT
    for document in (longest, 0, bundle.n_documents - 1):
        stored, pasted = bundle.document_trace(document), tracer.trace(bundle.document_text(document))
        assert stored.tokens.texts == pasted.tokens.texts
        assert stored.tokens.bytes == pasted.tokens.bytes
        assert stored.tokens.ids.tolist() == pasted.tokens.ids.tolist()
        assert stored.ignored.tolist() == pasted.ignored.tolist()
        for feature in range(48):
            np.testing.assert_allclose(stored.rows.column(feature), pasted.rows.column(feature), rtol=2e-3, atol=2e-3)
    with pytest.raises(InputError, match="tokens, the limit here is 20"):
        tracer.trace(bundle.document_text(longest), max_tokens=20)


def test_two_builds_are_equal(built, corpus, gpt2_folder, tmp_path):
    bundle, _ = built("gpt2 trained")
    request = BuildRequest(bundle.name, str(gpt2_folder), HOOK, texts=(str(corpus[0]),), latents=48, k=4, epochs=3, context=CONTEXT)
    build(request, cache=tmp_path)
    again = open_bundle(bundle.name, cache=tmp_path)
    assert again.manifest == bundle.manifest
    other = build(replace(request, name="other", seed=1), cache=tmp_path)
    assert (
        json.loads((other / "manifest.json").read_text())["files"]["sae/sae_weights.safetensors"]
        != again.manifest["files"]["sae/sae_weights.safetensors"]
    )


def test_half_precision_weights_are_what_everything_is_computed_with(corpus, gpt2_folder, tmp_path):
    request = BuildRequest(
        "half", str(gpt2_folder), HOOK, texts=(str(corpus[0]),), latents=32, k=3, epochs=1, context=CONTEXT, weights="float16", max_texts=20
    )
    build(request, cache=tmp_path)
    bundle = open_bundle("half", cache=tmp_path)
    assert bundle.W_dec.dtype == np.float16
    reference = Reference(bundle, gpt2_folder, hook_block=1)
    for dense, acts in zip(dense_store(bundle), reference.acts, strict=True):
        np.testing.assert_allclose(dense, acts.numpy(), rtol=2e-3, atol=2e-3)
    assert bundle.manifest["metrics"]["evaluated_set"] == ("held_out" if any(map(held_out, reference.texts)) else "all")


# ---- attention sinks ---------------------------------------------------------------------------------------------------


def test_planted_sinks_enter_nothing(corpus, gpt2_model, gpt2_folder, tmp_path):
    """Without a BOS, position 0 and one token have huge norms, as sinks do: they show up nowhere."""
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    model = GPT2LMHeadModel.from_pretrained(gpt2_folder)
    sink = Counter(int(i) for t in corpus[1] for i in gpt2_model.tokenize(t).ids).most_common(5)[4][0]
    with torch.no_grad():
        model.transformer.wpe.weight[0] += 300.0
        model.transformer.wte.weight[sink] += 300.0
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=gpt2_model.tokenizer.backend_tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    request = BuildRequest("sinks", str(folder), HOOK, texts=(str(corpus[0]),), latents=48, k=4, epochs=3, context=CONTEXT)
    build(request, cache=tmp_path)
    bundle = open_bundle("sinks", cache=tmp_path)
    manifest, ids, starts = bundle.manifest, np.asarray(bundle.ids), bundle.doc_offsets[:-1]
    assert not manifest["bos"]
    first = np.isin(np.arange(len(ids)), starts)
    assert first.sum() == bundle.n_documents
    assert (np.asarray(bundle.ignored) == (first | (ids == sink) | (ids == 0))).all()  # 0: <|endoftext|>
    assert manifest["corpus"]["sinks"] == int(((ids == sink) & ~first).sum()) > 20
    assert manifest["train"]["sinks"] > 0
    assert manifest["median_norm"] < 100
    assert float(bundle.maxima.max()) < 100
    assert not (np.diff(bundle.store.token_offsets)[np.asarray(bundle.ignored)]).any()
    for table in bundle.examples.values():
        peaks = table[table != NONE]
        assert len(peaks)
        assert not np.asarray(bundle.ignored)[peaks].any()
    reference = Reference(bundle, folder, hook_block=1, bos=False)
    documents = [i for i, t in enumerate(reference.texts) if held_out(t)]
    variance, l0, tokens = reference.reconstruction(documents)
    assert manifest["metrics"]["explained_variance"] == pytest.approx(variance, abs=1e-4)
    assert (manifest["metrics"]["l0"], manifest["metrics"]["tokens_eval"]) == (pytest.approx(l0), tokens)
    trace = Tracer.load(bundle).trace(reference.texts[0])
    assert trace.ignored.tolist() == np.asarray(bundle.ignored[: bundle.doc_offsets[1]]).tolist()


# ---- which texts the SAE is judged on ----------------------------------------------------------------------------------


def judged(request: BuildRequest, cache) -> dict:
    build(request, cache=cache)
    return open_bundle(request.name, cache=cache).manifest["metrics"]


def test_what_was_trained_on_is_never_called_held_out(corpus_texts, gpt2_folder, tmp_path):
    """Texts to explore beside those to train on: apart, overlapping, and a corpus of which nothing could be held out."""
    kept = [t for t in corpus_texts if held_out(t)]
    rest = [t for t in corpus_texts if not held_out(t)]

    def texts(name: str, chosen: list[str]) -> tuple[str]:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in chosen))
        return (str(tmp_path / f"{name}.jsonl"),)

    common = {"model": str(gpt2_folder), "hook": HOOK, "latents": 16, "k": 2, "epochs": 1, "context": CONTEXT}
    train = texts("train", rest[:20] + kept[:1])
    apart = judged(BuildRequest("apart", texts=train, store_texts=texts("apart", rest[30:36]), **common), tmp_path)
    assert (apart["evaluated_set"], apart["evaluated_on"]) == ("all", "all texts of this bundle; none was trained on")
    mixed = judged(BuildRequest("mixed", texts=train, store_texts=texts("mixed", [*rest[15:25], kept[0]]), **common), tmp_path)
    assert mixed["evaluated_set"] == "held_out"
    seen = judged(BuildRequest("seen", texts=train, store_texts=texts("seen", rest[:5]), **common), tmp_path)
    assert seen["evaluated_on"].startswith("in-sample")
    nothing = judged(BuildRequest("nothing", texts=texts("nothing", kept[:6]), **common), tmp_path)
    assert nothing["evaluated_on"].startswith("in-sample")
    assert nothing["held_out_of_training_sources"] is None


# ---- precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "tokens", "pays", "share", "expected"),
    [
        ("float32", 10**6, True, 1.0, ("float32", None)),
        ("auto", 100, True, 1.0, ("float32", None)),  # a small store equals pasted texts to the last bit
        ("auto", 10**6, False, 1.0, ("float32", None)),
        ("auto", 10**6, True, 0.951, ("bfloat16", 0.951)),
        ("auto", 10**6, True, 0.949, ("float32", 0.949)),
        ("bfloat16", 100, False, 0.5, ("bfloat16", 0.5)),
    ],
)
def test_bf16_is_used_where_it_pays_and_agrees(monkeypatch, requested, tokens, pays, share, expected):
    from sae_explore.activations import encoding

    monkeypatch.setattr(encoding, "bf16_pays", lambda: pays)
    monkeypatch.setattr(encoding, "bf16_agreement", lambda *_args, **_options: share)
    autocast, measured = encoding.store_dtype(requested, None, None, [np.zeros(tokens)], context=8, bos=True)
    assert ("bfloat16" if autocast is torch.bfloat16 else "float32", measured) == expected


def test_agreement_is_the_share_of_equal_top_sets(gpt2_model, gpt2_ids, random_sae):
    from sae_explore.activations.encoding import bf16_agreement
    from sae_explore.models.model import LanguageModel

    sae = random_sae("topk", 32, 48, k=4, context=CONTEXT)
    assert bf16_agreement(gpt2_model, sae, gpt2_ids[:4], context=CONTEXT, bos=True, top=4) <= 1
    ids = np.concatenate([i[: CONTEXT - 1] for i in gpt2_ids[:1]])
    rows = {
        dtype: gpt2_model.residual(torch.tensor([[gpt2_model.bos_id, *ids.tolist()]]), autocast=dtype)[0, 1:]
        for dtype in (None, torch.bfloat16)
    }
    sets = [[set(((r - sae.b_dec) @ sae.W_enc + sae.b_enc).topk(4).indices.tolist()) for r in x] for x in rows.values()]
    expected = np.mean([a == b for a, b in zip(*sets, strict=True)])
    assert isinstance(gpt2_model, LanguageModel)
    assert bf16_agreement(gpt2_model, sae, [ids], context=CONTEXT, bos=True, top=4) == pytest.approx(expected)


def test_the_request_in_the_manifest_builds_it_again(built):
    bundle, _ = built("llama trained")
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in bundle.manifest["request"].items()}
    assert asdict(BuildRequest(**kept)) == asdict(BuildRequest(**kept).checked())
