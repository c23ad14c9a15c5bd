"""One style for all figures: Okabe-Ito colours with a line style and marker each, for greyscale."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from lit_pref.app.paper.cells import Curves
from lit_pref.app.paper.criteria import interval
from lit_pref.errors import Refusal

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType
    from torch import Tensor

__all__ = ["STYLES", "bars", "curve_rows", "figure", "legend", "plot_band", "plot_seeds"]


class Look(TypedDict):
    """How one line is drawn: arguments of ``Axes.plot``."""

    color: str
    linestyle: str | tuple[int, tuple[int, ...]]
    marker: str


STYLES: list[Look] = [
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    {"color": "#56B4E9", "linestyle": (0, (5, 1)), "marker": "v"},
    {"color": "#000000", "linestyle": (0, (1, 1)), "marker": "P"},
]
HATCHES = ["", "///", "...", "xxx", "\\\\\\", "++"]

_STYLE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "savefig.dpi": 130,
    "hatch.linewidth": 0.6,
}


@contextmanager
def figure(path: Path, rows: int, columns: int, *, title: str, size: float = 3.0) -> Iterator[Any]:
    """Axes [rows][columns] of a new figure, saved to ``path`` at the end of the block.

    Raises:
        Refusal: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise Refusal(
            'figures need matplotlib, which is not installed; pip install -e ".[plots]"'
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE):
        drawing, axes = plt.subplots(
            rows, columns, figsize=(size * 1.45 * columns + 0.4, size * rows + 0.9),
            squeeze=False, layout="constrained",
        )  # fmt: skip
        try:
            yield axes
            drawing.suptitle(textwrap.fill(title, 52 * columns), fontsize=10)
            drawing.savefig(path, metadata={"Software": None})
        finally:
            plt.close(drawing)


def legend(axes: Any, *, title: str | None = None, columns: int | None = None) -> None:
    """One legend for all axes, below them, so that it covers no data."""
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    axes.flat[0].figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=columns or (1 + axes.shape[1]),
        title=title,
    )


def plot_band(
    axis: Any,
    x: Sequence[float],
    runs: Sequence[Sequence[float]],
    label: str,
    style: int,
    *,
    apart: float = 0.0,
) -> None:
    """Mean over seeds with its 95 % interval; the last value where x does not move.

    Args:
        axis: to draw on.
        x: places of the values.
        runs: values of each seed.
        label: for the legend.
        style: number of the line's look.
        apart: between neighbouring styles where x stays at 0.
    """
    columns = [interval(values) for values in zip(*runs, strict=True)]
    means = [m for m, _, _ in columns]
    look = STYLES[style % len(STYLES)]
    if x[0] == x[-1] and len(x) > 1:  # offline: all samples are drawn before the first step
        mean, low, _ = columns[-1]
        spread = None if low is None else [mean - low]
        place = x[0] * (1 + 0.06 * style) or apart * style
        axis.errorbar(
            [place], [mean], spread, color=look["color"], marker=look["marker"], capsize=3
        )
        return
    every = max(len(means) // 8, 1)
    axis.plot(x, means, label=label, markevery=(style % every, every), **look)
    if all(low is not None for _, low, _ in columns):
        lows, highs = [c[1] for c in columns], [c[2] for c in columns]
        axis.fill_between(x, lows, highs, color=look["color"], alpha=0.18, linewidth=0)


def plot_seeds(
    axis: Any, x: Sequence[float], runs: Sequence[Sequence[float]], label: str, style: int
) -> None:
    """Mean over seeds, and each seed as a hollow mark beside it.

    For few seeds, whose intervals (at two: 12.7 standard errors) would cover the picture.

    Args:
        axis: to draw on; its x is logarithmic.
        x: places of the values.
        runs: values of each seed.
        label: for the legend.
        style: number of the line's look.
    """
    look = STYLES[style % len(STYLES)]
    axis.plot(x, [sum(values) / len(values) for values in zip(*runs, strict=True)],
              label=label, **look)  # fmt: skip
    beside = 1.05 if style % 2 else 1 / 1.05  # or the marks of two lines cover each other
    for run in runs:
        axis.plot(
            [place * beside for place in x], run, linestyle="none", marker=look["marker"],
            markersize=4, markerfacecolor="none", markeredgecolor=look["color"], alpha=0.75,
        )  # fmt: skip


def curve_rows(
    axes: Any,
    curves: Curves,
    *,
    panels: Sequence[tuple[str, dict[str, str]]],
    lines: Sequence[tuple[str, dict[str, str]]],
    metric: str = "curve/reward",
    ylabel: str = "true reward (mean, 95 %)",
    sign: float = 1.0,
    separate: bool = False,
    ylim: tuple[float, float] | None = (-0.02, 1.05),
) -> None:
    """Curves against optimizer steps (first row) and against samples (second row).

    The bandits score every training sample once, so samples are reward queries too; where they
    differ, a third row shows the queries.

    Args:
        axes: [rows][panels].
        curves: the runs.
        panels: title and labels of each column.
        lines: name and labels of each line.
        metric: column to draw.
        ylabel: its name and unit.
        sign: its values are multiplied by it.
        separate: a third row also where samples are reward queries.
        ylim: of rewards; None: of all seeds' values. Wider intervals go beyond the picture.
    """
    same = all(r.columns["samples"] == r.columns["reward_queries"] for r in curves.runs)
    same = same and not separate
    xs = [("step", "optimizer steps")]
    xs.append(
        ("samples", "samples = reward queries (responses)" if same else "samples (responses)")
    )
    if not same:
        xs.append(("reward_queries", "reward queries (responses)"))
    for column, (title, panel) in enumerate(panels):
        for row, (x, xlabel) in enumerate(xs[: len(axes)]):
            axis = axes[row][column]
            shown = curves.where(**panel)
            most = max(r.columns[x][-1] for r in shown)
            everything: list[float] = []
            for style, (label, line) in enumerate(lines):
                runs = curves.where(**panel, **line)
                if runs:
                    values = [[sign * v for v in r.columns[metric]] for r in runs]
                    everything += [v for run in values for v in run]
                    apart = 0.02 * most or 1.0
                    plot_band(axis, runs[0].columns[x], values, label, style, apart=apart)
            still = all(r.columns[x][0] == r.columns[x][-1] for r in shown)
            axis.set_xlabel(f"{xlabel};\nends, set apart" if still else xlabel)
            if still and most:
                axis.set_xlim(0, 2 * most)
            elif still:  # stored data: nothing was drawn or scored
                axis.set_xlabel(f"no {xlabel};\nends, set apart")
                axis.set_xlim(-1, len(lines))
                axis.set_xticks([])
            if metric == "curve/reward" and ylim is not None:
                axis.set_ylim(*ylim)
            elif ylim is None:  # intervals of two seeds may be many times as wide as the values
                low, high = min(everything), max(everything)
                margin = 0.08 * (high - low) or 1.0
                axis.set_ylim(low - margin, high + margin)
            if row == 0:
                axis.set_title(title)
            if column == 0:
                axis.set_ylabel(ylabel)


def bars(
    axis: Any, names: Sequence[str], groups: Sequence[tuple[str, Sequence[float] | Tensor]]
) -> None:
    """Grouped bars, told apart by colour and hatching."""
    width = 0.8 / len(groups)
    for n, (label, values) in enumerate(groups):
        places = [i + (n - (len(groups) - 1) / 2) * width for i in range(len(names))]
        axis.bar(
            places, values, width * 0.92, label=label, color=STYLES[n]["color"],
            hatch=HATCHES[n], edgecolor="white", linewidth=0.5,
        )  # fmt: skip
    axis.set_xticks(range(len(names)), names)
    axis.grid(axis="x", visible=False)
