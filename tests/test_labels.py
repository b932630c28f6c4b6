"""Labels and scores on planted evidence."""

import pytest

from sae_explore.features.labels import HOLDS, KINDS, Evidence, Label, Scores, commonest, label, lens_score, normal, scores, shown
from sae_explore.features.meaning import Meaning
from sae_explore.features.topic import Topic

EVEN = {"news": 0.25, "code": 0.25, "food": 0.25, "law": 0.25}


def evidence(peaks, before=" x{}", after=" y{}", category=None) -> list[Evidence]:
    """An example for each peak, each in a document of its own; neighbours differ unless said otherwise, categories go round."""
    names, words = list(EVEN), [p.strip().casefold() for p in peaks]
    return [
        Evidence(p, before.format(i), after.format(i), category or names[i % 4], word if word.isalpha() else "", i)
        for i, (p, word) in enumerate(zip(peaks, words, strict=True))
    ]


WORDS = [" river", " seven", " blue", " tax", " Run", " cat", " of", " ment", " up", " then"]  # nothing in common


def named(top, weaker=(), lens_tokens=(), lens=0.0, share=EVEN, **findings) -> tuple[str, str]:
    found = label(top, weaker, share, lens_tokens, lens, **findings)
    assert found.kind in KINDS
    assert 0 <= found.confidence <= 1
    return found.text, found.kind


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        (evidence([" cat", " Cat", "cat", " cats", " cat"]), ("cat", "token")),
        (evidence([" cat"] * 5, before=" the"), ("the cat", "token")),
        (evidence([" York"] * 5, after=" City"), ("york city", "token")),
        (evidence([" cat"] * 5, category="food"), ("cat in food texts", "token")),
        (evidence(["\n"] * 5), ("↵", "token")),
        (evidence([" he", " she", " they", " he", " she", " cat"]), ("he / she / they", "tokens")),
        (evidence([" 1901", " 1750", " 2024", " 1999", " 1066", "1848"]), ("years", "form")),
        (evidence([" 3", "41", " 5,000", ".5", " 77", " 12."]), ("numbers", "form")),
        (evidence(["(", " [", "]", "){", "}:", "<"]), ("brackets", "form")),
        (evidence(['"', " “", "”", "'", "`", "''"]), ("quotation marks", "form")),
        (evidence([",", ".", "!?", ";", " -", "—"]), ("punctuation", "form")),
        (evidence(["\n", "\n\n", ".\n", "\n\n\n", ";\n", ",\n"]), ("line breaks", "form")),
        (evidence([" ", "  ", "\t", "    ", "   ", "\t\t"]), ("white space", "form")),
        (evidence([" NASA", "USA", " EU", " IMF", "GPT", " SAE"]), ("words in capitals", "form")),
        (evidence([" été", "мир", "漢字", " naïve", "שלום", "ß"]), ("non-Latin or accented letters", "form")),
        (evidence(["<0xE2><0x80>", "<0xF0>", "<0x20><0xC3>", "<0x99>", "<0xE6><0xBC>", "<0xA0>"]), ("parts of characters", "form")),
        (evidence(WORDS, before=" Mr"), ("the word after mr", "after")),
        (evidence(WORDS, after=" percent"), ("the word before percent", "before")),
        (evidence([" nation", " national", " nations", " nationally", " native", " nationals"]), ("words that begin with natio-", "form")),
        (evidence(WORDS, category="law"), ("law texts: river, seven, blue", "category")),
        (evidence([" Anna", " Rome", " Bob", " Paris", " Ivan", " Oslo"]), ("capitalised words", "form")),
        (evidence(["ing", "tion", "s", "ly", "ment", "er"], before="{0}x"), ("word continuations", "form")),
        (evidence(["from", "int", "if", "return", "while", "case"], before="{0}\n"), ("mixed: from, int, if", "mixed")),  # on new lines
        (evidence([" grin", " grit", " granny", " grudge", " grey", " sun"]), ("words that begin with gr-", "form")),
        (evidence([" being", " moving", " sailing", " baking", " running", " sun"]), ("words that end in -ing", "form")),
        (evidence(WORDS), ("mixed: river, seven, blue", "mixed")),
    ],
    ids=lambda v: v[0] if isinstance(v[0], str) else "",
)
def test_planted_properties_are_named(top, expected):
    assert named(top) == expected


def test_a_feature_without_examples_is_dead():
    assert label([], [], EVEN, ["a"], 1.0) == Label("never fires on this corpus", "dead", 1.0)


def test_what_the_lens_promotes_is_named_where_it_follows_the_peak():
    """The tokens after the peaks are what the direction writes; the lens must stand out from chance."""
    following = ["river", " lake", " sea", " pond", " creek", " x"]
    top = [Evidence(p, f" b{i}", following[i], c) for i, (p, c) in enumerate(zip(WORDS[1:7], [*EVEN, "news", "law"], strict=True))]
    lens_tokens = [" River", " lake", " sea", " pond", " creek", " water"]
    assert named(top, lens_tokens=lens_tokens, lens=0.95) == ("writes river, lake, sea, pond, creek, water", "lens")
    assert named(top, lens_tokens=lens_tokens, lens=0.5)[1] == "mixed"
    assert named(top[:3] + evidence(WORDS[6:9]), lens_tokens=lens_tokens, lens=0.95)[1] == "mixed"  # too few of them


def test_a_share_below_the_threshold_names_nothing():
    n = 10
    enough, few = int(HOLDS * n), int(HOLDS * n) - 1
    assert named(evidence([" cat"] * enough + WORDS[: n - enough]))[1] == "token"
    assert named(evidence([" zoo"] * (few - 2) + WORDS[: n - few + 2]))[1] != "token"


def test_confidence_is_the_mean_over_strong_and_weaker_examples():
    top, weaker = evidence([" cat"] * 4 + [" dog"]), evidence([" cat", " sun", " ice", " sky"])
    assert label(top, [], EVEN, [], 0.0).confidence == 0.8
    assert label(top, weaker, EVEN, [], 0.0).confidence == round((0.8 + 0.25) / 2, 3)


def test_a_category_counts_only_where_it_is_twice_as_common_as_in_the_corpus():
    half = {"news": 0.5, "code": 0.5}
    assert named(evidence(WORDS, category="news"), share=half)[1] == "category"
    assert named(evidence(WORDS, category="news"), share={"news": 1.0})[1] == "mixed"
    assert scores(evidence(WORDS, category="news"), {"news": 0.6, "code": 0.4}, [], 0.0).category == 0
    assert scores(evidence(WORDS, category="news"), half, [], 0.0).category == 1


def test_scores_worked_by_hand():
    top = [
        Evidence(" cat", " the", " sat", "news", document=1),
        Evidence("Cat", " The", " ran", "news", document=2),
        Evidence(" dog", "", " sat", "news", document=3),  # at the document's beginning
        Evidence(" fox", " a", "", "code", document=4),  # at its end
    ]
    found = scores(top, EVEN, [" SAT", "x", " fox"], 0.7, meaning=Meaning(0.9), topic=Topic(0.3))
    assert found == Scores(token=0.5, before=0.5, after=0.5, category=0.75, lens=0.7, agreement=0.75, meaning=0.9, topic=0.3)
    assert scores([], EVEN, [], 0.0) == Scores(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert commonest(top) == {"token": ("cat", 0.5), "before": ("the", 0.5), "after": ("sat", 0.5), "category": ("news", 0.75)}


def test_few_examples_with_a_neighbour_are_no_property_of_all():
    """Only 2 of 10 peaks have a token before them, the same one: that is no phrase."""
    top = [Evidence(" cat", " the" if i < 2 else "", f" y{i}", "news", document=i) for i in range(10)]
    assert named(top)[0] == "cat in news texts"
    assert scores(top, EVEN, [], 0.0).before == 0.2


def test_a_category_of_one_or_two_documents_is_none():
    top = [Evidence(p, f" b{i}", f" a{i}", "law", document=i % 2) for i, p in enumerate(WORDS)]
    assert named(top)[1] == "mixed"
    assert scores(top, EVEN, [], 0.0).category == 0
    assert named([*top[:-1], Evidence(WORDS[-1], "", "", "law", document=9)])[1] == "category"


ALIKE = Meaning(1.0, ("river", "blue", "sky", "sea"), 0.7, 0.3)


def test_what_the_words_at_the_peaks_have_in_common_is_named():
    assert named(evidence(WORDS), meaning=ALIKE) == ("words like river, blue, sky", "meaning")
    assert named(evidence(WORDS, category="law"), meaning=ALIKE)[0] == "words like river, blue, sky in law texts"
    assert label(evidence(WORDS), evidence(WORDS), EVEN, [], 0.0, meaning=ALIKE).confidence == 0.5
    assert label(evidence(WORDS), [], EVEN, [], 0.0, meaning=ALIKE).confidence == 0.7
    assert named(evidence(WORDS), meaning=ALIKE._replace(score=0.97))[1] == "mixed"
    assert named(evidence(WORDS), meaning=ALIKE._replace(top=0.55))[1] == "mixed"
    assert named(evidence([" cat"] * 10), meaning=ALIKE) == ("cat", "token")


def test_of_beginning_ending_and_meaning_the_one_that_holds_in_most_is_named():
    top = evidence([" barking", " baking", " basking", " bathing", " eating", " sun"])
    assert named(top) == ("words that end in -ing", "form")
    assert named(top, meaning=ALIKE._replace(top=0.8))[0] == "words that end in -ing"
    assert named(top, meaning=ALIKE._replace(top=0.9))[1] == "meaning"


def test_a_topic_is_named_where_nothing_at_the_peaks_is():
    about = Topic(0.8, ("court", "judge", "law"), 10, 0.25)
    assert named(evidence(WORDS, category="law"), topic=about) == ("about court, judge, law", "topic")
    assert label(evidence(WORDS), evidence(WORDS), EVEN, [], 0.0, topic=about).confidence == 0.525
    assert label(evidence(WORDS), [], EVEN, [], 0.0, topic=about).confidence == 0.8
    assert named(evidence(WORDS), topic=about._replace(score=0.5))[1] == "mixed"
    assert named(evidence(WORDS), topic=about, meaning=ALIKE)[1] == "meaning"


def test_only_the_ten_most_promoted_tokens_count():
    lens_tokens = [f" z{i}" for i in range(10)] + [" cat"]
    assert scores(evidence([" cat"]), EVEN, lens_tokens, 0.0).agreement == 0
    assert scores(evidence([" cat"]), EVEN, lens_tokens[1:], 0.0).agreement == 1


def test_lens_score_is_the_share_of_random_directions_below():
    assert lens_score(3.0, [1.0, 2.0, 3.0, 4.0]) == 0.5
    assert lens_score(5.0, [1.0, 2.0]) == 1
    assert lens_score(5.0, []) == 0


def test_tokens_as_they_are_compared_and_written():
    assert [normal(t) for t in (" The", "THE", "\n", " ", "Straße")] == ["the", "the", "\n", " ", "strasse"]
    assert [shown(t) for t in (" the", "\n", "\n\n", " ", "   ", " " * 7, "\t", "a\nb")] == [
        "the",
        "↵",
        "↵↵",
        "␣",
        "␣␣␣",
        "7 spaces",
        "⇥",
        "a↵b",
    ]
