"""Finding features on the page Browse, by each way, against the engine; links, filters, lists and words that are no search."""

import re
from urllib.parse import parse_qsl

import numpy as np
import pytest
from app_driver import address, open_page, run, select_row, texts_of, unescaped
from streamlit.testing.v1 import AppTest

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.drawing import spans
from sae_explore.explore import find
from sae_explore.explore.find_links import Search, from_params, to_params
from sae_explore.notebook import notes
from sae_explore.notebook.notes_store import FileStore
from sae_explore.views import browse_page, find_filters, find_keep

pytest_plugins = ["bundle_fixtures"]
ODD = [
    "(",
    ".*",
    "[",
    "\\",
    "😀",
    "שלום \u202e",
    "<script>x</script> **b** [l](javascript:1) :smile: $x$",
    "·",
    "↵",
    "9" * 30,
    " ",
    "-1",
    "é" * 300,
]


@pytest.fixture
def tiny(own_cache) -> Bundle:
    return open_bundle("tiny")


@pytest.fixture
def store(tiny, tmp_path) -> FileStore:
    return FileStore(tmp_path, "tiny", sae=notes.sae_of(tiny.manifest), d_sae=64)


def search(at_or_params: Search, bundle: str = "tiny") -> AppTest:
    return open_page("browse", bundle, **to_params(at_or_params))


def shown(at: AppTest) -> list[int]:
    return at.dataframe[0].value["feature"].tolist() if at.dataframe else []


def column(at: AppTest, name: str) -> list[float]:
    return at.dataframe[0].value[f"found_{name}"].tolist()


def not_dense(bundle: Bundle, found: find.Found) -> find.Found:
    density, count = (bundle.features[c].to_numpy() for c in ("density", "count"))
    return found.only((density[found.feature] <= 0.1) & (count[found.feature] > 0))


def a_token(bundle: Bundle) -> tuple[str, np.ndarray]:
    """A word of the corpus that is a token, and its ids."""
    counts = np.bincount(bundle.ids, minlength=len(bundle.vocabulary))
    words = (bundle.vocabulary.text_of(int(i)).strip() for i in np.argsort(-counts))
    word = next(w for w in words if w.isalpha() and len(w) > 2)
    return word, resources.get_token_texts(bundle).matching(word)


def button(at: AppTest, label: str):
    return next(b for b in at.button if b.label == label)


# ---- each way ----------------------------------------------------------------------------------------------------------


def test_by_a_phrase(tiny):
    phrase = "the old river and the sea"
    at = search(Search("phrase", phrase))
    trace = resources.get_trace(resources.get_bundle("tiny"), phrase)
    expected = not_dense(tiny, find.by_trace(tiny, trace))
    assert shown(at) == expected.feature.tolist()
    assert column(at, "fit") == pytest.approx(expected.columns["fit"].tolist())
    assert column(at, "strength") == pytest.approx((100 * expected.columns["strength"]).tolist())
    names = [spans.dotted(text) for text in trace.tokens.texts]
    assert column(at, "peak") == [names[p] for p in expected.columns["position"].tolist()]
    assert "that fire on the phrase" in texts_of(at)
    assert address(at) == {"bundle": "tiny", "find": "phrase", "q": phrase}
    at = select_row(at, 0)
    assert f"On this text: **{trace.rows.column(shown(at)[0]).max():.2f}**" in texts_of(at)
    links = str([link.proto for link in at.get("page_link")])
    assert "the+old+river" in links or "the%20old%20river" in links


def test_by_a_token(tiny):
    word, ids = a_token(tiny)
    at = search(Search("token", word.upper()))
    seen = find.by_token(tiny, ids)
    expected = not_dense(tiny, seen.found)
    assert shown(at) == expected.feature.tolist()
    for name, scale in (("fit", 1), ("strength", 100), ("on", 100), ("of", 100)):
        assert column(at, name) == pytest.approx((scale * expected.columns[name]).tolist())
    assert f"**{len(expected)} of {len(seen.found)} features** that fire on the token" in texts_of(at)
    assert f"It stands {seen.counts.sum():,} times" in texts_of(at)


def test_a_sampled_token_says_so(tiny, monkeypatch):
    word, ids = a_token(tiny)
    few = find.by_token(tiny, ids, most=10)
    monkeypatch.setattr(resources, "get_on_token", lambda bundle, asked: few)
    assert "The figures are from 10 of these places, drawn at random." in texts_of(search(Search("token", word)))


@pytest.mark.parametrize("suppressed", [False, True])
def test_by_a_lens_token(tiny, suppressed):
    listed = tiny.lens_tokens(20)[suppressed]
    token = next(t for t in listed if t.token.strip().isalpha())
    ids = resources.get_token_texts(tiny).matching(token.token)
    expected = not_dense(tiny, find.by_lens(tiny, ids, side="negative" if suppressed else "positive"))
    at = search(Search("lens", token.token, suppressed=suppressed))
    assert shown(at) == expected.feature.tolist()
    assert column(at, "place") == expected.columns["place"].tolist()
    assert column(at, "logit") == pytest.approx(expected.columns["logit"].tolist())
    at = run(at.button_group(key="browse_side").set_value("Promoted" if suppressed else "Suppressed"))
    assert ("suppressed" in address(at).get("where", "")) == (not suppressed)


def test_by_a_category(tiny):
    category = tiny.categories[0]
    at = run(search(Search("category")).selectbox(key="browse_category").set_value(category))
    expected = not_dense(tiny, find.by_category(tiny, category))
    assert shown(at) == expected.feature.tolist()
    assert column(at, "times") == pytest.approx(expected.columns["times"].tolist())
    assert address(at)["q"] == category


def test_by_likeness(tiny):
    at = search(Search("similar", "12"))
    expected = not_dense(tiny, find.similar(tiny, 12))
    assert shown(at) == expected.feature.tolist()
    assert column(at, "cosine") == pytest.approx(expected.columns["cosine"].tolist())
    at = select_row(at, 2)
    feature = shown(at)[2]
    at = run(button(at, "Features like it").click())
    assert address(at) == {"bundle": "tiny", "find": "similar", "q": str(feature)}
    assert shown(at) == not_dense(tiny, find.similar(tiny, feature)).feature.tolist()


def test_the_field_of_likeness_begins_with_the_chosen_feature(tiny):
    at = run(open_page("browse", feature="9").button_group(key="browse_by").set_value("similar"))
    assert at.text_input(key="browse_similar").value == "9"
    assert "most like feature 9" in texts_of(at)


def test_by_a_saved_list(tiny, store):
    live = [f for f in range(64) if 0 < tiny.row(f)["density"] <= 0.1][:4]
    order = [live[2], live[0], live[3]]
    store.change(lambda now: notes.with_list(now, "rivers", entries=[notes.Entry(f, f"note {f}") for f in order]))
    at = search(Search("list", "rivers"))
    assert shown(at) == order
    assert column(at, "note") == [f"note {f}" for f in order]
    assert "of your list “rivers”" in texts_of(at)
    store.change(lambda now: notes.with_list(now, "bare", entries=[notes.Entry(f) for f in order]))
    at = run(search(Search("list", "bare")).button_group(key="browse_columns_found").set_value(["confidence"]))
    assert list(at.dataframe[0].proto.column_order) == ["feature", "label", "confidence", "density"]
    gone = search(Search("list", "lakes"))
    assert "no list “lakes” here" in texts_of(gone)
    assert not shown(gone)


@pytest.mark.parametrize("by", ["phrase", "token", "lens", "category", "similar", "list"])
def test_nothing_asked_lists_nothing_and_says_what_to_do(tiny, by):
    at = search(Search(by))
    assert not at.dataframe
    assert len(at.info) == 1
    assert not at.error


def test_what_is_no_token_leads_on(tiny):
    word, _ = a_token(tiny)
    at = search(Search("token", word + "qzx"))
    assert "is no token of this model" in at.info[0].value
    assert word in unescaped(at.info[0].value).split("Tokens near it")[1]


# ---- links, filters, switching -----------------------------------------------------------------------------------------


def test_a_link_reopens_search_and_filters(tiny):
    word, ids = a_token(tiny)
    asked = Search("token", word, ranges=(("density", 0.001, 1 / 30), ("token", 0.2, 0.9)), dense=True)
    at = search(asked)
    row = tiny.features
    inside = (row["density"].to_numpy() >= np.float32(0.001)) & (row["density"].to_numpy() <= np.float32(1 / 30))
    inside &= (row["score_token"].to_numpy() >= np.float32(0.2)) & (row["score_token"].to_numpy() <= np.float32(0.9))
    found = find.by_token(tiny, ids).found
    assert shown(at) == found.only(inside[found.feature]).feature.tolist()
    assert from_params(address(at)) == (asked, [])
    assert "fires on 1 in 1,000 to 1 in 30" in texts_of(at)
    again = open_page("browse", **{k: v for k, v in address(at).items() if k != "bundle"})
    assert shown(again) == shown(at)
    assert address(again) == address(at)
    at = run(button(at, "Reset the filters").click())
    assert address(at) == {"bundle": "tiny", "find": "token", "q": word}
    assert shown(at) == not_dense(tiny, found).feature.tolist()


def test_ends_that_the_sliders_do_not_have_are_widened(tiny):
    at = search(Search(ranges=(("density", 0.0009, 0.04), ("max", 0.0, 1e9))))
    assert at.select_slider(key="browse_density").value == (1_000, 30)
    assert at.select_slider(key="browse_max").value == (0.0, np.inf)
    stops = find_filters._max_stops(resources.get_frame(tiny))
    assert stops[0] == 0
    assert stops[-1] == np.inf
    assert stops == sorted(stops)
    middle = stops[len(stops) // 2]
    at = search(Search(ranges=(("max", middle * 1.01, middle * 1.02),)))
    low, high = at.select_slider(key="browse_max").value
    assert (low, high) == (middle, stops[len(stops) // 2 + 1])
    maxima = tiny.features["max"].to_numpy()
    live = (tiny.features["count"].to_numpy() > 0) & (tiny.features["density"].to_numpy() <= 0.1)
    assert sorted(shown(at)) == np.flatnonzero(live & (maxima >= low) & (maxima <= high)).tolist()


def test_words_stay_when_the_way_to_search_changes(tiny):
    word, _ = a_token(tiny)
    at = run(open_page("browse").text_input(key="browse_query").set_value(word))
    at = run(at.button_group(key="browse_by").set_value("token"))
    assert at.text_input(key="browse_query").value == word
    assert address(at) == {"bundle": "tiny", "find": "token", "q": word}


def test_a_wrong_link_is_named_and_the_rest_is_kept(tiny):
    at = open_page("browse", find="magic", where="max:2..1;dense")
    said = " ".join(w.value for w in at.warning)
    assert "magic" in said
    assert "max" in said
    assert len(shown(at)) == (tiny.features["count"].to_numpy() > 0).sum()


def test_the_searches_of_one_bundle_do_not_break_another(tiny):
    at = search(Search("category", tiny.categories[0], ranges=(("max", 1.0, 2.0),)))
    at = run(at.selectbox(key="_bundle_choice").set_value("planted"))
    assert not at.error
    assert "nope" not in texts_of(search(Search("category", "nope"), "planted")).replace("“nope” here", "")


# ---- lists out of searches ---------------------------------------------------------------------------------------------


def test_what_was_found_is_kept_as_a_list(tiny, store):
    store.change(lambda now: notes.with_list(now, "like twelve"))
    at = search(Search("similar", "12"))
    first = shown(at)[:7]
    at.selectbox(key="_keep_name").set_value("like twelve")
    at.number_input(key="_keep_many").set_value(7)
    at = run(button(at, "Keep").click())
    assert "first 7 features are in the list" in texts_of(at)
    assert store.read().list_named("like twelve").features == first
    run(button(at, "Keep").click())
    assert store.read().list_named("like twelve").features == first


def test_a_list_that_is_not_there_is_made_with_its_note():
    made = find_keep.with_kept(notes.Notes(), "  new\none ", [5, 3, 5], note="x" * 5_000)
    (saved,) = made.lists
    assert (saved.name, saved.features, saved.note) == ("new one", [5, 3], "x" * notes.MAX_NOTE)
    more = find_keep.with_kept(made, "new one", [3, 9], note="another")
    assert (more.lists[0].features, more.lists[0].note) == ([5, 3, 9], saved.note)


def test_the_note_of_a_new_list_says_how_it_was_found(tiny):
    noted = browse_page._note(tiny, Search("similar", "12"))
    assert from_params(dict(parse_qsl(noted.split(": ")[1]))) == (Search("similar", "12"), [])


def test_keeping_without_a_name_says_so(tiny, store):
    at = run(button(open_page("browse"), "Keep").click())
    assert "choose a list" in texts_of(at)
    assert not store.read().lists


# ---- words that are no search ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["label", "phrase", "token", "lens", "similar"])
def test_any_words_are_taken_as_they_are(tiny, by):
    at = search(Search(by))
    for query in ODD:
        at = run(at.text_input(key="browse_similar" if by == "similar" else "browse_query").set_value(query))
        said = texts_of(at)
        assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(javascript|(?<!\\):smile|(?<![\\*])\*\*b", said)
        bodies = [b.proto.body for b in at.get("html") if "<style>" not in b.proto.body]
        assert not [b for b in bodies if re.search(r"<(?!/?(?:div|span)\b)", b)]


def test_a_phrase_in_public_has_the_limit_of_texts(tiny, monkeypatch):
    monkeypatch.setenv("SAE_EXPLORE_PUBLIC", "1")
    at = search(Search("phrase", "a b c d e f g h " * 80))
    assert "tokens, the limit here is 512" in unescaped(at.error[0].value)
    monkeypatch.setattr(public_mode, "PUBLIC_TEXT_CHARS", 100)
    at = search(Search("phrase", "word " * 40))
    assert "the limit here is 100" in unescaped(at.error[0].value)
