"""Figures on the gold reward: their numbers and their pictures."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from lit_pref.app.paper import plots
from lit_pref.app.paper.bandits import (
    REWARD,
    Numbers,
    RunFigure,
    mean,
    minus,
    standard_error,
)
from lit_pref.app.paper.cells import Curves
from lit_pref.app.paper.criteria import interval
from lit_pref.app.paper.lengths import NAMES

__all__ = ["FIGURES"]

GOLD = "gold reward (deviations\nof the corpus)"
CHOSEN, REJECTED = "probe/chosen_change", "probe/rejected_change"


# --------------------------------------------------------------------------- figure 9


def fig09_numbers(curves: Curves) -> Numbers:
    sizes = curves.labels("size")
    out: Numbers = {}
    for method in curves.labels("method"):
        ends = {b: curves.at(REWARD, method=method, size=b) for b in sizes}
        means = [mean(ends[b]) for b in sizes]
        first, last = ends[sizes[0]], ends[sizes[-1]]
        error = math.hypot(standard_error(first), standard_error(last))
        start = mean(curves.at(REWARD, 0, method=method))
        out |= {
            f"{method}_least_drop": [min(a - b for a, b in itertools.pairwise(means))],
            f"{method}_apart": [(means[0] - means[-1]) / max(error, 1e-9)],
            f"{method}_least_gain": [min(means) - start],
        }
        out |= {f"{method}_gold_{b}": v for b, v in ends.items()}
        out |= {f"{method}_kl_{b}": curves.at("curve/kl", method=method, size=b) for b in sizes}
    out["least_gain"] = [min(out[f"{m}_least_gain"][0] for m in curves.labels("method"))]
    return out


def fig09_draw(curves: Curves, path: Path, title: str) -> None:
    methods = curves.labels("method")
    lines = [(f"B = {b}", {"size": b}) for b in curves.labels("size")]
    panels = [(NAMES[m], {"method": m}) for m in methods]
    with plots.figure(path, 4, len(methods), title=title, size=2.1) as axes:
        plots.curve_rows(
            axes[:3], curves, panels=panels, lines=lines, ylabel=GOLD, separate=True, ylim=None
        )
        for axis, (_, panel) in zip(axes[3], panels, strict=True):
            for style, (label, line) in enumerate(lines):
                look = plots.STYLES[style]
                for n, run in enumerate(curves.where(**panel, **line)):
                    axis.plot(
                        run.columns["curve/kl"], run.columns[REWARD], linestyle="none",
                        marker=look["marker"], color=look["color"], alpha=0.6,
                        label=label if n == 0 else None,
                    )  # fmt: skip
            axis.set_xlabel("KL to the start (nats per response)")
        axes[3][0].set_ylabel(GOLD)
        plots.legend(axes)


# --------------------------------------------------------------------------- figure 14


def fig14_numbers(curves: Curves) -> Numbers:
    start = mean(curves.at(REWARD, 0, method="dpo"))
    ends = {m: curves.at(REWARD, method=m) for m in ("pref_ft", "dpo")}
    ends["untrained"] = curves.at(REWARD, 0, method="untrained")
    gain = {m: [v - start for v in ends[m]] for m in ends}
    tenth = [p + 0.1 * d for p, d in zip(gain["pref_ft"], gain["dpo"], strict=True)]
    return {
        "dpo_minus_pref_ft": minus(gain["dpo"], gain["pref_ft"]),
        "pref_ft_not_worse": tenth,
        "start": [start],
        **{f"{m}_gain": v for m, v in gain.items()},
    }


def fig14_draw(curves: Curves, path: Path, title: str) -> None:
    names = {"untrained": "untrained", "pref_ft": NAMES["pref_ft"], "dpo": NAMES["dpo"]}
    numbers = fig14_numbers(curves)
    lines = [(NAMES[m], {"method": m}) for m in ("pref_ft", "dpo")]
    with plots.figure(path, 1, 2, title=title, size=2.8) as axes:
        left, right = axes[0]
        for place, m in enumerate(names):
            middle, low, _ = interval(numbers[f"{m}_gain"])
            error = None if low is None else [middle - low]
            left.bar(
                [place], [middle], 0.6, yerr=error, capsize=4, edgecolor="white",
                color=plots.STYLES[place]["color"], hatch=plots.HATCHES[place],
            )  # fmt: skip
        left.axhline(0, color="0.3", linewidth=0.8)
        left.set_xticks(range(len(names)), list(names.values()))
        left.set_ylabel("gold reward minus that of the start\n(deviations of the corpus)")
        left.set_title("after training")
        plots.curve_rows(
            [[right]], curves, panels=[("offline, no samples and no queries", {})], lines=lines,
            ylabel=GOLD, separate=True, ylim=None,
        )  # fmt: skip
        plots.legend(axes)


# --------------------------------------------------------------------------- figure 17


def fig17_numbers(curves: Curves) -> Numbers:
    out: Numbers = {}
    for pairs in curves.labels("pairs"):
        gaps = {}
        for m in curves.labels("method"):
            chosen = curves.at(CHOSEN, pairs=pairs, method=m)
            rejected = curves.at(REJECTED, pairs=pairs, method=m)
            out |= {f"{pairs}_{m}_chosen": chosen, f"{pairs}_{m}_rejected": rejected}
            gaps[m] = minus(chosen, rejected)
            out[f"{pairs}_{m}_gap"] = gaps[m]
            out[f"{pairs}_{m}_gold"] = curves.at(REWARD, pairs=pairs, method=m)
        out[f"{pairs}_gap_ratio"] = [_ratio(mean(gaps["dpo"]), mean(gaps["pref_ft"]))]
        ends = [mean(out[f"{pairs}_pref_ft_{side}"]) for side in ("chosen", "rejected")]
        out[f"{pairs}_pref_ft_least_rise"] = [min(ends)]
        ends = [mean(out[f"{pairs}_dpo_{side}"]) for side in ("chosen", "rejected")]
        out[f"{pairs}_dpo_largest"] = [max(ends)]
    return out


def _ratio(large: float, small: float) -> float:
    """Of two gaps; a gap of the wrong sign is none, and any gap is infinitely more."""
    return large / small if small > 0 else math.copysign(math.inf, large)


def fig17_draw(curves: Curves, path: Path, title: str) -> None:
    names = {"one": "pairs of one model", "two": "pairs of two models"}
    sides = (("chosen", CHOSEN), ("rejected", REJECTED))
    pairs = curves.labels("pairs")
    with plots.figure(path, 2, len(pairs), title=title, size=2.6) as axes:
        for row, m in enumerate(("pref_ft", "dpo")):
            for column, each in enumerate(pairs):
                axis = axes[row][column]
                runs = curves.where(pairs=each, method=m)
                for style, (side, metric) in enumerate(sides):
                    values = [r.columns[metric] for r in runs]
                    plots.plot_band(axis, runs[0].columns["step"], values, side, style)
                axis.set_title(f"{NAMES[m]}, {names[each]}")
                axis.set_xlabel("optimizer steps")
                if column == 0:
                    axis.set_ylabel("log-ratio to the start (nats)")
                axis.axhline(0, color="0.3", linewidth=0.8)
        plots.legend(axes, title="offline: no samples and no reward queries are used")


FIGURES: dict[str, RunFigure] = {
    "fig09": RunFigure(fig09_numbers, fig09_draw),
    "fig14": RunFigure(fig14_numbers, fig14_draw),
    "fig17": RunFigure(fig17_numbers, fig17_draw),
}
"""Figures by name."""
