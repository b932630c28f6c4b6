"""Searches in links: what is written is read back the same through a real query string, and what is wrong is named and left out."""

import math
from urllib.parse import parse_qs, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.explore.find_links import BY, KEYS, MAX_QUERY, NO_SEARCH, RANGES, SHOW, Search, from_params, to_params
from sae_explore.explore.links import Link, query_of, read_link
from sae_explore.wording import KIND_WORDS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
LIMIT = st.floats(0, 1e9, allow_nan=False)
ENDS = st.tuples(LIMIT, LIMIT | st.just(math.inf)).map(sorted)
RANGE = st.dictionaries(st.sampled_from(RANGES), ENDS).map(lambda found: tuple((n, *found[n]) for n in RANGES if n in found))
SEARCH = st.builds(
    Search,
    by=st.sampled_from(BY),
    query=TEXT,
    suppressed=st.booleans(),
    show=st.sampled_from(SHOW),
    dense=st.booleans(),
    kinds=st.lists(st.sampled_from(sorted(KIND_WORDS)), unique=True).map(tuple),
    ranges=RANGE,
)


def through_the_address(query: dict[str, str]) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(urlencode(query), keep_blank_values=True).items()}


@given(SEARCH)
def test_a_search_comes_back_as_it_was(search):
    assert from_params(through_the_address(to_params(search))) == (search, [])
    found = read_link(through_the_address(query_of(bundle="demo", search=search)), ["demo"])
    assert found == Link("demo", search=search)


def test_a_link_says_no_more_than_it_must():
    assert to_params(NO_SEARCH) == {}
    assert query_of(bundle="demo", search=Search(query="a b")) == {"bundle": "demo", "q": "a b"}
    search = Search("token", "Paris", ranges=(("density", 0.001, 0.03), ("max", 2.0, math.inf)), show="all", kinds=("token", "form"))
    where = "density:0.001..0.03;max:2..inf;kinds:token+form;show:all"
    assert to_params(search) == {"find": "token", "q": "Paris", "where": where}


def test_a_long_query_is_left_out_and_its_link_still_opens():
    assert to_params(Search("phrase", "x" * MAX_QUERY))["q"] == "x" * MAX_QUERY
    assert to_params(Search("phrase", "x" * (MAX_QUERY + 1))) == {"find": "phrase"}
    found, problems = from_params({"find": "phrase", "q": "x" * (MAX_QUERY + 1)})
    assert found == Search("phrase")
    assert "1,500" in problems[0]


@pytest.mark.parametrize(
    "part",
    ["density", "density:1", "density:0.5..0.1", "density:-1..2", "density:nan..1", "density:inf..inf", "max:1e..2", "max:1..2..3", "size:1..2",
     "max:1..1e+e", "show:none", "kinds:", "kinds:token+nope", "dense:1", "<b>x</b>", "max:٣..٤", "max:1,5..2"],
)  # fmt: skip
def test_a_filter_that_is_not_understood_is_named_and_the_others_kept(part):
    found, problems = from_params({"where": f"max:1..2;{part};dense"})
    assert found == Search(ranges=(("max", 1.0, 2.0),), dense=True)
    assert len(problems) == 1
    assert part[:40] in problems[0]


def test_an_unknown_way_to_search_is_named_and_its_words_are_left_out():
    found, problems = from_params({"find": "magic", "q": "Paris", "where": "dense"})
    assert found == Search(dense=True)
    assert "magic" in problems[0]


def test_a_range_given_twice_counts_once_and_the_order_is_settled():
    found, problems = from_params({"where": "max:1..2;density:0..0.5;max:3..4"})
    assert found.ranges == (("density", 0.0, 0.5), ("max", 3.0, 4.0))
    assert found.range_of("max") == (3.0, 4.0)
    assert found.range_of("token") == (0.0, math.inf)
    assert problems == []


@given(st.dictionaries(st.sampled_from(KEYS), st.text(max_size=3_000), max_size=3))
def test_any_address_is_read_without_an_error(params):
    found, problems = from_params(params)
    assert found.by in BY
    assert len(found.query) <= MAX_QUERY
    assert len(problems) <= 6
    assert all(len(problem) < 200 for problem in problems)
    assert all(0 <= low <= high for _, low, high in found.ranges)


def test_filters_without_end_are_left_out_and_of_many_wrong_ones_some_are_named():
    found, problems = from_params({"where": ";".join(["dense"] * 200)})
    assert (found, len(problems)) == (NO_SEARCH, 1)
    found, problems = from_params({"where": ";".join([*"abcdefghijklmnopqrstuvwxyz", "dense"])})
    assert found == Search(dense=True)
    assert len(problems) == 6


@pytest.mark.parametrize(
    "part", ["density:1e999..inf", "density:1e999..1e999", "density:-1..2", "max:2..1", "max:1..", "kinds:token+nope", "show:none"]
)
def test_a_filter_that_cannot_be_is_named_and_left_out(part):
    found, problems = from_params({"where": part})
    assert (found, len(problems)) == (NO_SEARCH, 1)
