"""What the About page says, as plain rows and sentences: sources, advice, how labels are made. No Streamlit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from sae_explore.building.diagnosis import LOW_EXPLAINED_VARIANCE, MANY_DEAD, MANY_MIXED
from sae_explore.wording import architecture_name, percent

MIN_FIRINGS = 10  # of a feature that can be called mixed

LABELS = (
    "No other model is asked: labels come from counting. For each feature the twenty strongest examples (one per window of text, copies "
    "left out) are compared: their peak tokens, the tokens before and after the peak, the form of the peak (a number, a bracket, a "
    "capitalised word), whether the words at the peaks are alike in the model's own unembedding, the words around them, the category of the "
    "text, and the tokens of the logit lens. The label names the most particular property that at "
    "least 60 % of them share; if none is shared, the label is “mixed” and lists the commonest peaks. Confidence is the mean of two shares "
    "for which the label holds: that of the strongest examples and that of examples drawn at random from all firings. A label can be right "
    "about the strongest examples and miss what the feature is for: read the examples."
)

RELATED = (
    "**Activation patching** copies an activation from one run of the model into another and watches the output change; done on features "
    "it tells which of them a behaviour depends on, where this explorer only shows what they go along with. **Steering** adds a feature's "
    "decoder direction to the residual stream (to amplify it) or takes it away (to suppress it) while the model writes, the most direct "
    "test of what a feature does. **Across layers** features connect: SAEs trained at several depths can be compared by the cosine of "
    "their directions and by which features fire together, and transcoders or crosscoders are trained so that one layer's features are "
    "written as sums of an earlier layer's."
)

TROUBLES = """
- **Memory runs out while building.** Use a smaller batch (texts in a forward pass), fewer latents, or fewer training tokens;
  the stages that are finished are kept and the build goes on from there.
- **Features cannot be interpreted.** Train on more text and for more epochs, try another k (a smaller one is sparser), or another
  layer: early layers hold tokens and spelling, middle ones meaning, late ones the next token.
- **No clear pattern in the examples.** A small corpus shows few firings: explore more texts, look at *By strength* and *Random* and not
  only at the strongest examples, and leave dense features aside.
- **The logit lens shows odd tokens.** It reads late layers well and half depth poorly; compare the three conventions, and trust only what
  lies beyond the dashed line.
"""


def mixed_feature(frame: pd.DataFrame, dense_above: float) -> int | None:
    """The least clear feature of kind “mixed” that fires often enough to be judged (ties: one far from dense, the most frequent), or None."""
    count, density = frame["count"].to_numpy(), frame["density"].to_numpy()
    usable = np.flatnonzero((frame["kind"] == "mixed").to_numpy() & (count >= MIN_FIRINGS) & (density <= dense_above))
    if not len(usable):
        return None
    order = np.lexsort((-count[usable], density[usable] > dense_above / 10, frame["confidence"].to_numpy()[usable]))
    return int(usable[order[0]])


def origin_rows(manifest: dict, *, named: Callable[[str], str] = str) -> list[tuple[str, str, str]]:
    """(part, what, licence) of model and SAE; `named` may shorten where they came from."""
    model, sae = manifest["model"], manifest["sae"]
    k = f", k = {sae['k']}" if sae["k"] else ""
    notes = "".join(f"; {note}" for note in sae["notes"])
    trained = sae["source"] == "trained here"
    return [
        ("Model", f"{model['display']}: {named(model['spec'])}{_revision(model)}", model["licence"]),
        ("Where", f"{manifest['hook']} of {model['n_layers']} blocks, windows of {manifest['context']} tokens", ""),
        (
            "SAE",
            f"{architecture_name(sae['architecture'])}, {sae['d_sae']:,} features{k}, {named(sae['source'])}{_revision(sae)}{notes}",
            "as this program" if trained else "as its source states",
        ),
    ]


def _revision(part: dict) -> str:
    """Which version of a model or an SAE it is; nothing where none is recorded."""
    return f", revision {part['revision'][:12]}" if part.get("revision") else ""


def source_rows(sources: list[dict]) -> list[tuple[str, str, str, str]]:
    """(name, texts, licence, version) of texts: a data set's commit or a file's sha256 says which version."""
    return [
        (s["name"], f"{s['texts']:,}", s["licence"] or "not stated", (s["revision"] or s["sha256"])[:12] or "not recorded") for s in sources
    ]


def all_well(manifest: dict) -> str:
    """A sentence for an SAE of which nothing was noticed, with the figures and their limits."""
    m, kinds = manifest["metrics"], manifest["features"]["kinds"]
    live = max(m["latents"] - m["dead"], 1)
    return (
        f"Nothing to report: explained variance {m['explained_variance']:.2f} (a warning comes below {LOW_EXPLAINED_VARIANCE}), "
        f"{percent(m['dead'] / m['latents'])} of the features dead (above {percent(MANY_DEAD)}), "
        f"{percent(kinds.get('mixed', 0) / live)} of the live ones without a clear pattern (above {percent(MANY_MIXED)})."
    )
