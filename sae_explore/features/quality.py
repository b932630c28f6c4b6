"""How far an SAE can be trusted, from what a bundle holds: the build's figures as rows with their definitions, and what one pass over the
store and the decoder adds. No Streamlit, no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sae_explore.bundles.bundle import Bundle
from sae_explore.wording import percent

RARE = 10  # firings below which a feature's maximum and label say little
_TOKENS = 1_000_000  # of the store looked at at once
NEAR = 0.9  # cosine from which two features say the same


@dataclass(frozen=True)
class StoreQuality:
    """What a pass over the store and the decoder says."""

    tokens: int  # counted, over which the rest is taken
    l0: np.ndarray  # (most + 1,) tokens on which so many features are active
    density: np.ndarray  # (d_sae,) share of the counted tokens
    dead: int  # features without a firing
    rare: int  # live features with fewer than RARE firings
    norms: np.ndarray  # (d_sae,) lengths of the decoder rows
    nearest: np.ndarray  # (d_sae,) largest cosine of a decoder row with another one

    @property
    def mean_l0(self) -> float:
        return float(self.l0 @ np.arange(len(self.l0))) / max(self.tokens, 1)

    def l0_quantile(self, share: float) -> int:
        """The smallest number of active features that at least this share of the tokens does not exceed."""
        return int(np.searchsorted(np.cumsum(self.l0), share * self.tokens))


def store_quality(bundle: Bundle) -> StoreQuality:
    """One pass over the offsets of the store, a million tokens at a time; everything else is in the features' table."""
    l0 = np.zeros(1, np.int64)
    for a in range(0, bundle.store.n_tokens, _TOKENS):
        active = np.diff(bundle.store.token_offsets[a : a + _TOKENS + 1])[~np.asarray(bundle.ignored[a : a + _TOKENS], bool)]
        found = np.bincount(active, minlength=len(l0))
        found[: len(l0)] += l0
        l0 = found
    count = bundle.features["count"].to_numpy()
    cosines = np.asarray(bundle.arrays["decoder_cosines"])
    return StoreQuality(
        tokens=int(l0.sum()),
        l0=l0,
        density=bundle.features["density"].to_numpy(),
        dead=int((count == 0).sum()),
        rare=int(((count > 0) & (count < RARE)).sum()),
        norms=bundle.features["decoder_norm"].to_numpy(),
        nearest=cosines[:, 0].astype(np.float64) if cosines.shape[1] else np.zeros(0),
    )


def nearest_by_chance(edges: np.ndarray, *, n: int, dimensions: int) -> np.ndarray:
    """(len(edges) - 1,) of `n` random directions, how many are expected to have their nearest one at a cosine between two edges.

    Exact: the cosine of a given direction with a random one has the density (1 - c²)^((d - 3) / 2), and those with the n - 1 others are
    independent, so that the largest lies below c with probability F(c)^(n - 1).
    """
    grid = np.linspace(-1, 1, 40_001)
    middle = (grid[:-1] + grid[1:]) / 2
    mass = np.exp((dimensions - 3) / 2 * np.log1p(-(middle**2)))
    above = np.append(np.cumsum(mass[::-1])[::-1], 0.0) / mass.sum()  # of each point of the grid; exact in the tail that matters
    with np.errstate(divide="ignore"):
        below = np.exp((n - 1) * np.log1p(-np.minimum(above, 1.0)))
    return n * np.diff(np.interp(edges, grid, below))


def mean_by_chance(*, n: int, dimensions: int) -> float:
    """The mean cosine of a random direction with the nearest one of n - 1 others."""
    edges = np.linspace(-1, 1, 4_001)
    counts = nearest_by_chance(edges, n=n, dimensions=dimensions)
    return float(counts @ (edges[:-1] + edges[1:]) / 2 / n)


# ---- figures of the build ----------------------------------------------------------------------------------------------

Row = tuple[str, str, str, str]
"""(figure, value, definition in a sentence, measured on)."""


def held_out_words(manifest: dict) -> str:
    """Whether the figures are in-sample or held out, in a sentence."""
    m = manifest["metrics"]
    return f"{m['tokens_eval']:,} tokens: {m['evaluated_on']}."


def variance_rows(manifest: dict) -> list[Row]:
    """Explained variance on the evaluated texts, on training texts, and on held-out texts of the training sources."""
    m, train = manifest["metrics"], manifest["train"]
    said = (
        "1 − Σ|x − x̂|² / Σ|x − mean(x)|², both sums over all these tokens: the share of the residual stream's spread that the SAE rebuilds."
    )
    rows = [(f"Explained variance, {_set_name(m)}", number(m["explained_variance"]), said, held_out_words(manifest).rstrip("."))]
    if held := m.get("held_out_of_training_sources"):
        rows.append(
            (
                "Explained variance, training sources held out",
                number(held["explained_variance"]),
                "The same on texts of the sources that it was trained on, kept out of training (sha256 of the text mod 50 = 0).",
                f"{held['tokens']:,} held-out tokens",
            )
        )
    if train:
        rows.append(
            (
                "Explained variance, training tokens (in-sample)",
                number(m["explained_variance_train"]),
                "The same on tokens that it was trained on; much more than held out would mean learning by heart.",
                f"{train['tokens_evaluated']:,} of {train['tokens']:,} training tokens",
            )
        )
    return rows


def _set_name(m: dict) -> str:
    """Of the evaluated texts, in a word or two."""
    if m["evaluated_set"] == "held_out":
        return "held out"
    if m["evaluated_on"].startswith("in-sample"):
        return "in-sample"
    return "unseen texts" if "none was trained on" in m["evaluated_on"] else "these texts"


def loss_rows(manifest: dict) -> list[Row]:
    """What the reconstruction costs the model's predictions."""
    m = manifest["metrics"]
    on = f"{m['tokens_ce']:,} predictions"
    return [
        (
            "Increase of the loss",
            f"{m['ce_increase']:+.3f} nats",
            "Loss with the SAE minus clean loss: what the model loses when it goes on from the reconstruction. The plainest of these figures.",
            on,
        ),
        (
            "Recovered, against mean ablation",
            share(m["ce_recovered_mean"]),
            "(mean-ablated − with SAE) / (mean-ablated − clean): 100\u00a0% is as good as clean, 0\u00a0% no better than the average residual.",
            on,
        ),
        (
            "Recovered, against zero ablation",
            share(m["ce_recovered"]),
            "(zero-ablated − with SAE) / (zero-ablated − clean). It flatters, because zeros break the model: compare it with other SAEs only.",
            on,
        ),
    ]


LOSSES = (
    ("clean", "Clean", "the model as it is"),
    ("sae", "With the SAE", "the reconstruction in place of the residual stream"),
    ("mean", "Mean-ablated", "the average residual in its place, the same at every token"),
    ("zero", "Zero-ablated", "zeros in its place"),
)
"""(key, name, what stands in place of the residual stream) of the four cross entropies."""


def sparsity_rows(manifest: dict, found: StoreQuality) -> list[Row]:
    """L0, dead and rare features."""
    on, d_sae = f"{found.tokens:,} tokens, all texts", len(found.density)
    l0, dense = found.mean_l0, manifest["features"]
    return [
        (
            "L0",
            f"{l0:.1f}",
            f"Mean number of active features on a token, of {d_sae:,}: {percent(l0 / d_sae)} of the dictionary.",
            on,
        ),
        ("Dead features", f"{found.dead:,} ({percent(found.dead / d_sae)})", "Features that fire on none of these tokens.", on),
        (
            "Rare features",
            f"{found.rare:,} ({percent(found.rare / d_sae)})",
            f"Features that fire on 1 to {RARE - 1} of these tokens: too few to judge them by.",
            on,
        ),
        (
            "Dense features",
            f"{dense['dense']:,} ({percent(dense['dense'] / d_sae)})",
            f"Features that fire on more than {percent(dense['dense_above'])} of these tokens: they say little about any one of them.",
            on,
        ),
    ]


def category_rows(by_category: dict[str, dict]) -> pd.DataFrame:
    """The figures by category of text; NaN where a category had no prediction to judge, or no losses were measured."""
    return pd.DataFrame(
        [
            {
                "Category": name,
                "Tokens": row["tokens"],
                "Explained variance": row["explained_variance"],
                "L0": row["l0"],
                "Clean": row.get("ce_clean", math.nan),
                "With the SAE": row.get("ce_sae", math.nan),
                "Increase": row.get("ce_sae", math.nan) - row.get("ce_clean", math.nan),
                "Mean-ablated": row.get("ce_mean", math.nan),
                "Zero-ablated": row.get("ce_zero", math.nan),
                "Recovered (mean)": 100 * row.get("ce_recovered_mean", math.nan),
                "Recovered (zero)": 100 * row.get("ce_recovered", math.nan),
            }
            for name, row in sorted(by_category.items())
        ]
    )


def number(value: float | None) -> str:
    return "not measured" if value is None or not math.isfinite(value) else f"{value:.3f}"


def share(value: float) -> str:
    return f"{value * 100:.1f}\u00a0%" if math.isfinite(value) else "not defined"
