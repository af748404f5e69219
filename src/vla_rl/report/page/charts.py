"""Charts as small pieces of HTML and SVG that stretch to any width and follow light and dark mode.

The curves are an SVG of 1000 x 1000 units stretched over the plot (strokes keep their width); axis
labels and legends are HTML beside it, so that text has one size on a phone and on a desktop. Colours
are class names (`c0`..`c9`, `before`, `after`, `quiet`) which the style sheet resolves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from vla_rl.report.run_data import Rate

Values = Float64[np.ndarray, " R"]

_UNITS = 1000
_MAX_POINTS = 400  # a curve of more points is drawn as means of neighbouring ones
_MAX_CELLS = 80
_COLORS = 10


@dataclass(frozen=True)
class Line:
    """One curve. NaN breaks it."""

    label: str
    values: Values
    color: str = "c0"
    style: Literal["solid", "faint", "dots"] = "solid"


@dataclass(frozen=True)
class Guide:
    """A horizontal reference line with its name."""

    label: str
    value: float
    color: str


@dataclass(frozen=True)
class Axis:
    """Axes of a chart. Vertical: percent of 1 fixed to 0..100, or fitted to the data, with zero or not."""

    percent: bool = False
    zero: bool = True
    unit: str = ""
    height: int = 150  # pixels
    index: str = "iteration"  # what the horizontal axis counts


def color_of(index: int) -> str:
    """The colour class of the index-th of several things."""
    return f"c{index % _COLORS}"


def percent(fraction: float, digits: int = 1) -> str:
    """0.847 -> "84.7%"; a missing value -> "–"."""
    return f"{100 * fraction:.{digits}f}%" if math.isfinite(fraction) else "–"


def points(difference: float, digits: int = 1) -> str:
    """0.487 -> "+48.7", -0.02 -> "−2.0" (percentage points)."""
    if not math.isfinite(difference):
        return "–"
    text = f"{abs(100 * difference):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if difference > 0 else "\N{MINUS SIGN}") + text


def number(value: float) -> str:
    """A short form of any finite number: 12,345, 9.41, 0.0123, 2e-4."""
    if not math.isfinite(value):
        return "–"
    value += 0.0  # a negative zero becomes a plain one
    size = abs(value)
    if size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 100:
        text = f"{value:.0f}"
    elif size == 0 or size >= 1e-3:
        text = f"{value:.3g}"
    else:
        text = f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (steps of 1, 2 or 5 times a power of ten) that cover low..high."""
    # constant, as far as labels can tell
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-200):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.15g}") for i in range(first, last + 1)]


def moving_average(values: Values, window: int, weights: Values | None = None) -> Values:
    """Mean of the last `window` entries up to each one, weighted; entries that are NaN do not count."""
    counts = np.where(np.isfinite(values), 1.0 if weights is None else weights, 0.0)
    counts = np.where(np.isfinite(counts) & (counts > 0), counts, 0.0)
    sums = np.cumsum(np.where(np.isfinite(values), values, 0.0) * counts)
    totals = np.cumsum(counts)
    sums[window:] -= sums[:-window].copy()
    totals[window:] -= totals[:-window].copy()
    return np.divide(sums, totals, out=np.full(len(values), np.nan), where=totals > 1e-12)


def line_chart(
    title: str,
    x: Int64[np.ndarray, " R"],
    lines: Sequence[Line],
    axis: Axis = Axis(),
    *,
    guides: Sequence[Guide] = (),
    band: tuple[float, float, str] | None = None,
    reading: str = "",
    note: str = "",
    legend: bool | None = None,
) -> str:
    """Curves over iterations. `band` shades start..end of x under a name, `reading` stands in the corner."""
    ticks = _ticks([line.values for line in lines] + [np.array([g.value for g in guides])], axis)
    scale = _Scale(x, ticks)
    shapes = [f'<path class="grid" d="M0 {scale.y(t)}H{_UNITS}"/>' for t in ticks]
    if band is not None:
        left, right = scale.x(band[0]), scale.x(band[1])
        shapes.insert(0, f'<path class="band" d="M{left} 0H{right}V{_UNITS}H{left}Z"/>')
    for guide in guides:
        shapes.append(
            f'<path class="line dashed {guide.color}" d="M0 {scale.y(guide.value)}H{_UNITS}"/>'
        )
    for line in lines:
        xs, ys = _thin(x, line.values)
        shapes.append(f'<path class="line {line.style} {line.color}" d="{_path(scale, xs, ys)}"/>')
    named = [(line.label, line.color, line.style) for line in lines]
    named += [(guide.label, guide.color, "dashed") for guide in guides]
    if band is not None:
        named.append((band[2], "quiet", "band"))
    show = len(named) > 1 if legend is None else legend
    return _figure(
        title, shapes, scale, axis,
        description=_describe(x, lines, axis), reading=reading, note=note,
        legend=named if show else [], hover=_hover(x, lines, axis),
    )  # fmt: skip


def stacked_chart(
    title: str,
    x: Int64[np.ndarray, " R"],
    lines: Sequence[Line],
    axis: Axis = Axis(),
    *,
    reading: str = "",
    note: str = "",
) -> str:
    """Areas on top of each other, the first one at the bottom; a missing value counts as 0."""
    filled = [np.nan_to_num(line.values) for line in lines]
    tops = np.cumsum(np.stack(filled), axis=0)
    scale = _Scale(x, _ticks([tops[-1]], axis))
    shapes: list[str] = []
    floor = np.zeros(len(x))
    for line, top in zip(lines, tops, strict=True):
        xs, upper = _thin(x, top)
        _, lower = _thin(x, floor)
        outline = [f"{scale.x(a)} {scale.y(b)}" for a, b in zip(xs, upper, strict=True)]
        back = [f"{scale.x(a)} {scale.y(b)}" for a, b in zip(xs[::-1], lower[::-1], strict=True)]
        shapes.append(f'<path class="area {line.color}" d="M{"L".join(outline + back)}Z"/>')
        floor = top
    shapes += [f'<path class="grid over" d="M0 {scale.y(t)}H{_UNITS}"/>' for t in scale.ticks]
    return _figure(
        title, shapes, scale, axis,
        description=_describe(x, lines, axis), reading=reading, note=note,
        legend=[(line.label, line.color, "area") for line in lines], hover=_hover(x, lines, axis),
    )  # fmt: skip


def heat_chart(
    title: str, x: Int64[np.ndarray, " R"], lines: Sequence[Line], note: str = ""
) -> str:
    """One row of shaded cells per line, stronger for more: for more lines than colours."""
    peak = max((float(np.nan_to_num(line.values).max()) for line in lines), default=0.0) or 1.0
    rows: list[str] = []
    for line in lines:
        xs, ys = _thin(x, line.values, _MAX_CELLS)
        width = _UNITS / max(len(xs), 1)
        cells = [
            f'<rect x="{i * width:.1f}" width="{width:.1f}" height="{_UNITS}" opacity="{max(y, 0) / peak:.2f}"/>'
            for i, y in enumerate(ys)
            if math.isfinite(y)
        ]
        image = _svg(cells, line.label, _describe(x, [line], Axis(percent=True)))
        rows.append(f'<div class="heat-row"><span>{escape(line.label)}</span>{image}</div>')
    return (
        f'<figure class="chart wide"><figcaption><span class="name">{escape(title)}</span></figcaption>'
        f'<div class="heat">{"".join(rows)}</div><p class="note">{escape(note)} The strongest cell is '
        f"{percent(peak)}; iterations {int(x[0])} to {int(x[-1])} from left to right.</p></figure>"
    )


def interval_bar(before: Rate | None, after: Rate | None) -> str:
    """Success before and after on one scale of 0 to 100 %: a dot each, its 95 % interval a bar."""
    marks: list[str] = []
    words: list[str] = []
    for name, rate in (("before", before), ("after", after)):
        if rate is None or not rate.episodes:
            continue
        low, dot, high = (100 * value for value in (rate.low, rate.rate, rate.high))
        marks.append(
            f'<span class="mark {name}"><i style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
            f'<b style="left:{dot:.2f}%"></b></span>'
        )
        words.append(
            f"{name} {percent(rate.rate)}, interval {percent(rate.low)} to {percent(rate.high)}"
        )
    label = escape("; ".join(words) or "no data")
    return f'<div class="interval" role="img" aria-label="{label}">{"".join(marks)}</div>'


class _Scale:
    """Data to units of the stretched image, y downwards."""

    def __init__(self, x: Int64[np.ndarray, " R"], ticks: list[float]) -> None:
        self.left, self.right = (float(x[0]), float(x[-1])) if len(x) else (0.0, 1.0)
        self.ticks = ticks

    def x(self, value: float) -> int:
        span = self.right - self.left
        share = (value - self.left) / span if span else 0.5
        return round(_UNITS * min(max(share, 0.0), 1.0))

    def y(self, value: float) -> int:
        low, high = self.ticks[0], self.ticks[-1]
        return round(_UNITS * (1 - (value - low) / (high - low)))

    def x_ticks(self) -> list[float]:
        if self.right == self.left:
            return [self.left]
        inside = [t for t in nice_ticks(self.left, self.right) if self.left <= t <= self.right]
        return [t for t in inside if t == int(t)]


def _ticks(columns: Sequence[Values], axis: Axis) -> list[float]:
    if axis.percent:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    known = np.concatenate([np.ravel(c) for c in columns]) if columns else np.zeros(0)
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if axis.zero:
        low, high = min(low, 0.0), max(high, 0.0)
        high = 1.0 if low == high else high
    return nice_ticks(low, high, 3)


def _thin(
    x: Int64[np.ndarray, " R"], y: Values, limit: int = _MAX_POINTS
) -> tuple[Float64[np.ndarray, " Q"], Float64[np.ndarray, " Q"]]:
    """At most `limit` points: means over runs of neighbours, NaN only where a whole run is."""
    if len(x) <= limit:
        return x.astype(np.float64), y
    runs = np.array_split(np.arange(len(x)), limit)
    means = [float(np.nanmean(y[r])) if np.isfinite(y[r]).any() else math.nan for r in runs]
    places = np.array([float(x[r].mean()) for r in runs])
    places[0], places[-1] = x[0], x[-1]
    return places, np.array(means)


def _path(scale: _Scale, xs: Float64[np.ndarray, " Q"], ys: Float64[np.ndarray, " Q"]) -> str:
    parts: list[str] = []
    pen_down = False
    for a, b in zip(xs, ys, strict=True):
        if not math.isfinite(b):
            pen_down = False
            continue
        # "h0" makes a lone point visible: a line of no length with round ends is a dot
        parts.append(
            f"{'L' if pen_down else 'M'}{scale.x(a)} {scale.y(b)}{'' if pen_down else 'h0'}"
        )
        pen_down = True
    return "".join(parts)


def _show(value: float, axis: Axis) -> str:
    return (
        percent(value) if axis.percent else number(value) + (f" {axis.unit}" if axis.unit else "")
    )


def _describe(x: Int64[np.ndarray, " R"], lines: Sequence[Line], axis: Axis) -> str:
    if not len(x):
        return "No data."
    sentences = [f"From {axis.index} {int(x[0])} to {int(x[-1])}."]
    for line in lines:
        known = line.values[np.isfinite(line.values)]
        if line.style != "faint" and len(known):
            shown = (_show(float(v), axis) for v in (known[0], known[-1], known.min(), known.max()))
            first, last, least, most = shown
            sentences.append(f"{line.label}: first {first}, last {last}, from {least} to {most}.")
    return " ".join(sentences)


def _hover(x: Int64[np.ndarray, " R"], lines: Sequence[Line], axis: Axis) -> str:
    """What the page's script shows under the pointer, as an HTML attribute."""
    places = _thin(x, x.astype(np.float64))[0]
    series = [
        {
            "label": line.label,
            "color": line.color,
            "values": [_show(float(v), axis) for v in _thin(x, line.values)[1]],
        }
        for line in lines
    ]
    span = float(x[-1] - x[0]) if len(x) > 1 else 0.0
    shares = [round(float((p - x[0]) / span), 4) if span else 0.5 for p in places]
    data = {
        "index": axis.index,
        "at": shares,
        "x": [round(float(p)) for p in places],
        "lines": series,
    }
    return escape(json.dumps(data, ensure_ascii=False, separators=(",", ":")))


def _svg(shapes: Sequence[str], title: str, description: str) -> str:
    return (
        f'<svg viewBox="0 0 {_UNITS} {_UNITS}" preserveAspectRatio="none" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(shapes)}</svg>"
    )


def _figure(
    title: str,
    shapes: Sequence[str],
    scale: _Scale,
    axis: Axis,
    *,
    description: str,
    reading: str,
    note: str,
    legend: Sequence[tuple[str, str, str]],
    hover: str,
) -> str:
    y_labels = [
        f'<span style="bottom:{(_UNITS - scale.y(t)) / 10:.1f}%">{percent(t, 0) if axis.percent else number(t)}</span>'
        for t in scale.ticks
    ]
    x_labels = [
        f'<span style="left:{scale.x(t) / 10:.1f}%">{number(t)}</span>' for t in scale.x_ticks()
    ]
    keys = [
        f'<li><i class="swatch {style} {color}"></i>{escape(label)}</li>'
        for label, color, style in legend
    ]
    return (
        f'<figure class="chart"><figcaption><span class="name">{escape(title)}</span>'
        f'<span class="reading">{escape(reading)}</span></figcaption>'
        f'<div class="plot" style="--height:{axis.height}px" data-hover="{hover}">'
        f'<div class="y-axis" aria-hidden="true">{"".join(y_labels)}</div>{_svg(shapes, title, description)}'
        f'<div class="x-axis" aria-hidden="true">{"".join(x_labels)}</div></div>'
        + (f'<ul class="legend">{"".join(keys)}</ul>' if keys else "")
        + (f'<p class="note">{escape(note)}</p>' if note else "")
        + "</figure>"
    )
