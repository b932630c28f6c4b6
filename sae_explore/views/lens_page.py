"""Lens: what vocabulary do features write? Promoted tokens side by side, similarity of directions, strength beside chance."""

from __future__ import annotations

import re

import numpy as np
import streamlit as st

from sae_explore import resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import figures, spans
from sae_explore.drawing.spans import md
from sae_explore.features.diverse import LIMIT, cosine_matrix
from sae_explore.views import addresses
from sae_explore.views.feature_sections import convention_choice, lens_baseline

MOST = 8  # features side by side
_DIVERSE = 4
_TOKENS = 10
_NUMBERS = "_lens_numbers"  # key of the text box
_CHOSEN = "lens_features"


def render(bundle: Bundle) -> None:
    """The page."""
    features = _features(bundle)
    addresses.write_link(bundle, features=features)
    st.title("Lens", anchor=False)
    st.markdown(
        "Which words does a feature make more likely? The **logit lens** reads what it adds to the model's state as if that went straight "
        "to the output. Trust what reaches beyond the dashed line: chance gives the rest.",
        help="It reads the feature's decoder direction through the model's unembedding. Late layers write almost directly; what earlier ones "
        "write is changed on the way, so there the list is a hint.",
    )
    _choice(bundle)
    if not features:
        st.info("No feature is chosen: type the numbers of some, or take diverse ones.", icon=":material/search_insights:")
        return
    convention = convention_choice(bundle)
    _bars(bundle, features, convention)
    left, right = st.columns(2, gap="large")
    with left:
        _similarity(bundle, features)
    with right:
        _strength(bundle, features)


# ---- which features ----------------------------------------------------------------------------------------------------


def parse_numbers(text: str, d_sae: int, *, most: int = MOST) -> tuple[list[int], list[str]]:
    """(features, problems): numbers in a text, each once and at most so many; what is no feature is named in a sentence."""
    features, problems = [], []
    for word in re.split(r"[\s,;]+", text.strip()):
        if not word:
            continue
        if not (word.isascii() and word.isdigit() and len(word) <= 9):
            problems.append(f"“{word[:40]}” is no feature number.")
        elif int(word) >= d_sae:
            problems.append(f"There is no feature {int(word)}: this bundle has features 0 to {d_sae - 1:,}.")
        elif int(word) not in features:
            features.append(int(word))
    if len(features) > most:
        problems.append(f"At most {most} features fit here; taking the first {most}.")
    return features[:most], problems


def _features(bundle: Bundle) -> list[int]:
    """The chosen ones, or some to start with."""
    chosen = st.session_state.get(_CHOSEN)
    if chosen is None:
        chosen = _telling(bundle) or resources.get_diverse(bundle, _DIVERSE)
    features, problems = parse_numbers(" ".join(map(str, chosen)), bundle.d_sae)
    st.session_state[_CHOSEN] = features
    for problem in [*st.session_state.pop("_lens_problems", ()), *problems]:
        st.warning(md(problem), icon=":material/error:")
    return features


def _telling(bundle: Bundle) -> list[int]:
    """Of the features that a person checked those whose lens says most, each of another theme; none if there are none."""
    scores = np.nan_to_num(resources.get_frame(bundle)["score_lens"].to_numpy())
    best: dict[str, int] = {}
    for start in resources.get_starts(bundle):
        if start.checked and scores[start.feature] > scores[best.setdefault(start.theme, start.feature)]:
            best[start.theme] = start.feature
    return sorted(best.values(), key=lambda feature: -scores[feature])[:_DIVERSE]


def _typed(bundle: Bundle) -> None:
    st.session_state[_CHOSEN], st.session_state["_lens_problems"] = parse_numbers(st.session_state[_NUMBERS] or "", bundle.d_sae)


def _take_diverse(bundle: Bundle) -> None:
    st.session_state[_CHOSEN] = resources.get_diverse(bundle, _DIVERSE)


def _choice(bundle: Bundle) -> None:
    st.session_state[_NUMBERS] = ", ".join(map(str, st.session_state[_CHOSEN]))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            "Features",
            key=_NUMBERS,
            on_change=_typed,
            args=(bundle,),
            placeholder="numbers, as in 12, 340, 7",
            width=340,
            help=f"Numbers of up to {MOST} features, with commas or spaces between them.",
        )
        st.button(
            "Diverse features",
            icon=":material/shuffle:",
            on_click=_take_diverse,
            args=(bundle,),
            help=f"{_DIVERSE} features with clear labels that are not too common, and whose directions differ (|cosine| below {LIMIT}).",
        )


# ---- what they write ---------------------------------------------------------------------------------------------------


def _bars(bundle: Bundle, features: list[int], convention: str) -> None:
    """A chart a feature, all on one scale."""
    lists = [bundle.lens_tokens(f, convention)[0][:_TOKENS] for f in features]
    rows = [bundle.row(f) for f in features]
    baselines = [lens_baseline(bundle, convention, row) for row in rows]
    end = max([*(t.logit for tokens in lists for t in tokens), *baselines])
    per_row = {1: 1, 2: 2, 4: 2}.get(len(features), 3)
    for start in range(0, len(features), per_row):
        columns = st.columns(per_row, gap="medium")
        for column, feature, row, tokens, baseline in zip(columns, *(x[start:] for x in (features, rows, lists, baselines)), strict=False):
            with column:
                addresses.feature_link(bundle, feature, f"Feature {feature}: {md(row['label'])}")
                st.plotly_chart(
                    figures.lens_bars(tokens, baseline=baseline, end=end),
                    config=figures.CONFIG,
                    key=f"bars_{feature}",
                    alt=f"Feature {feature} promotes: {', '.join(spans.plain(t.token) for t in tokens)}",
                )


def _similarity(bundle: Bundle, features: list[int]) -> None:
    st.subheader("Do they point the same way?", anchor=False, help="Cosine of decoder directions: 1 the same, 0 unrelated, -1 opposite.")
    if len(features) < 2:
        st.caption("Choose two features or more to compare their directions.")
        return
    matrix = cosine_matrix(bundle.W_dec[features])
    st.plotly_chart(
        figures.similarity_heatmap(matrix, [str(f) for f in features]),
        config=figures.CONFIG,
        key="similarity",
        alt="Decoder cosines between the chosen features",
    )
    largest = np.abs(matrix - np.eye(len(features))).max()
    st.caption(
        f"Largest |cosine| between two of them: {largest:.2f}. Two random directions in {bundle.manifest['sae']['d_in']} dimensions "
        f"have about {1 / bundle.manifest['sae']['d_in'] ** 0.5:.2f}."
    )


def _strength(bundle: Bundle, features: list[int]) -> None:
    random = bundle.manifest["lens"]["random"]
    st.subheader(
        "How far do they reach?",
        anchor=False,
        help="Direction strength: the standard deviation of the folded lens logits over the vocabulary.",
    )
    strengths = bundle.features["strength"].to_numpy()[features]
    st.plotly_chart(
        figures.strength_bars([str(f) for f in features], strengths, baseline=random["strength"]),
        config=figures.CONFIG,
        key="strengths",
        alt="Direction strength: " + ", ".join(f"feature {f} {s:.3f}" for f, s in zip(features, strengths, strict=True)),
    )
    st.caption(
        f"Direction strength: how much the feature's logits spread over the vocabulary. Dashed line: mean of {random['directions']} random "
        f"unit directions, {random['strength']:.3f}. A feature at the line writes no more vocabulary than chance."
    )
