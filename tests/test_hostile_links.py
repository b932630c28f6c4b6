"""Addresses of strangers: any query parameters open a page or a sentence, never a traceback."""

import pytest
from app_driver import open_page, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_explore.explore import links

pytest_plugins = ["bundle_fixtures"]
hostile = settings(derandomize=True, max_examples=80)
PAGES = ("", "feature", "browse", "lens", "lists", "quality", "about", "whatif", "build")

odd = st.sampled_from(
    ["", "-1", "0", "63", "64", "999999999", "9" * 30, "1e3", "٣", "1,2", "1,,2,", "," * 400, "../../tiny", "CON", "\u202e", "\x00", "<script>x</script>",
     "**b**", "$x$", ":smile:", "[" * 4000, "[1]", '["a"]', "[null]", "x" * 5000, "embedded/arts/003", "a\nb", "NaN", "None", "e\u0301" * 60]
)  # fmt: skip
values = odd | st.text(max_size=20)
addresses = st.dictionaries(st.sampled_from(links.KEYS) | st.text(max_size=5), values, max_size=6)


@hostile
@given(addresses)
def test_any_address_is_read_with_few_words(params):
    link = links.read_link(params, ["tiny", "planted"])
    assert link.bundle in (None, "tiny", "planted")
    assert all(0 <= feature < 10**9 for feature in link.features)
    assert len(link.features) <= links.MAX_LINK_FEATURES
    assert len(link.problems) < 12
    assert all(len(problem) < 250 for problem in link.problems)


def test_many_wrong_features_are_not_as_many_sentences():
    link = links.read_link({"features": ",".join(f"x{i}" for i in range(150)) + ",7"}, [])
    assert link.features == (7,)
    assert len(link.problems) == 4
    assert link.problems[-1] == "The link asks for 147 more that are no feature numbers."


@settings(derandomize=True, max_examples=3)
@given(st.lists(addresses, min_size=1, max_size=1))
@pytest.mark.parametrize("page", PAGES)
def test_any_address_opens_every_page(app_cache, page, found):
    (params,) = found
    at = open_page(page, **{key: value for key, value in params.items() if key and "\0" not in key})
    assert "Traceback" not in texts_of(at)
    assert len(at.error) <= 1


@pytest.mark.parametrize("page", PAGES)
def test_a_hostile_link_to_every_page(app_cache, page):
    at = open_page(page, bundle="../../etc/passwd", feature="9" * 40, features="x," * 300, text="x" * 5000, doc="\u202e../x", list="<b>" * 99,
                   note="[" * 2000, notes="[" * 2000)  # fmt: skip
    said = " ".join(w.value for w in at.warning)
    assert "bundle" in said
    assert len(at.warning) < 14
