"""Tokens as HTML and as markdown: nothing from outside becomes markup, nothing that can be seen is lost."""

import html
import math
import re
import string
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_explore.drawing import spans
from sae_explore.types import Example

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=1>',
    "</span></div>",
    "&lt;b&gt;",
    "a\tb\nc\r",
    "' onclick='x",
    "\u202eevil",
    "\x00\x1b[0m",
]
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=12), st.text(alphabet="<>&\"'`/ \n\t=ab\u200b\u2066", max_size=12))
ALLOWED = {"span": {"class", "title"}, "div": {"class"}, "a": {"class", "title", "href"}}


class Parsed(HTMLParser):
    """What a browser would see: elements, and the text outside of drawn marks."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.elements, self.stack, self.text, self.marks = [], [], "", []
        self.feed(source)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.stack.append(dict(attrs).get("class", ""))

    def handle_endtag(self, tag):
        self.stack.pop()

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("nl", "by"):
            self.marks.append(data)
        else:
            self.text += data


def readable(token: str) -> str:
    """What of a token is drawn as it stands: unseen characters and lone spaces are marks, and \\r only a mark."""
    if not token.strip(" "):
        return ""
    unseen = {*range(0x20), *range(0x7F, 0xA0), 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2060, 0x2065),
              *range(0x2066, 0x206A), 0xFEFF, *range(0xD800, 0xE000)} - {9, 10}  # fmt: skip
    return "".join(c for c in token if ord(c) not in unseen)


@given(st.lists(TEXTS, max_size=6), st.data())
def test_no_token_becomes_markup_and_the_visible_text_stays(tokens, data):
    n = len(tokens)
    values = np.asarray(data.draw(st.lists(st.floats(0, 40), min_size=n, max_size=n)), np.float32)
    ignored = np.asarray(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    found = Parsed(spans.run_html(tokens, values, ignored, 30.0, feature=3))
    assert len([e for e in found.elements if "t" in e[1]["class"].split()]) == n
    for tag, attrs in found.elements:
        assert set(attrs) <= ALLOWED[tag]
    assert found.text == "".join(map(readable, tokens))


@given(TEXTS)
def test_every_unseen_character_is_drawn_as_a_mark(token):
    found = Parsed(f"<div>{spans.visible(token)}</div>")
    expected = [{"\n": "↵", "\r": "␍", "\t": "⇥"}.get(c, f"U+{ord(c):04X}") for c in token if c in "\n\t" or c not in readable(token)]
    assert found.marks == (["·" * len(token)] if token and not token.strip(" ") else expected)


@given(TEXTS)
def test_plain_is_one_line_without_unseen_characters(token):
    shown = spans.plain(token)
    assert readable(shown).replace("\n", "") == shown
    assert "\t" not in shown


@given(TEXTS)
def test_chips_and_examples_escape_everything(token):
    example = Example(0, token, token, token, 5, 5, "top", None, (token, "x"), np.asarray([2.0, 0.0]), np.asarray([False, True]))
    for source in (spans.chips_html([token]), spans.examples_html([example], 2.0, feature=1), spans.legend_html([(token, token, 3)])):
        for tag, attrs in Parsed(source).elements:
            assert set(attrs) <= ALLOWED[tag]


@given(TEXTS, TEXTS)
def test_an_example_ends_with_a_link_and_its_tooltips_say_where_it_stands(token, name):
    example = Example(0, name, "s", "arts", 3, 4, "top", None, ("a", token), np.ones(2), np.zeros(2, bool))
    found = Parsed(spans.examples_html([example], 2.0, feature=1, address=lambda e: f"./?doc={e.document_id}"))
    assert all(set(attributes) <= ALLOWED[tag] for tag, attributes in found.elements)
    (link,) = [attributes for tag, attributes in found.elements if tag == "a"]
    assert link["href"] == f"./?doc={name}"
    tips = [a["title"] for tag, a in found.elements if a.get("class", "").startswith("t ")]
    assert [tip.rsplit("\n", 1)[1] for tip in tips] == [spans.plain(f"{name} (arts)")] * 2
    assert tips[0].startswith("token 3: a, feature 1 at 1.00")
    assert tips[1].startswith("token 4: ")


def test_line_breaks_are_marks_unless_asked_for():
    tokens, values, ignored = ["a\n\n", "\tb"], np.ones(2), np.zeros(2, bool)
    broken, running = (Parsed(spans.run_html(tokens, values, ignored, 1.0, breaks=breaks)) for breaks in (True, False))
    assert (broken.text, running.text) == ("a\n\n\tb", "a   b")
    assert broken.marks == running.marks == ["↵", "↵", "⇥"]


def test_running_text_keeps_its_lines_and_shows_what_cannot_be_seen():
    source = spans.prose_html("<b>a</b>\n", "x & \u202ey\ttail")
    assert source == '<div class="sx prose"><span class="given">&lt;b&gt;a&lt;/b&gt;\n</span>x &amp; U+202Ey\ttail</div>'


def test_incomplete_bytes_are_drawn_in_hex_where_a_token_has_no_text():
    source = spans.token_spans(["", "é"], np.zeros(2), np.zeros(2, bool), 1.0, data=[b"\xc3", b"\xa9"])
    assert Parsed(f"<div>{source}</div>").marks == ["C3"]
    assert 'title="token 0: C3"' in source


def test_tooltips_say_position_value_and_ignored():
    source = spans.token_spans([" a", "b", "c"], np.asarray([3.0, 0, 0]), np.asarray([False, False, True]), 4.0, start=7, feature=12)
    titles = [attrs["title"] for tag, attrs in Parsed(f"<div>{source}</div>").elements if "title" in attrs]
    assert titles == [
        "token 7:  a, feature 12 at 3.00",
        "token 8: b, feature 12 silent",
        "token 9: c (ignored: special token or attention sink)",
    ]


def test_an_ignored_token_has_no_colour_and_a_peak_is_marked():
    elements = Parsed(spans.run_html(["a", "b"], np.asarray([9.0, 9.0]), np.asarray([True, False]), 9.0, peak=1)).elements
    assert [attrs["class"] for tag, attrs in elements if tag == "span"] == ["t ig", "t a10 pk"]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0), (2.0, 1.0), (0.5, 0.05 + 0.95 * math.log10(5.5)), (math.nan, 0.0)])
def test_strength_by_hand(share, expected):
    assert spans.strength(share * 8, 8.0) == pytest.approx(expected)


@given(st.floats(0, 100), st.floats(0, 100))
def test_colour_steps_rise_with_the_value_and_only_silence_is_step_0(a, b):
    low, high = sorted((a, b))
    assert spans.step_of(low, 50.0) <= spans.step_of(high, 50.0) <= spans.STEPS
    assert (spans.step_of(low, 50.0) == 0) == (low == 0)


def test_without_a_maximum_nothing_is_coloured():
    assert spans.step_of(3.0, 0.0) == 0


def test_leading_space_and_lone_spaces_are_dots():
    assert [spans.dotted(t) for t in (" cat", "   ", "cat", " \n", "")] == ["·cat", "···", "cat", "·↵", ""]
    assert spans.dotted("", b"\xf0\x9f") == "F0 9F"


def test_the_bands_of_the_legend_have_the_colour_of_their_middle():
    found = Parsed(spans.bands_html())
    bands = [attrs["class"] for _, attrs in found.elements if "band" in attrs["class"]]
    steps = [math.ceil(10 * (0.05 + 0.95 * math.log10(1 + 9 * share))) for share in (0.025, 0.15, 0.375, 1.0)]
    assert bands == [f"band a{step}" for step in steps]
    assert found.text == "traceunder 5%weakunder 25%moderateunder 50%strongfrom 50% of its maximum"


@given(st.text(alphabet="abz:_*[]()$`~<>-!|@.#w \\{}&+", max_size=20))
def test_markdown_keeps_every_character_behind_a_backslash(text):
    shown = spans.md(text)
    assert html.unescape(shown.replace("\u2060", "")) == "".join(f"\\{c}" if c in string.punctuation else c for c in spans.plain(text))


def test_markdown_breaks_what_streamlit_replaces_after_parsing():
    assert ":\u2060" in spans.md(":smile:")
    assert "\u2060" in spans.md("a -> b")
    assert "www\u2060" in spans.md("www.example.com")


def test_the_style_has_a_class_for_every_step():
    assert all(f".sx .a{i} {{" in spans.STYLE for i in range(1, spans.STEPS + 1))


def test_the_space_before_a_coloured_token_stays_uncoloured():
    """Where a line ends after it, its colour would hang there by itself."""
    tokens = [" cat", "s", "  x", " ", "\n y"]
    source = spans.token_spans(tokens, np.ones(5), np.zeros(5, bool), 1.0)
    assert re.findall(r"(\s*)<span class=.t [^>]*>(\s*)", source) == [(" ", ""), ("", ""), ("", "  "), ("", ""), ("", "")]


def test_a_long_token_in_a_box_loses_its_middle_and_its_tooltip_has_it():
    found = Parsed(spans.chips_html(["-" * 60, "-" * 30]))
    assert found.text == "-" * 24 + "…" + "-" * 5 + "-" * 30
    assert [attrs.get("title") for _, attrs in found.elements] == [None, "-" * 60, None]


def test_what_is_written_from_right_to_left_turns_nothing_around_it():
    assert spans.md("שלום 5") == "\u2068שלום 5\u2069"
    assert spans.md("hello 5") == "hello 5"


@given(TEXTS)
def test_figures_scores_and_long_chips_escape_everything(text):
    facts = Parsed(spans.facts_html([(text, text, text, text)]))
    assert [(tag, set(attrs)) for tag, attrs in facts.elements] == [("div", {"class"})] * 2 + [("div", set())] + [("div", {"class"})] * 3
    assert facts.text == text * 4
    (block, name, bar, level, number, words) = Parsed(spans.scores_html([(text, text, 0.5, text)])).elements
    assert [tag for tag, _ in (block, name, bar, level, number, words)] == ["div", "div", "div", "i", "div", "div"]
    assert name[1] == {"class": "s", "title": text}
    assert set(block[1]) == set(bar[1]) == set(number[1]) == set(words[1]) == {"class"}
    long = f"{text}{'x' * 200}{text}"
    chip, shown = Parsed(spans.chips_html([long])), spans.dotted(long)
    for tag, attrs in chip.elements:
        assert set(attrs) <= ALLOWED[tag]
        assert attrs.get("title", shown) == shown
    assert chip.text.endswith(f"…{shown[-5:]}")
    assert shown.startswith(chip.text[:-6])


def test_the_peak_of_an_example_is_marked_where_it_stands():
    values, ignored = np.asarray([1.0, 4.0, 2.0]), np.zeros(3, bool)
    for peak, expected in ((7, "a"), (8, "b"), (9, "c")):
        example = Example(0, "d", "s", "arts", 7, peak, "top", None, ("a", "b", "c"), values, ignored)
        elements = Parsed(spans.examples_html([example], 4.0, feature=1)).elements
        marked = [attrs["title"].split("\n")[0] for _, attrs in elements if "pk" in attrs.get("class", "").split()]
        assert marked == [f"token {peak}: {expected}, feature 1 at {values[peak - 7]:.2f}"]
