"""What may be wrong with a trained SAE, said with its figures and with what to try."""

from __future__ import annotations

import math

LOW_EXPLAINED_VARIANCE = 0.5
MANY_DEAD = 0.2
MANY_MIXED = 0.6
_BATCH_K = 1.5  # times k: a BatchTopK SAE has k active latents on average over its own training texts


def warnings_for(*, explained_variance: float, tokens_train: int | None, latents: int, k: int | None, dead: int, counted_tokens: int,
                 kinds: dict[str, int], l0: float, architecture: str = "topk", d_in: int | None = None) -> list[str]:  # fmt: skip
    """Sentences; none where all is well. `kinds` counts the automatic labels by kind."""
    found = []
    trained = f"trained on {tokens_train:,} tokens" if tokens_train else "not trained here"
    if math.isnan(explained_variance):
        found.append("explained variance could not be measured on so few tokens: give more texts")
    if explained_variance < LOW_EXPLAINED_VARIANCE:
        found.append(
            f"explained variance is {explained_variance:.2f}, below {LOW_EXPLAINED_VARIANCE} ({latents:,} latents, k {k}, {trained}): "
            "try more texts, more --epochs, a larger --k or more --latents; of a given SAE, check that model, hook and centring are its own"
        )
    if dead > MANY_DEAD * latents:
        found.append(
            f"{dead:,} of {latents:,} latents ({dead / latents:.0%}) never fire on the {counted_tokens:,} tokens explored: "
            "try fewer --latents, more training tokens, or more texts to explore"
        )
    live = max(latents - dead, 1)
    if kinds.get("mixed", 0) > MANY_MIXED * live:
        found.append(
            f"{kinds['mixed'] / live:.0%} of the live features show no clear pattern in their strongest examples: "
            "try more training tokens, more --epochs, a smaller --k, or a later layer (--hook)"
        )
    if k and l0 > k * (_BATCH_K if architecture == "batchtopk" else 1.001):
        found.append(f"{l0:.1f} latents are active on a token, more than k = {k}: the SAE's files do not fit its configuration")
    if not k and d_in and l0 > d_in:
        found.append(
            f"{l0:,.0f} latents are active on a token, more than the residual has dimensions ({d_in:,}): this {architecture} SAE may have been "
            "trained as another kind (TopK), or for another model, hook or centring"
        )
    return found
