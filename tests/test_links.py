"""Links: what is written is read back the same through a real query string, and what is wrong is named and left out."""

from urllib.parse import parse_qs, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.explore.links import KEYS, MAX_LINK_FEATURES, MAX_LINK_TEXT, Link, fits_link, query_of, read_link

BUNDLES = ["demo", "gpt2"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


def through_the_address(query: dict[str, str]) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(urlencode(query), keep_blank_values=True).items()}


@given(
    st.sampled_from(BUNDLES),
    st.none() | st.integers(0, 10**6),
    st.none() | TEXT,
    st.none() | TEXT,
    st.lists(st.integers(0, 999), max_size=6, unique=True),
)
def test_a_view_comes_back_as_it_was(bundle, feature, text, document, features):
    query = query_of(bundle=bundle, feature=feature, text=text, document=document, features=features)
    found = read_link(through_the_address(query), BUNDLES)
    assert found == Link(bundle, feature, text if document is None else None, document, (), tuple(features))


def test_a_link_says_no_more_than_it_must():
    assert query_of(bundle="demo") == {"bundle": "demo"}
    assert query_of(bundle="demo", feature=0) == {"bundle": "demo", "feature": "0"}


def test_a_stored_document_goes_before_a_text():
    assert query_of(bundle="demo", text="own", document="embedded/arts/001") == {"bundle": "demo", "doc": "embedded/arts/001"}


def test_a_long_text_is_left_out_and_its_link_still_opens():
    longest = "x" * MAX_LINK_TEXT
    assert fits_link(longest)
    assert query_of(bundle="demo", text=longest)["text"] == longest
    assert not fits_link(longest + "x")
    assert query_of(bundle="demo", text=longest + "x", feature=3) == {"bundle": "demo", "feature": "3"}
    found = read_link({"bundle": "demo", "text": longest + "x"}, BUNDLES)
    assert found.text is None
    assert len(found.problems) == 1
    assert "1,500" in found.problems[0]


@pytest.mark.parametrize("raw", ["-1", "1.5", "１２", "abc", "9" * 10, "0x10", " 7", "<b>"])
def test_a_malformed_feature_is_named(raw):
    found = read_link({"bundle": "demo", "feature": raw}, BUNDLES)
    assert found.feature is None
    assert found.bundle == "demo"
    assert [raw in problem for problem in found.problems] == [True]


def test_an_unknown_bundle_is_named_and_the_rest_is_kept():
    found = read_link({"bundle": "nope", "feature": "7", "text": "hello"}, BUNDLES)
    assert (found.bundle, found.feature, found.text) == (None, 7, "hello")
    assert len(found.problems) == 1
    assert "nope" in found.problems[0]


def test_wrong_numbers_among_features_are_named_and_the_others_kept():
    found = read_link({"features": "5,x,7"}, BUNDLES)
    assert found.features == (5, 7)
    assert len(found.problems) == 1
    many = read_link({"features": ",".join(map(str, range(300)))}, BUNDLES)
    assert many.features == tuple(range(MAX_LINK_FEATURES))
    assert "300" in many.problems[0]


@given(st.dictionaries(st.sampled_from(KEYS), st.text(max_size=3000), max_size=5))
def test_any_address_is_read_without_an_error(params):
    found = read_link(params, BUNDLES)
    assert found.bundle in (None, *BUNDLES)
    assert found.text is None or len(found.text) <= MAX_LINK_TEXT
    assert all(len(problem) < 200 for problem in found.problems)


def test_empty_parameters_ask_for_nothing():
    assert read_link({"bundle": "", "feature": "", "text": "", "doc": "", "features": ""}, BUNDLES) == Link()


def test_two_texts_and_a_second_bundle_come_back():
    query = query_of(bundle="demo", document="embedded/arts/001", text2="a second & text", bundle2="gpt2")
    found = read_link(through_the_address(query), BUNDLES)
    assert (found.document, found.text, found.text2, found.document2, found.bundle2) == (
        "embedded/arts/001",
        None,
        "a second & text",
        None,
        "gpt2",
    )
    assert query_of(bundle="demo", text2="own", document2="embedded/arts/002") == {"bundle": "demo", "doc2": "embedded/arts/002"}


def test_of_two_texts_one_that_is_too_long_takes_the_other_along():
    assert query_of(bundle="demo", text="short", text2="x" * (MAX_LINK_TEXT + 1), bundle2="gpt2") == {"bundle": "demo", "bundle2": "gpt2"}
    found = read_link({"text": "short", "text2": "x" * (MAX_LINK_TEXT + 1), "bundle2": "nope"}, BUNDLES)
    assert (found.text, found.text2, found.bundle2) == ("short", None, None)
    assert len(found.problems) == 2


def test_words_in_a_link_are_cut_to_what_they_may_be():
    long = "x" * (8 * MAX_LINK_TEXT)
    found = read_link({"features": "1", "list": long, "note": long, "doc": long, "doc2": long}, BUNDLES)
    assert [len(words) for words in (found.name, found.note, found.document, found.document2)] == [60, MAX_LINK_TEXT, 200, 200]
