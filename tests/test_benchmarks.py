"""The comparison with other tools and the scaling curves, in tiny sizes; the other tools are played by a brute-force reference."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from benchmarks import inputs, our_side, peers, scaling
from benchmarks.agreement import TopList, compare, one_a_window
from benchmarks.inputs import Setup, exact_pieces, make_inputs
from benchmarks.our_side import place_of
from sae_explore.errors import ExploreError, InputError
from sae_explore.models.model import load_tokenizer
from sae_explore.saes.sae_formats import load_sae

HOOK = "blocks.0.hook_resid_post"
MODEL = {"layers": 2, "width": 32, "heads": 2, "hook": HOOK}
TINY = Setup(windows=6, context=16, latents=48, k=4, train_latents=(48,), train_batch=32, train_steps=2, **MODEL)
ARGUMENTS = ["--tokens", "96", "--context", "16", "--latents", "48", "--k", "4", "--train-latents", "48", "--train-batch", "32", "--steps", "2",
             "--layers", "2", "--width", "32", "--heads", "2", "--hook", HOOK, "--threads", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The inputs of the tiny comparison, with the substitute tokenizer."""
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "GPT2_TOKENIZER", folder / "missing")
        make_inputs(folder, TINY)
    return folder


def reference_activations(folder) -> np.ndarray:
    """(windows, context, latents) by transformers and a dense top k, the BOS set to zero."""
    model = GPT2LMHeadModel.from_pretrained(folder / "model").eval()
    tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
    sae = load_sae(folder / "sae")
    with torch.no_grad():
        rows = model(tokens, output_hidden_states=True).hidden_states[1]
        pre = (rows - sae.b_dec) @ sae.W_enc + sae.b_enc
    values, at = pre.topk(TINY.k, dim=-1)
    dense = torch.zeros_like(pre).scatter(-1, at, values.relu())
    dense[:, 0] = 0
    return dense.numpy()


def play_the_peers(folder, task) -> None:
    """Write what `peer_side` would."""
    dense = reference_activations(folder).reshape(-1, TINY.latents).T
    places = np.argsort(-dense, axis=1, kind="stable")[:, :20]
    values = np.take_along_axis(dense, places, axis=1)
    np.savez(folder / "peers-top.npz", places=places, values=values, features=np.arange(TINY.latents))
    speeds = {"dense": {"tokens_per_second": 1.0, "dead": 4, "batch": 32}, "sparse": {"tokens_per_second": 2.0, "dead": 4, "batch": 32}}
    result = {
        "dashboard": {"ways": {"defaults": {"first": 1e6, "first_features": 40, "rest": 80.0, "rest_features": 4, "json": 1.0}}},
        "training": {"training": {"48": speeds}},
    }[task]
    (folder / f"peers-{task}.json").write_text(json.dumps({**result, "versions": {"sae-lens": "0"}, "threads": 1, "peak_mb": 1.0}))


@pytest.fixture
def in_this_process(monkeypatch, tmp_path):
    """Both sides run here instead of in processes of their own."""

    def process(command, _threads):
        folder, task = command[-2:]
        if "benchmarks.our_side" in command:
            our_side.main([folder, task])
        else:
            play_the_peers(peers.Path(folder), task)

    monkeypatch.setattr(peers, "_process", process)
    monkeypatch.setattr(inputs, "GPT2_TOKENIZER", tmp_path / "missing")


# ---- the comparison ----------------------------------------------------------------------------------------------------


def test_without_the_peers_our_side_is_measured_and_it_is_said(in_this_process, capsys):
    peers.main(ARGUMENTS)
    said = capsys.readouterr().out
    assert "the peers' side was skipped" in said
    assert "data of 48 features, 6 x 16 tokens" in said
    assert "substitute" in said


def test_with_the_peers_the_table_has_ratios_and_the_tops_agree(in_this_process, capsys):
    peers.main([*ARGUMENTS, "--peer-python", "PEERS", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["setup"]["counted_tokens"] == 6 * 15
    for agreement in found["agreement"].values():
        assert agreement["features"] > 20
        assert agreement["mismatches"] == {}
        assert agreement["largest_difference"] < 1e-3
    data, training = (next(r for r in peers.rows(found) if r[0].startswith(what)) for what in ("data", "training"))
    assert data[0].endswith("(defaults, scaled up from 44)")
    assert data[2] == "1,000,160.0 s"  # four more at 20 s each
    assert float(data[3]) == pytest.approx(1_000_160 / sum(found["ours"]["dashboard"]["seconds"].values()), abs=0.051)
    ours = found["ours"]["training"]["training"]["48"]
    assert ours["dead"] == 4
    assert training[0].endswith("(sparse)")
    assert float(training[3]) == pytest.approx(ours["tokens_per_second"] / 2, abs=0.051)
    assert sum(found["ours"]["dashboard"]["parts"].values()) == pytest.approx(sum(found["ours"]["dashboard"]["seconds"].values()), rel=0.2)


def test_a_planted_difference_is_found_and_ends_with_an_error(in_this_process, monkeypatch, capsys):
    process = peers._process

    def planted(command, threads):
        process(command, threads)
        path = peers.Path(command[-2]) / "peers-top.npz"
        if path.is_file():
            found = dict(np.load(path))
            found["values"] *= 1.01
            np.savez(path, **found)

    monkeypatch.setattr(peers, "_process", planted)
    with pytest.raises(ExploreError, match="did not find the same"):
        peers.main([*ARGUMENTS, "--peer-python", "PEERS", "--only", "dashboard"])
    said = capsys.readouterr().out
    assert "strongest tokens: 0 of" in said
    assert ": value of rank 1 is " in said


def test_a_side_that_fails_is_one_sentence():
    with pytest.raises(ExploreError, match="cannot be started"):
        peers._process(["no-such-python", "x"], 1)
    with pytest.raises(ExploreError, match="failed: ValueError: boom"):
        peers._process([sys.executable, "-c", "raise ValueError('boom')"], 1)


# ---- the inputs --------------------------------------------------------------------------------------------------------


def test_texts_fill_their_windows_exactly(prepared):
    tokens = np.load(prepared / "tokens.npy")
    tokenizer = load_tokenizer(prepared / "model")
    texts = [json.loads(line)["text"] for line in (prepared / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert tokens.shape == (6, 16)
    assert (tokens[:, 0] == tokenizer.convert_tokens_to_ids(inputs.BOS)).all()
    assert [tokenizer(text)["input_ids"] for text in texts] == tokens[:, 1:].tolist()
    assert len(set(texts)) == 6
    assert np.load(prepared / "residuals.npy").shape == (6 * 15, 32)


def test_pieces_are_used_up(prepared):
    tokenizer = load_tokenizer(prepared / "model")
    text = "The small boat left the harbour at dawn and nobody saw it again."
    pieces = list(exact_pieces([text, text, "too short"], tokenizer, 5))
    assert pieces
    assert len({piece for piece, _ in pieces}) == len(pieces)
    assert all(piece in text and len(ids) == 5 == len(tokenizer(piece)["input_ids"]) for piece, ids in pieces)


def test_more_windows_than_texts_are_refused(prepared, monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "embedded_rows", lambda: ())
    with pytest.raises(InputError, match="holds 0 windows"):
        inputs._write_texts(tmp_path, TINY, load_tokenizer(prepared / "model"))


def test_places_leave_room_for_the_bos():
    assert [place_of(token, 16) for token in (0, 14, 15, 31)] == [1, 15, 17, 34]


# ---- agreement ---------------------------------------------------------------------------------------------------------


def top(*pairs) -> TopList:
    return TopList.of(np.array([p for p, _ in pairs]), np.array([v for _, v in pairs], float))


def test_rounding_ties_and_padding_agree():
    ours = {0: top((3, 5.0), (9, 4.0), (1, 2.0)), 1: top((7, 1.0)), 2: top()}
    theirs = {0: top((3, 5.001), (1, 2.0), (9, 4.0), (0, 0.0)), 1: top((8, 1.0)), 2: top((0, 0.0))}
    found = compare(ours, theirs)
    assert (found.features, found.tokens, found.mismatches, found.share) == (2, 4, {}, 1.0)
    assert found.largest_difference == pytest.approx(0.001 / 5.001)


def test_lists_are_compared_up_to_the_shorter_one():
    assert compare({0: top((1, 3.0), (2, 2.0))}, {0: top((1, 3.0), (2, 2.0), (5, 1.0))}).mismatches == {}


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (top((3, 5.0), (9, 4.1), (1, 2.0)), "value of rank 2 is 4 here and 4.1 there"),
        (top((3, 4.0), (9, 5.0), (1, 2.0)), "a token has the value 5 here and 4 there"),
        (top((3, 5.0), (8, 4.0), (1, 2.0)), "token 9 with value 4 is listed here only"),
        (top(), "fires on 3 listed tokens here and on 0 there"),
    ],
)
def test_differences_are_named(theirs, said):
    found = compare({4: top((3, 5.0), (9, 4.0), (1, 2.0))}, {4: theirs})
    assert found.mismatches == {4: said}
    assert found.share == 0


def test_a_window_speaks_once_and_equal_surroundings_count_once():
    tokens = np.array([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 9, 2, 3, 4]])
    found = one_a_window(top((2, 9.0), (1, 8.0), (7, 7.0), (13, 6.0)), tokens)
    assert found.places.tolist() == [2, 13]  # 1: the same window; 7: window 1 at the same place with the same tokens around
    assert found.values.tolist() == [9.0, 6.0]


# ---- scaling -----------------------------------------------------------------------------------------------------------


def test_the_curves_run_and_add_up(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(inputs, "GPT2_TOKENIZER", tmp_path / "missing")
    arguments = ["--tokens", "350", "--build-tokens", "254", "127", "508", "--latents", "64", "--cards", "5", "--layers", "2"]
    arguments += ["--width", "32", "--heads", "2", "--hook", HOOK, "--threads", "1"]
    scaling.main([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    (row,) = found["open"]
    assert (row["tokens"], row["latents"]) == (300, 64)
    for run in (row["cold"], row["warm"]):
        assert not run["torch"]
        assert 0 < run["card_p50_ms"] <= run["card_p95_ms"]
        assert 0 < run["open_s"] < run["first_card_s"]
        assert 5 < run["memory"]["anonymous"] < 400
    assert [r["tokens"] for r in found["build"]] == [127, 254, 508]
    for r in found["build"]:
        assert r["tokens_per_second"] == pytest.approx(r["tokens"] / r["seconds"])
    scaling._print(found, 64)
    assert "from a straight line" in capsys.readouterr().out


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(scaling.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": 1 << 30}))
    with pytest.raises(ExploreError, match=r"10,000,000 tokens needs 8\.\d GB"):
        scaling.opened(10_000_000, latents=64, d_in=16, cards=1)
