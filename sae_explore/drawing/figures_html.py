"""The Feature page's charts as HTML, each a pure function from arrays to a string.

A page that one leafs through cannot pay for plotly: in Streamlit a chart of another feature is a new chart, which the browser draws
twice, about 50 ms each time. Every string from outside goes through `html.escape` here, as in `spans`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from sae_explore.drawing.spans import dotted
from sae_explore.strength import BANDS, band_of_bins
from sae_explore.types import LensToken

ROOM = 1.12  # the axis beyond the longest bar, for the number of a bar too short to hold it
_LONGEST = 22  # characters of a token beside its bar
_HOLDS = 0.17  # the share of the axis from which a bar holds its number
_ORANGE, _BLUE, _GRID = "217,89,13", "59,110,168", "rgba(128,128,128,.18)"

STYLE = f"""
.ch {{ font-size: .8rem; line-height: 1.2; color: rgba(128,128,128,1); font-variant-numeric: tabular-nums; }}
.ch.rows {{ display: grid; grid-template-columns: fit-content(45%) minmax(0,1fr); column-gap: .5rem; row-gap: 5px; position: relative; }}
.ch.rows.marked {{ padding-top: 1.2rem; }}
.ch .name {{ text-align: right; height: 18px; line-height: 18px; white-space: pre; overflow: hidden; text-overflow: ellipsis; }}
.ch.tokens .name {{ font-family: monospace; }}
.ch .track {{ grid-column: 2; position: relative; height: 18px; }}
.ch .bar {{ display: block; height: 18px; line-height: 18px; background: rgb({_ORANGE}); color: #fff; text-align: right; }}
.ch.cool .bar {{ background: rgb({_BLUE}); }}
.ch .bar .in {{ padding-right: 4px; }}
.ch .bar .out {{ position: absolute; padding-left: 4px; color: rgba(128,128,128,1); }}
.ch .mark {{ position: absolute; top: 2px; bottom: 2px; width: 3px; margin-left: -1.5px; background: rgb({_BLUE}); }}
.ch .over {{ grid-column: 2; position: absolute; inset: 0; pointer-events: none; }}
.ch.marked .over {{ top: 1.2rem; }}
.ch.keyed .over {{ top: 1.6rem; bottom: 1.4rem; }}
.ch .line {{ position: absolute; top: 0; bottom: 0; width: 0; border-left: 1.5px dashed rgba(128,128,128,1); }}
.ch .line.dot {{ border-left: 1px dotted rgba(128,128,128,1); }}
.ch .line.here {{ border-left: 2px solid rgb({_BLUE}); }}
.ch .word {{ position: absolute; bottom: 100%; padding-bottom: 2px; white-space: nowrap; transform: translateX(-50%); }}
.ch .word.left {{ transform: none; }}
.ch .word.right {{ transform: translateX(-100%); }}
.ch .grid {{ position: absolute; background: {_GRID}; }}
.ch .grid.x {{ top: 0; bottom: 0; width: 1px; }}
.ch .grid.y {{ left: 0; right: 0; height: 1px; }}
.ch .ticks {{ grid-column: 2; position: relative; height: 1.4rem; }}
.ch .ticks.x > span {{ position: absolute; top: .3rem; transform: translateX(-50%); white-space: nowrap; }}
.ch .keys {{ grid-column: 2; height: 1.6rem; margin-bottom: -5px; }}
.ch .keys > span {{ margin-right: 1.2rem; white-space: nowrap; }}
.ch .swatch {{ display: inline-block; width: .75rem; height: .75rem; margin-right: .4rem; background: rgb({_ORANGE}); vertical-align: -1px; }}
.ch .swatch.thin {{ width: 3px; background: rgb({_BLUE}); }}
.ch.hist {{ display: grid; grid-template-columns: 1.1rem max-content minmax(0,1fr); column-gap: .3rem; padding-right: .4rem; }}
.ch.hist.marked {{ padding-top: 1.2rem; }}
.ch.hist .title.y {{ writing-mode: vertical-rl; transform: rotate(180deg); text-align: center; }}
.ch.hist .scale {{ display: grid; text-align: right; }}
.ch.hist .scale > span {{ grid-area: 1 / 1; position: relative; height: 0; line-height: 0; }}
.ch.hist .plot {{ position: relative; height: var(--h); }}
.ch.hist .bins {{ position: absolute; left: var(--from); right: var(--to); top: 0; bottom: 0; display: flex; align-items: stretch; }}
.ch.hist .bins > span {{ flex: 1 1 0; background: linear-gradient(to top, rgba(var(--c),var(--a)) var(--y), transparent 0); }}
.ch.hist .bins > span:hover {{ background-color: {_GRID}; }}
.ch.hist .bins > span:hover::after {{ content: attr(data-tip); position: absolute; left: -3rem; right: 0; top: calc(100% + 1.45rem); text-align: center; }}
.ch.hist .ticks, .ch.hist .title.x {{ grid-column: 3; }}
.ch.hist .title.x {{ text-align: center; min-height: 1.2em; }}
.ch.hist .plot:hover ~ .title.x > span {{ visibility: hidden; }}
.ch.hist {{ --c: {_ORANGE}; --a: 1; }}
.ch.hist .b0 {{ --a: .32; }} .ch.hist .b1 {{ --a: .52; }} .ch.hist .b2 {{ --a: .75; }}
.ch.hist .cool {{ --c: {_BLUE}; }}
"""


def short_name(token: str) -> str:
    """A token beside a bar, to which it must leave something: rows of dashes and the like lose their middle."""
    shown = dotted(token)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 6]}…{shown[-5:]}"


def lens_bars(tokens: Sequence[LensToken], *, baseline: float, alt: str) -> str:
    """Logit-lens tokens as horizontal bars, the first on top, negative ones to the right too; dashed: what random directions reach."""
    end = max([*(abs(t.logit) for t in tokens), abs(baseline), 1e-9]) * ROOM
    rows = []
    for token in tokens:
        part = abs(token.logit) / end
        number = f'<span class="{"in" if part >= _HOLDS else "out"}">{token.logit:+.2f}</span>'
        tip = escape(f"{dotted(token.token)}\nlogit {token.logit:+.3f}\ntoken id {token.id}")
        rows.append(
            f'<div class="name" title="{tip}">{escape(short_name(token.token))}</div>'
            f'<div class="track" title="{tip}"><span class="bar" style="width:{100 * part:.2f}%">{number}</span></div>'
        )
    at = abs(baseline) / end
    line = _line(at, "", word=f"random {baseline:+.2f}", side="right" if at > 0.75 else "")
    kind = "rows tokens marked" + (" cool" if tokens and tokens[0].logit < 0 else "")
    return _chart(kind, alt, f'<div class="over">{line}</div>{"".join(rows)}')


def category_bars(names: Sequence[str], shares: Sequence[float], corpus: Sequence[float], *, alt: str) -> str:
    """Where a feature fires: each category's share of its firings (bars) beside that category's share of the corpus (marks)."""
    end = max([*shares, *corpus, 1e-9]) * 1.06
    keys = '<span><span class="swatch"></span>this feature\'s firings</span><span><span class="swatch thin"></span>the corpus</span>'
    rows = []
    for name, share, usual in zip(names, shares, corpus, strict=True):
        tip = escape(f"{dotted(name)}: {share:.1%} of this feature's firings, {usual:.1%} of the corpus")
        rows.append(
            f'<div class="name" title="{tip}">{escape(dotted(name))}</div><div class="track" title="{tip}">'
            f'<span class="bar" style="width:{100 * share / end:.2f}%"></span>'
            f'<span class="mark" style="left:{100 * usual / end:.2f}%"></span></div>'
        )
    ticks = nice_ticks(0, end, 6)
    grid = "".join(f'<span class="grid x" style="left:{100 * t / end:.2f}%"></span>' for t in ticks)
    words = "".join(f'<span style="left:{100 * t / end:.2f}%">{100 * t:g}%</span>' for t in ticks)
    return _chart(
        "rows keyed",
        alt,
        f'<div class="keys">{keys}</div><div class="over">{grid}</div>{"".join(rows)}<div class="ticks x">{words}</div>',
    )


def activation_histogram(edges: np.ndarray, counts: np.ndarray, *, alt: str, here: float | None = None) -> str:
    """Positive activations in equal bins over (0, max], coloured by band; dotted lines where a band ends.

    `here`: the activation on the text that one looks at, marked; above the maximum the axis grows to hold it.
    """
    edges, bands = np.asarray(edges, float), band_of_bins(len(counts))
    maximum = float(edges[-1])
    end = max(maximum or 1, 1.03 * (here or 0))
    most = max(int(np.max(counts, initial=0)), 1) * 1.05
    bins = [
        (int(n) / most, f"b{band}", f"{int(n):,} tokens between {low:.2f} and {high:.2f}, {BANDS[band + 1][0]}")
        for n, band, low, high in zip(counts, bands, edges[:-1], edges[1:], strict=True)
    ]
    lines = "".join(_line(limit * maximum / end, "dot") for _, limit in BANDS[1:-1])
    if here is not None:
        lines += _line(here / end, "here", word=f"this text {here:.2f}", side="right" if here / end > 0.7 else "left")
    y = [(t / most, f"{t:,.0f}") for t in nice_ticks(0, most, 5, whole=True)]
    x = [(t / end, f"{t:,.10g}") for t in nice_ticks(0, end, 6)]
    return _histogram(bins, lines, x, y, "activation", alt, height=165, to=1 - maximum / end, marked=here is not None)


def lens_histogram(edges: np.ndarray, counts: np.ndarray, *, baseline: float, alt: str, here: tuple[float, str] | None = None) -> str:
    """What the feature's direction writes into the logit of every token of the vocabulary, on a log scale, because the few at the ends matter.

    Dashed: what random directions reach, up and down. `here`: logit and name of a token to mark.
    """
    edges, counts = np.asarray(edges, float), np.asarray(counts)
    end = 1.03 * max(abs(edges[0]), abs(edges[-1]), abs(baseline), abs(here[0]) if here else 0, 1e-9)
    low, top = -0.3, float(np.log10(max(counts.max(initial=1), 1))) + 0.15  # powers of ten
    bins = [
        (
            (np.log10(n) - low) / (top - low) if n else 0,
            "cool" if a + b < 0 else "",
            f"{int(n):,} tokens between {a:+.2f} and {b:+.2f}",
        )
        for n, a, b in zip(counts, edges[:-1], edges[1:], strict=True)
    ]

    def at(logit: float) -> float:
        return (logit + end) / (2 * end)

    lines = "".join(_line(at(sign * baseline), "") for sign in (-1, 1))
    if here:
        lines += _line(at(here[0]), "here", word=dotted(here[1]), side="right" if at(here[0]) > 0.7 else "left")
    y = [((power - low) / (top - low), f"{10**power:,}") for power in range(int(top) + 1)]
    x = [(at(t), f"{t:,.10g}".replace("-", "−")) for t in nice_ticks(-end, end, 7)]
    return _histogram(bins, lines, x, y, "logit", alt, height=125, start=at(edges[0]), to=1 - at(edges[-1]), marked=here is not None)


# ---- parts -------------------------------------------------------------------------------------------------------------


def nice_ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """At most so many round numbers from `low` to `high`, evenly spaced; `whole`: whole numbers only."""
    power = 10.0 ** np.floor(np.log10((high - low) / most))
    steps = [step * power for step in (1, 2, 5, 10, 20)]
    if whole:
        steps = [max(step, 1) for step in steps]
    step = next(step for step in steps if np.floor(high / step + 1e-9) - np.ceil(low / step - 1e-9) + 1 <= most)
    return [float(round(i * step, 10)) for i in range(int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9)) + 1)]


def _chart(kind: str, alt: str, body: str) -> str:
    return f'<div class="ch {kind}" role="figure" aria-label="{escape(alt)}">{body}</div>'


def _line(at: float, kind: str, *, word: str = "", side: str = "") -> str:
    """A vertical line at a share of the width, with a word above it."""
    place = f'style="left:{100 * at:.2f}%"'
    said = f'<span class="word {side}" {place}>{escape(word)}</span>' if word else ""
    return f'<span class="line {kind}" {place}></span>{said}'


def _histogram(
    bins: Sequence[tuple[float, str, str]],
    lines: str,
    x: Sequence[tuple[float, str]],
    y: Sequence[tuple[float, str]],
    title: str,
    alt: str,
    *,
    height: int,
    marked: bool,
    start: float = 0.0,
    to: float = 0.0,
) -> str:
    """Bins as (share of the height, class, what stands under the pointer); ticks as (share of the axis, word)."""
    bars = "".join(f'<span class="{kind}" style="--y:{100 * up:.2f}%" data-tip="{escape(tip)}"></span>' for up, kind, tip in bins)
    grid = "".join(f'<span class="grid y" style="bottom:{100 * up:.2f}%"></span>' for up, _ in y)
    scale = "".join(f'<span style="top:{100 - 100 * up:.2f}%">{word}</span>' for up, word in y)
    words = "".join(f'<span style="left:{100 * at:.2f}%">{word}</span>' for at, word in x)
    return _chart(
        "hist marked" if marked else "hist",
        alt,
        f'<div class="title y">tokens</div><div class="scale">{scale}</div><div class="plot" style="--h:{height}px">{grid}'
        f'<div class="bins" style="--from:{100 * start:.2f}%;--to:{100 * to:.2f}%">{bars}</div>{lines}</div>'
        f'<div class="ticks x">{words}</div><div class="title x"><span>{title}</span></div>',
    )
