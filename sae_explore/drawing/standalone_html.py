"""Features as one HTML file that needs nothing else: no network, no script, light and dark as the reader's system has it.

Beside `spans` and `figures_html` the only place that makes HTML: every string from outside goes through `html.escape`, here or there. The file forbids
its reader's browser to load anything, should it ever be asked to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np

from sae_explore import wording
from sae_explore.bundles.bundle import Bundle
from sae_explore.drawing import spans
from sae_explore.errors import InputError
from sae_explore.public_mode import shown_name
from sae_explore.strength import band_of_bins, band_shares
from sae_explore.types import Example, FeatureCard, LensToken

MAX_FEATURES = 250  # of one file: about 30 MB
TOP, LENS, CATEGORIES = 20, 10, 12

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --grey: #6b6f76; --line: #e2dfd8; --bar: #d9590d; --cool: #3b6ea8; --link: #b04708; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15171b; --ink: #e8e6e1; --grey: #a2a6ad; --line: #343840; --bar: #f07a2a; --cool: #7aa7dc; --link: #f7a164; }
}
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1.2rem 4rem; background: var(--page); color: var(--ink);
       font: 15px/1.55 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; tab-size: 2;
       overflow-x: clip; } /* rows of tabs and stacked marks would make it wider than the window */
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 0; } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
a { color: var(--link); } article { border-top: 2px solid var(--line); margin-top: 2rem; padding-top: 1.2rem; }
.grey { color: var(--grey); font-size: .88rem; margin: .1rem 0; } .own { white-space: pre-wrap; border-left: 3px solid var(--bar); padding-left: .8rem; }
.two { display: grid; grid-template-columns: minmax(0, 7fr) minmax(0, 5fr); column-gap: 2.5rem; }
@media (max-width: 48rem) { .two { grid-template-columns: minmax(0, 1fr); } }
.contents { columns: 20rem; padding-left: 1.2rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); column-gap: 1rem; margin: .6rem 0; } dt { color: var(--grey); } dd { margin: 0; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .15rem .6rem .15rem 0; vertical-align: top; font-weight: 400; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } .tok { font-family: monospace; white-space: pre-wrap; }
.track { position: relative; height: .8rem; margin-top: .35rem; } .track i { position: absolute; left: 0; top: 0; bottom: 0; background: var(--bar); }
.track i.cool { background: var(--cool); } .track b { position: absolute; top: -.15rem; bottom: -.15rem; width: 2px; background: var(--cool); }
.wide { width: 55%; } svg { display: block; width: 100%; height: 7rem; border-bottom: 1px solid var(--line); } rect { fill: var(--bar); }
.ends { display: flex; justify-content: space-between; } details { margin-top: .8rem; } summary { cursor: pointer; font-weight: 600; }
"""
_OPACITY = (0.35, 0.55, 0.78, 1.0)  # of a histogram's bars: trace, weak, moderate, strong


def feature_html(
    bundle: Bundle, features: Sequence[int], *, title: str = "", note: str = "", notes: Mapping[int, str] | None = None
) -> str:
    """The file as a string. `title` and `note` are of a list; `notes` the visitor's, by feature. InputError for none or too many."""
    return "".join(feature_html_parts(bundle, features, title=title, note=note, notes=notes))


def feature_html_parts(
    bundle: Bundle, features: Sequence[int], *, title: str = "", note: str = "", notes: Mapping[int, str] | None = None
) -> Iterator[str]:
    """The same in pieces, a feature at a time, so that a long file never lies in memory. What is asked for is checked at once."""
    features = [bundle.check_feature(feature) for feature in dict.fromkeys(features)]
    if not 1 <= len(features) <= MAX_FEATURES:
        raise InputError(
            f"one HTML file holds 1 to {MAX_FEATURES} features, not {len(features):,}; take a table (parquet, csv, jsonl) for more"
        )
    return _parts(bundle, features, title, note, notes or {})


def _parts(bundle: Bundle, features: list[int], title: str, note: str, notes: Mapping[int, str]) -> Iterator[str]:
    name = title or (f"Feature {features[0]}: {bundle.label(features[0])}" if len(features) == 1 else f"{len(features)} features")
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(name)}</title><style>{_STYLE}{spans.STYLE}</style></head><body>\n"
    )
    yield f"<h1>{_text(name)}</h1>{_origin(bundle)}{_own(note)}"
    if len(features) > 1:
        entries = "".join(f'<li><a href="#f{f}">{f}: {_text(bundle.label(f))}</a></li>' for f in features)
        yield f'<ul class="contents">{entries}</ul>'
    yield (
        '<p class="grey">Colour: how strongly a feature fires on a token, as a share of its own maximum over all texts; the peak is underlined.'
        f"</p>{spans.bands_html()}\n"
    )
    for feature in features:
        yield _article(bundle, feature, notes.get(feature, "")) + "\n"
    yield "</body></html>\n"


def _text(text: str) -> str:
    return escape(spans.plain(text))


def _origin(bundle: Bundle) -> str:
    """What the features are of."""
    m = bundle.manifest
    sae, corpus, metrics = m["sae"], m["corpus"], m["metrics"]
    k = f", k = {sae['k']}" if sae["k"] else ""
    rows = (
        ("Model", f"{m['model']['display']} ({m['model']['licence'] or 'licence not stated'})"),
        ("Where", f"{m['hook']} of {m['model']['n_layers']} blocks"),
        ("SAE", f"{sae['architecture']}, {sae['d_sae']:,} features{k}; {shown_name(sae['source'])}"),
        ("Explained variance", f"{metrics['explained_variance']:.3f} on {metrics['tokens_eval']:,} tokens: {metrics['evaluated_on']}"),
        ("Texts", f"{corpus['documents']:,} texts, {corpus['counted_tokens']:,} counted tokens; activations in {bundle.units}"),
        ("Bundle", f"{bundle.name}, made with SAE Explore"),
    )
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{_text(value)}</dd>" for key, value in rows) + "</dl>"


def _own(note: str) -> str:
    """A visitor's note; its lines stay lines."""
    return f'<p class="own">{"<br>".join(_text(line) for line in note.splitlines())}</p>' if note else ""


# ---- one feature -------------------------------------------------------------------------------------------------------


def _article(bundle: Bundle, feature: int, note: str) -> str:
    card = bundle.card(feature, top=TOP)
    row = card.row
    head = f'<article id="f{feature}"><h2>Feature {feature}: {_text(row["label"])}</h2>{_own(note)}'
    if not row["count"]:
        counted = bundle.manifest["features"]["counted_tokens"]
        return f'{head}<p class="grey">It fires on none of the {counted:,} counted tokens.</p>{_lens(card)}{_near(bundle, card)}</article>'
    facts = (
        ("Fires on", f"{wording.density_words(row['density'])} ({wording.percent(row['density'])}), {row['count']:,} in all"),
        ("Activation", f"maximum {row['max']:.2f}, mean when firing {row['mean']:.2f}"),
    )
    listed = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    left = f"<h3>Where it fires most strongly</h3>{_examples(card.top, card)}"
    for words, found in (
        ("From each fifth of its range, strongest first", card.intervals),
        ("Drawn at random from all firings", card.random),
    ):
        left += f"<details><summary>{words}</summary>{_examples(found, card)}</details>" if found else ""
    right = f"{_lens(card)}<h3>How strongly it fires</h3>{_histogram(card)}{_categories(bundle, card)}{_near(bundle, card)}"
    origin = f'<p class="grey">{_text(wording.label_origin(row))}</p>'
    return f'{head}{origin}<dl>{listed}</dl><div class="two"><div>{left}</div><div>{right}</div></div></article>'


def _examples(found: Sequence[Example], card: FeatureCard) -> str:
    return spans.examples_html(found, card.row["max"], feature=card.ref.feature)


def _lens(card: FeatureCard) -> str:
    """Promoted and suppressed tokens with their logits as bars, all on one scale."""
    lists = (("Promotes", card.positive[:LENS], ""), ("Suppresses", card.negative[:LENS], ' class="cool"'))
    end = max([1e-9, *(abs(t.logit) for _, tokens, _ in lists for t in tokens)])
    return "".join(
        f'<h3>{title} <span class="grey">({_text(card.lens_convention)} logit lens)</span></h3>{_lens_rows(tokens, end, colour)}'
        for title, tokens, colour in lists
    )


def _lens_rows(tokens: Sequence[LensToken], end: float, colour: str) -> str:
    rows = (
        f'<tr><td class="tok">{escape(spans.dotted(t.token))}</td><td class="wide"><div class="track"><i{colour} style="width:'
        f'{100 * abs(t.logit) / end:.1f}%"></i></div></td><td class="num">{t.logit:+.2f}</td></tr>'
        for t in tokens
    )
    return f"<table>{''.join(rows)}</table>"


def _histogram(card: FeatureCard) -> str:
    """Positive activations in equal bins up to the maximum, as an SVG of bars."""
    edges, counts = card.extra["histogram"]
    counts = np.asarray(counts, float)
    n, most = len(counts), max(float(counts.max()), 1.0)
    bars = "".join(
        f'<rect x="{i}.06" y="{100 - 100 * c / most:.2f}" width="0.88" height="{100 * c / most:.2f}" fill-opacity="{_OPACITY[band]}"/>'
        for i, (c, band) in enumerate(zip(counts.tolist(), band_of_bins(n).tolist(), strict=True))
        if c
    )
    shares = " · ".join(f"{name} {wording.percent(part)}" for name, part in band_shares(counts).items())
    return (
        f'<svg viewBox="0 0 {n} 100" preserveAspectRatio="none" role="img" aria-label="Histogram of activations">{bars}</svg>'
        f'<div class="grey ends"><span>0</span><span>at most {int(most):,} tokens a bar</span><span>{float(edges[-1]):.2f}</span></div>'
        f'<p class="grey">Of its firings: {_text(shares)}.</p>'
    )


def _categories(bundle: Bundle, card: FeatureCard) -> str:
    """Each category's share of the firings (bars) beside its share of the corpus (marks)."""
    counts, corpus = card.extra["categories"], bundle.category_share()
    total = max(sum(counts.values()), 1)
    names = sorted(counts, key=lambda name: -counts[name])[:CATEGORIES]
    if len(counts) < 2:
        return ""
    end = max(1e-9, *(max(counts[n] / total, corpus[n]) for n in names))
    rows = "".join(
        f'<tr><td>{_text(n)}</td><td class="wide"><div class="track"><i style="width:{100 * counts[n] / total / end:.1f}%"></i>'
        f'<b style="left:{100 * corpus[n] / end:.1f}%"></b></div></td><td class="num">{escape(wording.percent(counts[n] / total))}</td></tr>'
        for n in names
    )
    return f'<h3>In which texts <span class="grey">(mark: share of all texts)</span></h3><table>{rows}</table>'


def _near(bundle: Bundle, card: FeatureCard) -> str:
    """Nearest features by decoder cosine."""
    rows = "".join(
        f'<tr><td class="num">{other}</td><td>{_text(bundle.label(other))}</td><td class="num">{cosine:.2f}</td></tr>'
        for other, cosine in card.neighbours
    )
    return f'<h3>Nearest directions <span class="grey">(decoder cosine)</span></h3><table>{rows}</table>'
