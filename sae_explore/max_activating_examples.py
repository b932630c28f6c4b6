"""Method 1: which inputs activate a feature? python -m sae_explore.max_activating_examples

The strongest activations of a feature over a corpus, one a document window, deduplicated, with the peak token marked
(as in Bricken et al. 2023, "Towards Monosemanticity", and Bills et al. 2023, "Language models can explain neurons").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sae_explore import command_line, methods
from sae_explore.bundles.bundle import Bundle
from sae_explore.features.labels import normal
from sae_explore.json_output import feature_json
from sae_explore.strength import band_of
from sae_explore.terminal import example_line, say, shown_token
from sae_explore.types import Example
from sae_explore.wording import label_line


def max_activating_examples(bundle: Bundle, feature: int, top: int = 10) -> tuple[Example, ...]:
    """The feature's strongest examples, strongest first. InputError if there is no such feature."""
    return bundle.top_examples(bundle.check_feature(feature), top)


def interpretation(examples: Sequence[Example], category_share: dict[str, float]) -> str:
    """What the examples have in common, in one line made from them: shared peak tokens, neighbours and categories.

    `category_share` is each category's share of the corpus, so that a reader sees what chance gives.
    """
    if not examples:
        return "it never fires on this corpus, so there is nothing to read"
    n, found = len(examples), []
    peaks = Counter(normal(e.tokens[e.peak - e.start]) for e in examples)
    shared = [(token, count) for token, count in peaks.most_common(3) if count > 1]
    if shared:
        found.append("it peaks on " + ", ".join(f"{shown_token(token)} ({count} of {n})" for token, count in shared))
    else:
        found.append(
            ("its peaks are all on different tokens: " if n > 1 else "its only peak is on ")
            + ", ".join(shown_token(t) for t, _ in peaks.most_common(5))
        )
    for side, offset in (("after", -1), ("before", 1)):
        around = [normal(e.tokens[at]) for e in examples if 0 <= (at := e.peak - e.start + offset) < len(e.tokens)]
        token, count = Counter(around).most_common(1)[0] if around else ("", 0)
        if count > 1 and count >= 0.5 * n:
            found.append(f"mostly {side} {shown_token(token)} ({count} of {n})")
    category, count = Counter(e.category for e in examples).most_common(1)[0]
    if count > 1 and count / n >= 2 * category_share.get(category, 0):
        found.append(f"{count} of {n} in {category} texts ({category_share.get(category, 0):.0%} of the corpus)")
    return "; ".join(found)


def main(argv: list[str]) -> None:
    """Print the examples of the chosen features."""
    args = methods.parser("max_activating_examples", "Method 1: which inputs activate a feature?").parse_args(argv)
    bundle = methods.bundle_of(args)
    features = methods.chosen_features(bundle, args.features)
    cards = [bundle.card(f, top=args.top) for f in features]
    lines = [interpretation(card.top, bundle.category_share()) for card in cards]
    if args.json:
        command_line.print_json([{**feature_json(card), "interpretation": line} for card, line in zip(cards, lines, strict=True)])
        return
    say(methods.headline(bundle))
    for card, line in zip(cards, lines, strict=True):
        row = card.row
        band = f"up to {row['max']:.2f}, on average {row['mean']:.2f} ({band_of(row['mean'] / row['max'])})" if row["count"] else "silent"
        say(f"feature {card.ref.feature}: {label_line(row)}", space=True)
        say(f"  fires on {row['count']:,} tokens ({row['density']:.3%}), {band}")
        for example in card.top:
            say(" ", example_line(example, maximum=row["max"]))
        say(f"  reading: {line}")


if __name__ == "__main__":
    raise SystemExit(command_line.run(main))
