"""Labels and scores of a synthetic SAE whose features are known: each kind of label has a feature that must get it, and a decoy."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sae_explore.activations.activation_store import ActivationStore, StoreWriter
from sae_explore.activations.encoding import write_block
from sae_explore.features.feature_table import build_features
from sae_explore.files.tensor_file import read_tensors
from sae_explore.models.model import Unembedding
from sae_explore.models.tokens import Vocabulary

TOKEN, MEANING, UNLIKE, TOPIC, ONE_DOCUMENT, LENS, CATEGORY, DEAD, OFTEN, WITH_OFTEN = range(10)
ANGER = ["angry", "furious", "rage", "mad", "cross", "livid", "irate"]
LAW, SPORT = ["court", "judge", "jury", "verdict"], ["goal", "striker", "whistle", "pitch"]
WRITTEN = ["river", "lake", "sea", "pond", "creek", "water"]
FILLERS = [
    a + b + c for a in ("ba", "de", "fo", "ki", "lu", "ny", "pra", "sto") for b in "bdfgmnrz" for c in ("al", "em", "it", "or", "us")
]
PIECES = [f" {w}" for w in ("fox", *ANGER, *LAW, *SPORT, *WRITTEN, *FILLERS)]
D_MODEL, DOCUMENTS, LENGTH, PLACES = 48, 240, 64, 20
CATEGORIES = ("arts", "food", "news", "sports")


def id_of(word: str) -> int:
    return PIECES.index(f" {word}")


def world(seed: int = 4):
    """(ids, document offsets, planted (tokens, features) activations, ignored): short documents and a long last one."""
    rng = np.random.default_rng(seed)
    offsets = np.r_[np.arange(DOCUMENTS + 1) * LENGTH, DOCUMENTS * LENGTH + PLACES * LENGTH]
    first_filler = len(PIECES) - len(FILLERS)
    weight = rng.permutation(1 / np.arange(10, 10 + len(FILLERS)))
    ids = first_filler + rng.choice(len(FILLERS), int(offsets[-1]), p=weight / weight.sum())
    planted = np.zeros((len(ids), 10))

    def strengths(n: int) -> np.ndarray:
        return 4 + 2 * rng.random(n)

    order = rng.permutation(DOCUMENTS)  # each feature has its own documents, of all categories

    def places(feature: int) -> np.ndarray:
        return order[feature * PLACES : (feature + 1) * PLACES] * LENGTH + 32

    for feature, words in ((TOKEN, ["fox"]), (MEANING, ANGER)):
        at = places(feature)
        ids[at] = [id_of(words[i % len(words)]) for i in range(PLACES)]
        planted[at, feature] = strengths(PLACES)
    at = places(UNLIKE)
    ids[at] = first_filler + rng.permutation(len(FILLERS))[:PLACES]  # as many different words as there can be
    planted[at, UNLIKE] = strengths(PLACES)
    at = places(TOPIC)
    for i, t in enumerate(at):  # two of the four words, at changing distances
        ids[t - 4 - i % 3], ids[t + 5 + i % 4] = id_of(LAW[i % 4]), id_of(LAW[(i + 1) % 4])
    planted[at, TOPIC] = strengths(PLACES)
    at = int(offsets[-2]) + np.arange(PLACES) * LENGTH + 32  # the long document's windows
    for i, t in enumerate(at):
        ids[t - 5], ids[t + 6] = id_of(SPORT[i % 4]), id_of(SPORT[(i + 1) % 4])
    planted[at, ONE_DOCUMENT] = strengths(PLACES)
    at = places(LENS)
    ids[at + 1] = [id_of(WRITTEN[i % 6]) for i in range(PLACES)]
    planted[at, LENS] = strengths(PLACES)
    rest = order[CATEGORY * PLACES :]
    planted[rest[rest % len(CATEGORIES) == 3][:PLACES] * LENGTH + 32, CATEGORY] = strengths(PLACES)
    ignored = np.zeros(len(ids), bool)
    ignored[(planted == 0).all(1) & (rng.random(len(ids)) < 0.5)] = True
    often = ~ignored & (rng.random(len(ids)) < 0.6)
    planted[often, OFTEN] = 1
    planted[~ignored & np.where(often, rng.random(len(ids)) < 0.8, rng.random(len(ids)) < 0.3), WITH_OFTEN] = 1
    return ids, offsets, planted, ignored


def vocabulary() -> Vocabulary:
    data = [p.encode() for p in PIECES]
    return Vocabulary(
        np.frombuffer(b"".join(data), np.uint8), np.concatenate([[0], np.cumsum([len(d) for d in data])]), np.zeros(len(data), bool)
    )


@pytest.fixture(scope="module")
def built(planted_sae, tmp_path_factory):
    """(features table, arrays, planted, ignored)"""
    out = tmp_path_factory.mktemp("planted")
    ids, offsets, planted, ignored = world()
    sae = planted_sae(D_MODEL, planted.shape[1], hook="blocks.1.hook_resid_post")
    sae = replace(sae, b_enc=torch.full((planted.shape[1],), -0.01))  # what rounding leaves fires on nothing
    writer = StoreWriter(out / "work", planted.shape[1])
    write_block(writer, 0, sae, torch.tensor(planted, dtype=torch.float32) @ sae.W_dec, torch.tensor(ignored))
    totals = writer.finish(out / "store")
    W_U = torch.randn(len(PIECES), D_MODEL, generator=torch.Generator().manual_seed(5))
    W_U[[id_of(w) for w in ANGER]] += 3 * torch.randn(D_MODEL, generator=torch.Generator().manual_seed(6))
    W_U[[id_of(w) for w in WRITTEN]] += 9 * sae.W_dec[LENS]
    category = np.array([CATEGORIES[d % len(CATEGORIES)] for d in range(DOCUMENTS)] + ["arts"])
    build_features(
        out,
        store=ActivationStore(out / "store", planted.shape[1]),
        totals=totals,
        sae=sae,
        unembedding=Unembedding(W_U, torch.ones(D_MODEL), False),
        vocabulary=vocabulary(),
        ids=ids,
        doc_offsets=offsets,
        ignored=ignored,
        category_of_document=category,
        window=LENGTH,
    )
    return pq.read_table(out / "features.parquet"), read_tensors(out / "features.safetensors"), planted, ignored


@pytest.fixture(scope="module")
def rows(built) -> list[dict]:
    return built[0].to_pylist()


def test_the_sae_reads_off_what_was_planted(built):
    assert built[0]["count"].to_pylist() == (built[2] > 0).sum(0).tolist()


@pytest.mark.parametrize(
    ("feature", "kind"),
    [(TOKEN, "token"), (MEANING, "meaning"), (TOPIC, "topic"), (LENS, "lens"), (CATEGORY, "category"), (DEAD, "dead"),
     (UNLIKE, "mixed"), (ONE_DOCUMENT, "mixed")],
)  # fmt: skip
def test_each_planted_feature_gets_its_kind_of_label(rows, feature, kind):
    assert rows[feature]["label_kind"] == kind, rows[feature]["label"]


def test_labels_name_what_was_planted(rows):
    assert rows[TOKEN]["label"] == "fox"
    assert rows[MEANING]["label"].startswith("words like ")
    assert set(rows[MEANING]["label"].removeprefix("words like ").split(", ")) <= set(ANGER)
    assert set(rows[TOPIC]["label"].removeprefix("about ").split(", ")) == set(LAW)
    assert rows[LENS]["label"].startswith("writes ")
    assert set(rows[LENS]["label"].removeprefix("writes ").split(", ")) == set(WRITTEN)
    assert rows[CATEGORY]["label"].startswith("sports texts: ")
    assert all(rows[f]["confidence"] > 0.9 for f in (TOKEN, MEANING, TOPIC, LENS, CATEGORY))


def test_scores_of_planted_features_and_of_their_decoys(rows):
    assert rows[TOKEN]["score_token"] == 1
    assert rows[UNLIKE]["score_token"] == pytest.approx(1 / PLACES)
    assert rows[MEANING]["score_meaning"] == 1
    assert rows[UNLIKE]["score_meaning"] < 0.98
    assert rows[TOKEN]["score_meaning"] == 0  # one word is not alike
    assert rows[TOPIC]["score_topic"] == 1
    assert rows[ONE_DOCUMENT]["score_topic"] == 0
    assert rows[UNLIKE]["score_topic"] == 0
    assert rows[LENS]["score_agreement"] == 1
    assert rows[LENS]["score_lens"] > 0.9
    assert rows[CATEGORY]["score_category"] == 1
    assert set(rows[MEANING]["meaning_words"].split(", ")) <= set(ANGER)
    assert set(rows[TOPIC]["topic_words"].split(", ")) == set(LAW)
    assert rows[DEAD]["score_meaning"] == rows[DEAD]["score_topic"] == 0


def test_firing_together_is_counted_over_counted_tokens(built):
    """Half of the tokens are ignored: over all of them the two would seem to go together far more."""
    _, arrays, planted, ignored = built
    a, b = (planted[~ignored, f] > 0 for f in (OFTEN, WITH_OFTEN))
    at = arrays["coactive_feature"][OFTEN].tolist().index(WITH_OFTEN)
    assert arrays["coactive_correlation"][OFTEN, at] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-3)
    every = np.corrcoef(planted[:, OFTEN] > 0, planted[:, WITH_OFTEN] > 0)[0, 1]
    assert abs(every - np.corrcoef(a, b)[0, 1]) > 0.1
