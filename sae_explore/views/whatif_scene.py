"""What the tools of the page What if share: a piece of a text with features to change, and what they say about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import streamlit as st

from sae_explore import public_mode, resources
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.drawing.spans import md
from sae_explore.errors import ExploreError
from sae_explore.models.windows import windows_of
from sae_explore.resources import Piece
from sae_explore.types import TextTrace
from sae_explore.whatif import edits
from sae_explore.wording import count_of, percent, sentence


@dataclass(frozen=True)
class Scene:
    """What the page is about: a piece of a text, and features to change."""

    bundle: Bundle
    piece: Piece
    trace: TextTrace  # of the whole text
    features: tuple[int, ...]  # the chosen one first
    id: str  # differs between pieces

    @property
    def part(self) -> slice:
        return slice(self.piece.start, self.piece.stop)

    def __len__(self) -> int:
        return self.piece.stop - self.piece.start

    @property
    def names(self) -> list[str]:
        """The piece's tokens for people."""
        tokens = self.trace.tokens
        return [spans.dotted(t, b) for t, b in zip(tokens.texts[self.part], tokens.bytes[self.part], strict=True)]

    @property
    def ignored(self) -> np.ndarray:
        return self.trace.ignored[self.part]

    def column(self, feature: int) -> np.ndarray:
        """(n,) the feature's activations on the piece."""
        return self.trace.rows.column(feature)[self.part]

    @property
    def peak(self) -> int:
        """Where the chosen feature is strongest, or the last token that counts."""
        column = self.column(self.features[0])
        counted = np.flatnonzero(~self.ignored)
        return int(column.argmax()) if column.any() else int(counted[-1]) if len(counted) else len(self) - 1

    @property
    def token(self) -> int | None:
        """The clicked token."""
        where, position = st.session_state.get("_whatif_token", (None, 0))
        return position if where == self.id and 0 <= position < len(self) else None


def piece_of(bundle: Bundle, trace: TextTrace, focus: int) -> Piece:
    """The stretch of a text that is worked on: all of a short one, else the window in which the store reads the token `focus`."""
    limit = min(edits.MAX_TOKENS, bundle.manifest["context"]) - int(bundle.manifest["bos"])
    window = next(w for w in windows_of(len(trace.tokens), limit) if focus < w.stop)
    return Piece(trace.text, window.start, window.stop)


def unit_of(bundle: Bundle, feature: int) -> float:
    """The feature's maximum on the corpus; for one that never fires there the middle of all maxima."""
    maxima = np.asarray(bundle.maxima)
    return float(maxima[feature] if maxima[feature] > 0 else np.median(maxima[maxima > 0]) if (maxima > 0).any() else 1.0)


def fires_here(scene: Scene) -> str:
    """How the chosen feature does on the piece: markdown."""
    feature, column = scene.features[0], scene.column(scene.features[0])
    if not column.any():
        return f"Feature {feature} is silent on this text."
    maximum = float(scene.bundle.maxima[feature])
    share = f", {percent(float(column.max()) / maximum)} of its maximum" if maximum > 0 else ""
    peak = md(scene.names[int(column.argmax())])
    return f"Feature {feature} fires on {count_of(int((column > 0).sum()), 'token')} here, most on “{peak}”: {column.max():.2f}{share}."


def _strongest_text(bundle: Bundle, feature: int) -> None:
    """Open the text on which the feature is strongest."""
    found = bundle.top_examples(feature, 1)
    st.session_state["document"], st.session_state["text"] = found[0].document_id, None


def silent(scene: Scene, can: str) -> None:
    """Nothing to change, what can be done instead, and a text on which there is."""
    st.info(f"{fires_here(scene)} {can}", icon=":material/volume_off:")
    if scene.bundle.top_examples(scene.features[0], 1):
        st.button(
            "Take the text on which it fires most strongly",
            icon=":material/arrow_forward:",
            on_click=_strongest_text,
            args=(scene.bundle, scene.features[0]),
        )


def refuse(error: ExploreError, place=st) -> None:
    """What cannot be done, and why, in one sentence."""
    place.error(md(sentence(public_mode.shown(error))), icon=":material/error:")


def cost(scene: Scene, said: str, seconds: float | None, limits: str) -> None:
    """What it took, and what it cannot tell."""
    lab = resources.get_lab(scene.bundle)
    took = "" if seconds is None else f" It took {seconds:.1f} s."
    st.caption(
        f"Cost: {said}{took} The whole model takes {lab.megabytes:,} MB, once for all visitors.",
        help=limits,
    )
