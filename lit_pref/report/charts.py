"""Line charts as plain SVG text: scales, thinning, drawing. No script is needed to see them.

Each chart is drawn once per x axis; the page shows one of the three by a style rule alone.
Lines differ by colour (Okabe and Ito's colour-blind-safe set), by dash and by marker, so that they
stay apart in greyscale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate

from lit_pref.report.read import MetricsTable

__all__ = [
    "AXES",
    "Chart",
    "Series",
    "band",
    "draw",
    "is_noisy",
    "legend",
    "moving_mean",
    "thin",
    "ticks",
]

AXES = (
    ("step", "optimizer steps", "Steps"),
    ("samples", "responses sampled", "Samples"),
    ("reward_queries", "reward queries", "Reward queries"),
)
"""(column, axis title, button) of each x axis; the first is shown at the start."""

WIDTH, HEIGHT = 420, 262
LEFT, RIGHT, TOP, BOTTOM = 56, 18, 12, 44
_NOISY = 60
"""From this many points on, a training curve is drawn faint with its moving mean on top."""
_MARKED = 40
"""Up to this many points, each gets a marker."""

Point = tuple[float, float]
Place = Callable[[Point], Point]
"""From data to the coordinates of the drawing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line: a column of ``metrics.csv`` and its name in the legend.

    ``slot`` 0 to 5 picks colour, dash and marker.
    """

    column: str
    label: str
    slot: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """What one chart shows.

    Attributes:
        title: heading.
        unit: title of the y axis, with its unit.
        series: the lines.
        floor, ceiling: the y axis reaches at least this far.
        x: (column, axis title) of an x axis of its own, instead of the one that is picked.
        faint: lines of single seeds, thin and without markers, in the style of their slot.
        behind: lines for comparison, grey and without a legend.
        smooth: whether a line of many points is drawn faint with its moving mean on top.
        reach: the x axis covers at least this, by column.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    floor: float | None = None
    ceiling: float | None = None
    x: tuple[str, str] | None = None
    faint: tuple[Series, ...] = ()
    behind: tuple[Series, ...] = ()
    smooth: bool = True
    reach: Mapping[str, Point] = field(default_factory=dict)


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten) inside [low, high]."""
    raw = (high - low) / max(count, 1)
    if not raw > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thin(points: Sequence[Point], *, buckets: int) -> list[Point]:
    """At most ``2 * buckets`` of the points, extremes kept: the drawn line looks the same.

    The points are cut into runs of equal length, and the lowest and the highest point of each one
    stay. The first and the last point always stay.
    """
    if len(points) <= 2 * buckets:
        return list(points)
    inner = range(1, len(points) - 1)
    size = math.ceil(len(inner) / (buckets - 1))
    keep = {0, len(points) - 1}
    for start in range(1, len(points) - 1, size):
        run = range(start, min(start + size, len(points) - 1))
        keep.add(min(run, key=lambda i: points[i][1]))
        keep.add(max(run, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(keep)]


def moving_mean(points: Sequence[Point], *, window: int, count: int | None = None) -> list[Point]:
    """Centred mean over ``window`` neighbours (odd), over those that exist near the ends.

    With ``count``, it is taken at that many evenly spaced points at most, the last one included.
    """
    sums = [0.0, *accumulate(y for _, y in points)]
    last, half = len(points) - 1, window // 2
    stride = 1 if count is None else max(math.ceil(last / max(count - 1, 1)), 1)
    out = []
    for i in (*range(0, last, stride), last):
        low, high = max(i - half, 0), min(i + half, last) + 1
        out.append((points[i][0], (sums[high] - sums[low]) / (high - low)))
    return out


def is_noisy(chart: Chart, points: Sequence[Point]) -> bool:
    """Whether a line is drawn faint with its moving mean on top."""
    return chart.smooth and chart.x is None and len(points) >= _NOISY


def draw(chart: Chart, table: MetricsTable, *, axis: str, x_title: str, buckets: int = 180) -> str:
    """One chart over one x axis as an ``<svg>`` element.

    Args:
        chart: what to draw.
        table: the rows; a point is a row with a number in both columns.
        axis: column of the x axis.
        x_title: title of the x axis.
        buckets: resolution of the drawn lines.
    """
    fixed = "" if chart.x is None else " fixed"
    lines = {s: table.points(axis, s.column) for s in chart.series}
    points = [p for line in lines.values() for p in line]
    if points:  # single seeds may lie outside of their mean
        points += [p for s in chart.faint for p in table.points(axis, s.column)]
        points += [p for s in chart.series for end in band(table, axis, s.column) for p in end]
    if not points:
        return (
            f'<svg class="plot{fixed}" data-axis="{escape(axis)}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'role="img" aria-label="no points"><text class="none" x="{WIDTH / 2}" '
            f'y="{HEIGHT / 2}">no row has a value for {escape(x_title)}</text></svg>'
        )
    x0, x1 = _x_range([x for x, _ in points] + list(chart.reach.get(axis, ())))
    y0, y1 = _y_range([y for _, y in points], chart)

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return x, y

    body = [_frame((x0, x1), (y0, y1), place, x_title, chart.unit)]
    for series in chart.series:
        low, high = band(table, axis, series.column)
        if len(low) > 1:
            outline = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(place, [*low, *reversed(high)]))
            body.append(f'<path class="band m{series.slot}" d="M{outline}Z"/>')
    for kind, some in (("behind", chart.behind), ("one", chart.faint)):
        for series in some:
            line = [p for p in table.points(axis, series.column) if y0 <= p[1] <= y1]
            if len(line) > 1:
                style = kind if kind == "behind" else f"s{series.slot} {kind}"
                body.append(f'<path class="{style}" d="{_path(line, place, buckets)}"/>')
    # Faint lines lie lowest; of the bold ones the first series lies on top.
    for series, line in lines.items():
        if is_noisy(chart, line):
            path = _path(line, place, buckets)
            body.append(f'<path class="s{series.slot} raw" d="{path}"/>')
    for series, line in reversed(lines.items()):
        if is_noisy(chart, line):
            line = moving_mean(line, window=2 * (len(line) // 40) + 1, count=2 * buckets)
        if line:
            body.append(_line(series.slot, line, place, buckets))
    return (
        f'<svg class="plot{fixed}" data-axis="{escape(axis)}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'data-x="{x0:.10g} {x1:.10g}" data-y="{y0:.10g} {y1:.10g}" '
        f'data-box="{LEFT} {WIDTH - RIGHT} {TOP} {HEIGHT - BOTTOM}" role="img" tabindex="0" '
        f'aria-label="{escape(_describe(chart, lines, x_title))}">{"".join(body)}'
        f'<line class="guide" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="-9" x2="-9"/></svg>'
    )


def band(table: MetricsTable, axis: str, column: str) -> tuple[list[Point], list[Point]]:
    """Lower and upper ends of a column's interval, where it was logged at all of its points."""
    low, high = (table.points(axis, column + end) for end in ("_low", "_high"))
    same = [x for x, _ in low] == [x for x, _ in high]
    return (low, high) if same else ([], [])


def legend(series: Series) -> str:
    """The sample of one line, with its label, for the legend under a chart."""
    return (
        f'<li data-column="{escape(series.column)}" data-slot="{series.slot}">'
        f'<svg class="key" viewBox="0 0 30 10">'
        f'<path class="s{series.slot}" d="M1 5H29"/>{_marker(series.slot, 15, 5)}</svg>'
        f"{escape(series.label)}</li>"
    )


# --------------------------------------------------------------------------- parts


def _x_range(xs: Sequence[float]) -> Point:
    low, high = min(xs), max(xs)
    if low == high:
        return max(low - 1, 0.0), high + 1
    # A run that starts within the first twentieth is shown from zero.
    return (0.0 if 0 < low <= high / 20 else low), high


def _y_range(ys: Sequence[float], chart: Chart) -> Point:
    low, high = min(ys), max(ys)
    if chart.floor is not None:
        low = min(low, chart.floor)
    if chart.ceiling is not None:
        high = max(high, chart.ceiling)
    # Float noise is no curve: a flat line is drawn in the middle of a small range.
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        pad = abs(high) * 0.1 or 1.0
        return low - pad, high + pad
    pad = 0.06 * (high - low)
    keep_low = chart.floor is not None and low >= chart.floor
    keep_high = chart.ceiling is not None and high <= chart.ceiling
    return (low if keep_low else low - pad), (high if keep_high else high + pad)


def _frame(xs: Point, ys: Point, place: Place, x_title: str, unit: str) -> str:
    out = []
    y_ticks, x_ticks = ticks(*ys, count=5), ticks(*xs, count=5)
    if xs[1] - xs[0] <= 2 and x_title in {title for _, title, _ in AXES}:
        x_ticks = [tick for tick in x_ticks if tick == int(tick)]
    for tick, text in zip(y_ticks, _labels(y_ticks), strict=True):
        y = place((xs[0], tick))[1]
        zero = " zero" if tick == 0 else ""
        out.append(f'<path class="grid{zero}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text class="tick y" x="{LEFT - 7}" y="{y + 4:.1f}">{text}</text>')
    for tick, text in zip(x_ticks, _labels(x_ticks), strict=True):
        x = place((tick, ys[0]))[0]
        base = HEIGHT - BOTTOM
        out.append(f'<path class="axis" d="M{x:.1f} {base}v4"/>')
        out.append(f'<text class="tick x" x="{x:.1f}" y="{base + 17}">{text}</text>')
    middle, center = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    out.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    out.append(f'<text class="title" x="{middle}" y="{HEIGHT - 8}">{escape(x_title)}</text>')
    turn = f'transform="translate(11 {center}) rotate(-90)"'
    out.append(f'<text class="title" {turn}>{escape(unit)}</text>')
    return "".join(out)


def _line(slot: int, points: Sequence[Point], place: Place, buckets: int) -> str:
    marks = [_marker(slot, *place(p)) for p in points] if len(points) <= _MARKED else []
    return f'<path class="s{slot}" d="{_path(points, place, buckets)}"/>{"".join(marks)}'


def _path(points: Sequence[Point], place: Place, buckets: int) -> str:
    placed = map(place, thin(points, buckets=buckets))
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)


def _marker(slot: int, x: float, y: float) -> str:
    """Circle, square, triangle, diamond, triangle on its tip, cross."""
    shape = (
        "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
        "m-2.7 -2.7h5.4v5.4h-5.4z",
        "m0 -3.5l3.4 6h-6.8z",
        "m0 -3.7l3.7 3.7l-3.7 3.7l-3.7 -3.7z",
        "m0 3.5l3.4 -6h-6.8z",
        "m-1 -3.6h2v2.6h2.6v2h-2.6v2.6h-2v-2.6h-2.6v-2h2.6z",
    )[slot]
    return f'<path class="m{slot}" d="M{x:.1f} {y:.1f}{shape}"/>'


def _labels(values: Sequence[float]) -> list[str]:
    """Tick labels with one common scale: ``1.5M``, ``20k``, ``0.25``, ``3e-05``."""
    top = max((abs(v) for v in values), default=0.0)
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if top >= scale:
            scale = 1e3 if suffix == "k" else scale
            return [f"{v / scale:g}{suffix if v else ''}" for v in values]
    return [f"{v:g}" for v in values]


def _describe(chart: Chart, lines: dict[Series, list[Point]], x_title: str) -> str:
    """The chart in a sentence, for those who cannot see it."""
    parts = [
        f"{s.label} from {p[0][1]:.4g} to {p[-1][1]:.4g} ({len(p)} points)"
        for s, p in lines.items()
        if p
    ]
    return f"{chart.title} over {x_title}: {'; '.join(parts)}"
