"""Method 2: which vocabulary does a feature write? python -m sae_explore.decoder_analysis

The logit lens on decoder rows (nostalgebraist 2020; for SAE features Bloom & Lin 2024): W_dec[f] through the unembedding, its
strength beside that of random unit directions, and the nearest other features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sae_explore import command_line, methods
from sae_explore.bundles.bundle import Bundle
from sae_explore.features.diverse import LIMIT, cosine_matrix
from sae_explore.json_output import labels_json, lens_json
from sae_explore.terminal import say, shown_token
from sae_explore.types import LensToken

CONVENTIONS = ("folded", "raw")  # what the command prints; pages also offer "cosine"


@dataclass(frozen=True)
class DecoderAnalysis:
    """What a decoder row says."""

    feature: int
    label: str  # automatic
    human_label: str | None
    lens: dict[str, tuple[tuple[LensToken, ...], tuple[LensToken, ...]]]  # convention -> (positive, negative)
    strength: float  # standard deviation over the vocabulary of the folded logits
    strength_ratio: float  # to the mean of random unit directions
    top_logit: dict[str, float]
    random_top_logit: dict[str, float]  # mean of random unit directions, by convention
    neighbours: tuple[tuple[int, float], ...]  # decoder cosine


def decoder_analysis(bundle: Bundle, feature: int) -> DecoderAnalysis:
    """Method 2 on one feature. InputError if there is no such feature."""
    row = bundle.row(bundle.check_feature(feature))
    lens = {convention: bundle.lens_tokens(feature, convention) for convention in CONVENTIONS}
    return DecoderAnalysis(
        feature,
        row["automatic_label"],
        row["human_label"],
        lens,
        row["strength"],
        row["strength_ratio"],
        {c: lens[c][0][0].logit for c in CONVENTIONS},
        {c: bundle.manifest["lens"]["random"]["top_logit"][c] for c in CONVENTIONS},
        bundle.neighbours(feature),
    )


def main(argv: list[str]) -> None:
    """Print the analysis of the chosen features."""
    args = methods.parser("decoder_analysis", "Method 2: which vocabulary does a feature write?").parse_args(argv)
    bundle = methods.bundle_of(args)
    features = methods.chosen_features(bundle, args.features)
    found = [decoder_analysis(bundle, f) for f in features]
    similarity = cosine_matrix(bundle.W_dec[features])
    if args.json:
        command_line.print_json(
            {
                "bundle": bundle.name,
                "explained_variance": bundle.manifest["metrics"]["explained_variance"],
                "features": [_plain(a, args.top) for a in found],
                "cosine": np.round(similarity, 4).tolist(),
            }
        )
        return
    say(methods.headline(bundle))
    random = bundle.manifest["lens"]["random"]
    say(f"random baseline: {random['directions']} unit directions of mean strength {random['strength']:.3f}")
    for a in found:
        say(f"feature {a.feature}: {a.human_label or a.label}", space=True)
        say(f"  direction strength {a.strength:.3f}, {a.strength_ratio:.2f} times a random direction's")
        for convention, (positive, negative) in a.lens.items():
            say(f"  {convention:6} promotes   {_list(positive[: args.top])}")
            say(f"  {'':6} suppresses {_list(negative[: args.top])}")
            say(
                f"  {'':6} strongest logit {a.top_logit[convention]:+.3f}; "
                f"random directions reach {a.random_top_logit[convention]:+.3f} on average"
            )
        say("  nearest features:", ", ".join(f"{f} ({c:.2f}: {bundle.label(f)})" for f, c in a.neighbours[:5]))
    if len(features) > 1:
        say("decoder cosine between these features" + ("" if args.features else f" (chosen so that none reaches {LIMIT})"), space=True)
        for f, row in zip(features, similarity, strict=True):
            say(f"  {f:6} " + " ".join(f"{c:+.3f}" for c in row))


def _list(tokens: tuple[LensToken, ...]) -> str:
    return "  ".join(f"{shown_token(t.token)} {t.logit:+.2f}" for t in tokens)


def _plain(a: DecoderAnalysis, top: int) -> dict:
    return {
        "feature": a.feature,
        **labels_json(a.label, a.human_label),
        "strength": a.strength,
        "strength_ratio": a.strength_ratio,
        "lens": {
            c: {"positive": lens_json(p[:top]), "negative": lens_json(n[:top]), "random_top_logit": a.random_top_logit[c]}
            for c, (p, n) in a.lens.items()
        },
        "neighbours": [{"feature": f, "cosine": round(c, 4)} for f, c in a.neighbours],
    }


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
