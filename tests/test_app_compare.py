"""The page Compare, driven through the app's entry point and held against the engine on the traces of a model of its own."""

import re
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from app_driver import address, open_page, run, texts_of, unescaped
from streamlit.testing.v1 import AppTest

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle, open_bundle
from sae_explore.bundles.tracer import Tracer
from sae_explore.drawing import spans
from sae_explore.explore import text_view
from sae_explore.explore.compare import compare_traces
from sae_explore.explore.compare_bundles import matches, stretches
from sae_explore.explore.links import MAX_LINK_TEXT
from sae_explore.types import TextTrace
from sae_explore.views.compare_sides import PAIRS

pytest_plugins = ["bundle_fixtures"]

A, B = "The old map shows three rivers and a lake.", "The old map shows two roads and a lake."
HOSTILE = "<b onclick=x> [l](javascript:1) `c` $x$ :smile: **b** <script>1</script> end"


@pytest.fixture(scope="module")
def readers(tiny_cache) -> dict[str, Tracer]:
    return {name: Tracer.load(open_bundle(name, cache=tiny_cache)) for name in ("tiny", "planted")}


@pytest.fixture
def tiny(app_cache) -> Bundle:
    return open_bundle("tiny", cache=app_cache)


def table(at: AppTest, first: str):
    """The table whose first column is called so."""
    (found,) = [d.value for d in at.dataframe if d.value.columns[0] == first]
    return found


def coloured(at: AppTest) -> list[str]:
    """The texts that are drawn as tokens."""
    return [e.proto.body for e in at.get("html") if e.proto.body.startswith('<div class="sx"><span class="t')]


def compare(at: AppTest, a: str | None = None, b: str | None = None) -> AppTest:
    for key, text in (("a", a), ("b", b)):
        if text is not None:
            at.text_area(key=f"_compare_typed_{key}").set_value(text)
    (button,) = [x for x in at.button if x.label == "Compare"]
    return run(button.click())


def expect(at: AppTest, bundle: Bundle, a: TextTrace, b: TextTrace) -> None:
    """The page shows what differs between these two."""
    found = compare_traces(a, b, bundle.maxima)
    words = unescaped(texts_of(at))
    assert f"**{len(found.pairs)} tokens** of A's {len(a.tokens)} and B's {len(b.tokens)} are shared" in words
    dense = text_view.scale_of(bundle).dense[found.feature]
    rows = np.flatnonzero(~dense & (found.max_a != found.max_b))
    shown = table(at, "feature")
    assert shown["feature"].tolist() == found.feature[rows].tolist()
    np.testing.assert_allclose(shown["a"], 100 * text_view.shares(found.max_a, np.asarray(bundle.maxima)[found.feature])[rows])
    np.testing.assert_allclose(shown["b"], 100 * text_view.shares(found.max_b, np.asarray(bundle.maxima)[found.feature])[rows])
    for html, lone in zip(coloured(at), (found.lone_a, found.lone_b), strict=True):
        marks = [" lone" in c for c in re.findall(r'<span class="(t[^"]*)"', html)]
        assert marks == lone.tolist()


# ---- two texts ----


def test_a_link_with_two_texts_shows_what_differs(tiny, readers):
    at = open_page("compare", text=A, text2=B)
    expect(at, tiny, readers["tiny"].trace(A), readers["tiny"].trace(B))
    assert address(at) == {"bundle": "tiny", "text": A, "text2": B}
    assert "output of block 1 of 4; SAE of 64 features" in unescaped(texts_of(at))


def test_a_first_visit_compares_the_first_pair_and_typing_compares_others(tiny, readers):
    at = open_page("compare")
    expect(at, tiny, readers["tiny"].trace(PAIRS[0].a), readers["tiny"].trace(PAIRS[0].b))
    at = compare(at, A, B)
    expect(at, tiny, readers["tiny"].trace(A), readers["tiny"].trace(B))
    assert address(at)["text2"] == B
    at = run(at.button_group(key="_compare_pair").set_value(PAIRS[1].title))
    expect(at, tiny, readers["tiny"].trace(PAIRS[1].a), readers["tiny"].trace(PAIRS[1].b))


def test_a_row_of_the_table_colours_both_texts(tiny):
    at = open_page("compare", text=A, text2=B)
    rows = table(at, "feature")
    feature = int(rows["feature"][2])
    at.session_state["feature"] = feature
    at = run(at)
    assert address(at)["feature"] == str(feature)
    assert all(f"feature {feature} " in html for html in coloured(at))
    assert at.subheader[-1].value == spans.md(tiny.label(feature))


def test_shared_tokens_and_sides_filter_the_table(tiny, readers):
    at = open_page("compare", text=A, text2=B)
    a, b = (readers["tiny"].trace(t) for t in (A, B))
    found = compare_traces(a, b, tiny.maxima)
    dense = text_view.scale_of(tiny).dense[found.feature]
    only_b = found.only_b & ~dense
    if only_b.any():
        at = run(at.button_group(key="_compare_side").set_value("only_b"))
        assert table(at, "feature")["feature"].tolist() == found.feature[only_b].tolist()
        at = run(at.button_group(key="_compare_side").set_value("all"))
    at = run(at.button_group(key="_compare_where").set_value("shared"))
    rows = [i for i in found.by_shared() if not dense[i] and found.at_a[i] != found.at_b[i]]
    shown = table(at, "feature")
    assert shown["feature"].tolist() == found.feature[rows].tolist()
    tokens = [a.tokens.texts[found.pairs[found.pair[i], 0]].replace(" ", "·") for i in rows]
    assert shown["token"].tolist() == tokens


def test_stored_texts_are_compared_without_the_model(app_cache, tiny, monkeypatch):
    monkeypatch.setattr(resources, "warm", lambda bundle: None)
    monkeypatch.setattr(Tracer, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    ids = tiny.documents["id"].to_pylist()[:3]
    at = open_page("compare", doc=ids[0], doc2=ids[1])
    expect(at, tiny, tiny.document_trace(0), tiny.document_trace(1))
    assert address(at) == {"bundle": "tiny", "doc": ids[0], "doc2": ids[1]}
    at = run(at.selectbox(key="_compare_stored_b").set_value(ids[2]))
    expect(at, tiny, tiny.document_trace(0), tiny.document_trace(2))
    at = compare(at)  # the text areas were not touched: still stored texts
    assert address(at)["doc2"] == ids[2]


def test_equal_texts_do_not_differ(tiny):
    at = open_page("compare", text=A, text2=A)
    assert "nothing differs" in texts_of(at)
    assert not any(" lone" in re.sub("title=.*?>", "", html) for html in coloured(at))
    assert "No feature differs in this way." in texts_of(at)


def test_a_second_text_is_asked_for(tiny):
    at = open_page("compare", text=A)
    assert "a second text" in texts_of(at)
    assert not at.dataframe
    at = compare(at, b=B)
    assert address(at) == {"bundle": "tiny", "text": A, "text2": B}


@pytest.mark.parametrize(("text", "said"), [("x" * 40_001, "text B: the text has 40,001 characters"), ("\0" * 20, "binary data")])
def test_a_text_that_cannot_be_read_is_refused_in_a_sentence(tiny, text, said):
    at = compare(open_page("compare", text=A), b=text)
    assert said.lower() in unescaped(at.error[0].value).lower()
    assert not at.dataframe


def test_long_texts_do_not_travel(tiny):
    at = compare(open_page("compare", text=A), b="word " * (MAX_LINK_TEXT // 5 + 1))
    assert address(at) == {"bundle": "tiny"}
    assert "do not travel" in texts_of(at)


def test_markup_in_texts_stays_text(tiny):
    at = open_page("compare", text=HOSTILE, text2=HOSTILE.upper())
    shown = "".join(e.proto.body for e in at.get("html"))
    assert "<script" not in shown.lower()
    assert not re.search(r"<[^>]*\sonclick\s*=\s*x\s*>", shown.lower())


def test_a_link_to_texts_that_are_not_there_says_so(tiny):
    at = open_page("compare", doc="no/such", doc2=tiny.documents["id"][0].as_py(), bundle2="nowhere")
    said = unescaped("\n".join(w.value for w in at.warning))
    assert "no/such" in said
    assert "nowhere" in said


def test_the_texts_of_this_page_leave_the_text_page_alone(tiny):
    at = open_page("compare", text=A, text2=B)
    assert "text" not in at.session_state
    assert "document" not in at.session_state


# ---- two bundles ----


def test_two_bundles_on_one_text(tiny, readers):
    at = open_page("compare", text=A, bundle2="planted")
    a, b = (readers[name].trace(A) for name in ("tiny", "planted"))
    other = open_bundle("planted", cache=tiny.folder.parent)
    scales = [text_view.scale_of(x) for x in (tiny, other)]
    found = matches(a, b, *(text_view.ranked(t, s) for t, s in zip((a, b), scales, strict=True)))
    shown = table(at, "feature")
    assert shown["feature"].tolist() == found.a.feature.tolist()
    np.testing.assert_allclose(shown["cosine"], found.a.cosine, rtol=1e-5)
    assert shown["together"].tolist() == found.a.together.tolist()
    for url, best, cosine in zip(shown["other"], found.a.other, found.a.cosine, strict=True):
        if cosine > 0:
            assert parse_qs(urlsplit(url).query) == {"bundle": ["planted"], "feature": [str(best)]}
    pieces = stretches(a, b, *(text_view.strongest(t, s) for t, s in zip((a, b), scales, strict=True)))
    rows = table(at, "piece")
    assert "".join(rows["piece"]).replace("·", " ") == "".join(
        A[x:y] for x, y, i in zip(pieces.start, pieces.stop, pieces.ignored, strict=True) if not i
    )
    assert f"**{found.alike:.2f}**" in texts_of(at)
    assert address(at) == {"bundle": "tiny", "text": A, "bundle2": "planted"}
    assert len(coloured(at)) == 2


def test_a_stored_text_of_both_bundles_needs_no_model(tiny, monkeypatch):
    monkeypatch.setattr(resources, "warm", lambda bundle: None)
    monkeypatch.setattr(Tracer, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    document = tiny.documents["id"][1].as_py()
    at = open_page("compare", doc=document, bundle2="planted")
    assert len(table(at, "feature"))
    assert address(at) == {"bundle": "tiny", "doc": document, "bundle2": "planted"}


def test_one_bundle_alone_has_nothing_beside_it(tiny, monkeypatch):
    monkeypatch.setattr(resources, "bundle_names", lambda: ["tiny"])
    at = open_page("compare")
    at = run(at.button_group(key="_compare_mode").set_value("bundles"))
    assert "is the only bundle here" in texts_of(at)
    assert [link.proto.label for link in at.get("page_link") if link.proto.label == "Build another"]
