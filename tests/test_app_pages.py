"""All pages but Text open, whatever a bundle's strings are."""

import re

import pytest
from app_driver import open_page, run, select_row, texts_of

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans

pytest_plugins = ["bundle_fixtures"]
DEAD, DENSE = 0, 10  # of the bundle `planted`
HOSTILE = "<script>x</script> **b** [l](javascript:1) :smile: $x$ `c` <b>"


@pytest.mark.parametrize("bundle", ["tiny", "planted"])
@pytest.mark.parametrize("page", ["feature", "browse", "lens", "lists", "quality", "about"])
def test_pages_open_without_a_model(app_cache, page, bundle):
    at = open_page(page, bundle)
    assert at.title[0].value
    assert not at.error
    assert at.query_params["bundle"] in (bundle, [bundle])


# ---- strings from outside ----------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(app_cache, monkeypatch):
    """Labels, tokens and categories that would be markup, formulas or links if anything read them so."""
    import pyarrow as pa

    real = Bundle.__init__

    def init(self, folder):
        real(self, folder)
        for name in ("label", "peak_token", "lens_tokens"):
            at = self.features.column_names.index(name)
            self.features = self.features.set_column(at, name, pa.array([f"{HOSTILE} {i}" for i in range(self.d_sae)]))
        renamed = {c: f"{HOSTILE} {c}" for c in self.manifest["corpus"]["categories"]}
        corpus, metrics = self.manifest["corpus"], self.manifest["metrics"]
        corpus["categories"] = list(renamed.values())
        corpus["category_share"] = {renamed[c]: share for c, share in corpus["category_share"].items()}
        metrics["by_category"] = {renamed[c]: row for c, row in metrics["by_category"].items()}
        corpus["sources"][0]["name"] = corpus["sources"][0]["licence"] = self.manifest["model"]["display"] = HOSTILE
        corpus["notes"] = [HOSTILE]
        self.documents = self.documents.set_column(self.documents.column_names.index("category"), "category",
                                                   pa.array([renamed[c] for c in self.documents["category"].to_pylist()]))  # fmt: skip

    monkeypatch.setattr(Bundle, "__init__", init)
    monkeypatch.setattr(Bundle, "token_texts", lambda self, document, start, stop: (HOSTILE,) * (stop - start))
    monkeypatch.setattr("sae_explore.models.tokens.Vocabulary.text_of", lambda self, token_id: HOSTILE)


@pytest.mark.parametrize("page", ["feature", "browse", "lens", "lists", "quality", "about"])
def test_no_string_from_outside_becomes_markup(hostile, page):
    at = open_page(page, feature="5")
    if page == "browse":
        at = select_row(at, 0)
    bodies = [b.proto.body for b in at.get("html") if "<style>" not in b.proto.body]
    link = r"a class=\"go\" href=\"\./\?[\w%&;=.-]*\" title=\"[\w ,]*\">"
    assert not [b for b in bodies if re.search(rf"<(?!/?(?:div|span)\b|i style=\"width: \d+%\">|/i>|{link}|/a>)", b)]
    for chart in at.get("plotly_chart"):
        assert "<b>" not in chart.proto.spec.replace("<br>", "")
        assert "<script" not in chart.proto.spec
    links = [link.proto.label for link in at.get("page_link")]
    for text in [texts_of(at), *links, *(str(v) for table in at.table for v in [*table.value.index, *table.value.to_numpy().ravel()])]:
        left = text.replace(spans.md(HOSTILE), "")
        assert "<script" not in left
        assert "](javascript" not in left
        assert ":smile:" not in left


def test_the_frame_and_the_choice_are_made_once(tiny):
    bundle = resources.get_bundle("tiny")
    assert resources.get_frame(bundle) is resources.get_frame(bundle)
    assert resources.get_diverse(bundle, 3) == resources.get_diverse(bundle, 4)[:3]


def test_the_feature_page_has_five_charts_and_none_needs_plotly(tiny):
    """A plotly chart would be made anew for each feature that one leafs to: most of what a click cost."""
    at = open_page("feature", feature="5")
    for _ in range(2):
        charts = [name for block in at.get("html") for name in re.findall(r'role="figure" aria-label="([A-Za-z ]+)', block.proto.body)]
        assert charts == ["Share of firings", "Histogram of activations", "Promotes", "Suppresses", "Histogram of folded logits over "]
        assert not at.get("plotly_chart")
        at = run(next(b for b in at.button if b.label == "Next").click())
    assert at.title[0].value == "Feature 7"
