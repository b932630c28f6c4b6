"""A bundle opened for reading: cards, examples, documents, and what is said when something is missing."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sae_explore import open_bundle as public_open_bundle
from sae_explore.activations.feature_stats import EXAMPLE_INTERVALS
from sae_explore.bundles import bundle as bundle_module
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.errors import BundleError, InputError
from sae_explore.files import bundle_files, hash_record
from sae_explore.files.bundle_files import publish, read_manifest
from sae_explore.files.tensor_file import read_tensors, write_tensors

pytest_plugins = ["bundle_fixtures"]


@pytest.fixture
def tiny(tiny_cache) -> Bundle:
    return open_bundle("tiny", cache=tiny_cache)


@pytest.fixture
def busy(tiny) -> int:
    """The feature that fires most often."""
    return int(np.argmax(tiny.features["count"].to_numpy()))


def test_opened_by_name_where_the_cache_is(tiny_cache, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_CACHE", str(tiny_cache))
    assert public_open_bundle("tiny").folder == tiny_cache / "tiny"
    with pytest.raises(BundleError, match="there is no bundle 'other'"):
        public_open_bundle("other")
    with pytest.raises(InputError, match="is no bundle name"):
        public_open_bundle("../tiny")


def test_a_card_holds_everything(tiny, busy):
    card = tiny.card(busy, top=3)
    assert (card.ref.bundle, card.ref.feature) == ("tiny", busy)
    stored = tiny.features.slice(busy, 1).to_pylist()[0]
    assert card.row == tiny.row(busy) == stored | {"automatic_label": stored["label"], "human_label": None, "own_label": None}
    assert card.row["label"] == tiny.label(busy)
    assert (len(card.top), len(card.random)) == (3, 8)
    assert (card.lens_convention, len(card.positive), len(card.negative)) == (tiny.lens_default, 15, 15)
    assert len(card.neighbours) == len(card.extra["encoder_neighbours"]) == 10
    assert sum(card.extra["categories"].values()) == sum(card.extra["histogram"][1]) == card.row["count"]
    assert sum(card.extra["lens_histogram"][1]) == len(tiny.vocabulary)
    assert all(busy != other["feature"] for other in card.extra["coactive"])
    assert sum(tiny.category_share().values()) == pytest.approx(1, abs=1e-4)
    with pytest.raises(InputError, match="has features 0 to 63; there is no feature 64"):
        tiny.card(64)
    for convention in tiny.manifest["lens"]["conventions"]:
        assert tiny.card(busy, convention=convention).lens_convention == convention
    with pytest.raises(InputError, match="lens convention 'sideways' is not in this bundle; it has folded, raw, cosine"):
        tiny.card(busy, convention="sideways")


def test_examples_are_stretches_of_documents(tiny, busy):
    for example in (*tiny.top_examples(busy, 20), *tiny.interval_examples(busy), *tiny.random_examples(busy)):
        document = tiny.document_trace(example.document)
        stop = example.start + len(example.tokens)
        assert example.start == max(0, example.peak - 20)
        assert stop == min(len(document.tokens), example.peak + 13)
        assert example.tokens == document.tokens.texts[example.start : stop]
        assert example.bytes == document.tokens.bytes[example.start : stop]
        assert example.ignored.tolist() == document.ignored[example.start : stop].tolist()
        np.testing.assert_array_equal(example.values, document.rows.column(busy)[example.start : stop])
        assert (example.cut_left, example.cut_right) == (example.start > 0, stop < len(document.tokens))
        assert example.document_id == tiny.documents["id"][example.document].as_py()
        assert example.max > 0


def test_the_stretch_shown_is_a_choice(tiny, busy):
    example = tiny.top_examples(busy, 1, before=2, after=1)[0]
    assert len(example.tokens) <= 4
    assert example.peak - example.start <= 2
    whole = tiny.top_examples(busy, 1, before=10**6, after=10**6)[0]
    assert "".join(whole.tokens) == tiny.document_text(whole.document)
    assert (whole.cut_left, whole.cut_right) == (False, False)


def test_examples_lie_in_the_interval_of_their_peak(tiny, busy):
    found = tiny.interval_examples(busy)
    assert [e.interval for e in found] == sorted((e.interval for e in found), reverse=True)
    for example in found:
        assert example.interval == int(np.ceil(example.max * EXAMPLE_INTERVALS / tiny.maxima[busy])) - 1
    counts = np.bincount([e.interval for e in found], minlength=EXAMPLE_INTERVALS)
    assert counts.max() <= 4


def test_documents(tiny):
    for document in range(0, tiny.n_documents, 7):
        assert tiny.find_document(tiny.documents["id"][document].as_py()) == document
    assert tiny.find_document("nothing") is None
    for wrong in (-1, tiny.n_documents):
        with pytest.raises(InputError, match=f"has documents 0 to 39; there is no document {wrong}"):
            tiny.document_trace(wrong)
    trace = tiny.document_trace(3)
    assert "".join(trace.tokens.texts) == trace.text == tiny.document_text(3)
    assert b"".join(trace.tokens.bytes) == trace.text.encode()
    assert [tiny.document_of(int(t)) for t in (tiny.doc_offsets[3], tiny.doc_offsets[4] - 1)] == [3, 3]


def test_decoder_rows_without_torch(tiny):
    assert tiny.W_dec.shape == (64, 32)
    np.testing.assert_allclose(np.linalg.norm(tiny.W_dec, axis=1), 1, atol=1e-4)


def test_many_threads_read_the_same(tiny):
    """One open bundle serves all visitors."""
    alone = [tiny.card(f) for f in range(64)]
    wrong = []

    def read(offset: int) -> None:
        for f in range(64):
            card, expected = tiny.card((f + offset) % 64), alone[(f + offset) % 64]
            if card.row != expected.row or [e.tokens for e in card.top] != [e.tokens for e in expected.top]:
                wrong.append(f)

    threads = [threading.Thread(target=read, args=(7 * i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- what is wrong with a bundle ---------------------------------------------------------------------------------------


@pytest.fixture
def rewritten(tiny, tmp_path):
    """A function: publish a copy of the bundle with its files edited; open it."""

    def make(edit) -> Bundle:
        work, folder = tmp_path / "work", tmp_path / "cache" / "copy"
        shutil.copytree(tiny.files, work)
        edit(work)
        publish(work, folder, tiny.manifest)
        return Bundle(folder)

    return make


def test_a_document_without_tokens(rewritten, tiny):
    """Some tokenizers make nothing of some texts."""

    def edit(work):
        tokens = {k: np.array(v) for k, v in read_tensors(work / "tokens.safetensors").items()}
        tokens["offsets"] = np.insert(tokens["offsets"], 1, 0)
        table = pq.read_table(work / "documents.parquet").to_pydict()
        for values in table.values():
            values.insert(0, "")
        import pyarrow as pa

        pq.write_table(pa.table(table), work / "documents.parquet")
        write_tensors(work / "tokens.safetensors", tokens)

    bundle = rewritten(edit)
    trace = bundle.document_trace(0)
    assert (len(trace.tokens), len(trace.rows), trace.hits()) == (0, 0, [])
    assert bundle.document_trace(1).tokens.texts == tiny.document_trace(0).tokens.texts
    assert [e.document for e in bundle.card(5).top] == [e.document + 1 for e in tiny.card(5).top]


def without(name: str, tensor: str):
    def edit(work):
        tensors = {k: np.array(v) for k, v in read_tensors(work / name).items() if k != tensor}
        write_tensors(work / name, tensors)

    return edit


def shorter(name: str, tensor: str):
    def edit(work):
        tensors = {k: np.array(v) for k, v in read_tensors(work / name).items()}
        tensors[tensor] = tensors[tensor][:-1]
        write_tensors(work / name, tensors)

    return edit


def column_dropped(name: str, column: str):
    return lambda work: pq.write_table(pq.read_table(work / name).drop_columns([column]), work / name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("tokens.safetensors", "ids"), "tokens.safetensors of bundle 'copy' holds no ids that fits"),
        (without("vocabulary.safetensors", "blob"), "vocabulary.safetensors of bundle 'copy' holds no blob"),
        (without("features.safetensors", "decoder_cosines"), "features.safetensors of bundle 'copy' holds no decoder_cosines"),
        (without("examples.safetensors", "top"), "examples.safetensors of bundle 'copy' holds no top"),
        (without("activations.safetensors", "token_values"), "activations.safetensors holds no token_values"),
        (shorter("examples.safetensors", "random"), "holds no random that fits"),
        (shorter("lens.safetensors", "raw.positive"), "holds no raw.positive that fits"),
        (shorter("tokens.safetensors", "ignored"), "tokens and activations of bundle 'copy' do not fit together"),
        (shorter("tokens.safetensors", "offsets"), "tokens and activations of bundle 'copy' do not fit together"),
        (column_dropped("documents.parquet", "text"), "documents.parquet of bundle 'copy' lacks text"),
        (column_dropped("features.parquet", "label"), "features.parquet of bundle 'copy' lacks label"),
        (lambda w: pq.write_table(pq.read_table(w / "features.parquet").slice(1), w / "features.parquet"), "has 63 rows instead of 64"),
        (lambda w: (w / "documents.parquet").write_bytes(b"PAR1 and nothing else"), "documents.parquet of bundle 'copy' cannot be read"),
    ],
)
def test_what_is_missing_is_named(rewritten, edit, message):
    with pytest.raises(BundleError, match=message) as caught:
        rewritten(edit)
    assert "\n" not in str(caught.value)


def test_large_files_are_hashed_once_and_again_when_they_change(tiny, tmp_path, monkeypatch):
    """What is small is hashed in each process; what is large once per path, size and modification time, by whichever process is first."""
    shutil.copytree(tiny.folder, tmp_path / "copy")
    path = tmp_path / "copy" / tiny.manifest["folder"] / "lens.safetensors"
    monkeypatch.setattr(bundle_module, "_LARGE", 1_000)
    Bundle(tmp_path / "copy")
    record = json.loads((tmp_path / ".hashed.json").read_text())
    assert {Path(p).name for p in record} == {Path(n).name for n, e in tiny.manifest["files"].items() if e["size"] >= 1_000}
    hashed = []
    monkeypatch.setattr(bundle_files, "_hash_of", lambda path, *_: hashed.append(path) or bundle_files.sha256_of(path))  # as a new process
    Bundle(tmp_path / "copy")
    assert [p.name for p in hashed] == [Path(n).name for n, e in tiny.manifest["files"].items() if e["size"] < 1_000]
    (stat, data) = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"the contents of lens\.safetensors have changed"):
        Bundle(tmp_path / "copy")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # damage that leaves no trace is found when all is hashed
    opened = Bundle(tmp_path / "copy")
    with pytest.raises(BundleError, match=r"the contents of lens\.safetensors have changed"):
        opened.verify()


def test_ignored_tokens_of_an_example_and_of_a_document_stand_at_their_places(tiny, busy, monkeypatch):
    marks = np.random.default_rng(0).random(len(tiny.ids)) < 0.3  # the tiny model's own tokens are all counted
    monkeypatch.setattr(tiny, "ignored", marks)
    for example in tiny.top_examples(busy, 5):
        first = int(tiny.doc_offsets[example.document])
        at = first + example.start
        assert example.ignored.tolist() == marks[at : at + len(example.tokens)].tolist()
        document = tiny.document_trace(example.document)
        assert document.ignored.tolist() == marks[first : first + len(document.tokens)].tolist()


def test_a_file_is_known_for_what_one_manifest_says_of_it_only(tiny, tmp_path):
    """Another manifest for a file of the same path, size and time: the file is hashed again."""
    folder, name = tmp_path / "copy", "lens.safetensors"
    shutil.copytree(tiny.folder, folder)
    hash_record.keep(folder, tiny.manifest, {name})
    assert hash_record.known(folder, tiny.manifest, at_least=1) == {name}
    files = {**tiny.manifest["files"], name: {**tiny.manifest["files"][name], "sha256": "0" * 64}}
    assert hash_record.known(folder, {**tiny.manifest, "files": files}, at_least=1) == set()


@pytest.mark.parametrize("record", ["", "[1]", "{" * 9_000, '{"x": 1}', "a folder"])
def test_a_damaged_record_of_hashes_is_no_trouble(tiny, tmp_path, monkeypatch, record):
    shutil.copytree(tiny.folder, tmp_path / "copy")
    monkeypatch.setattr(bundle_module, "_LARGE", 1_000)
    if record == "a folder":
        (tmp_path / ".hashed.json").mkdir()
    else:
        (tmp_path / ".hashed.json").write_text(record)
    assert Bundle(tmp_path / "copy").card(0).row == tiny.card(0).row


def test_a_bundle_of_another_schema_says_how_to_mend_it(tiny, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "copy")
    manifest = read_manifest(tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest | {"schema": 0}))
    with pytest.raises(BundleError, match="python -m sae_explore build copy --force"):
        Bundle(tmp_path / "copy")
