"""Figures that are runs of the bandits: their numbers and their pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pref.app.paper import plots
from lit_pref.app.paper.cells import Curves
from lit_pref.functional.bandit import (
    action_rewards,
    mean_distribution,
    reference_probs,
    reward_distribution,
)

__all__ = [
    "FIGURES", "METHODS", "REWARD", "Numbers", "RunFigure", "mean", "minus", "spearman",
    "standard_error",
]  # fmt: skip

Numbers = dict[str, list[float]]
REWARD = "curve/reward"
PANELS = [
    ("R1 (peak unlikely under the reference)", {"reward": "r1"}),
    ("R2 (peak at the reference's mode)", {"reward": "r2"}),
]


@dataclass(frozen=True)
class RunFigure:
    """A figure made of runs.

    Attributes:
        numbers: what its criterion speaks of, from the curves.
        draw: makes the picture.
    """

    numbers: Callable[[Curves], Numbers]
    draw: Callable[[Curves, Path, str], None]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def minus(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Paired over seeds."""
    return [a - b for a, b in zip(first, second, strict=True)]


def standard_error(values: Sequence[float]) -> float:
    centre = mean(values)
    spread = sum((v - centre) ** 2 for v in values) / max(len(values) - 1, 1)
    return math.sqrt(spread / len(values))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; ties share their mean rank."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [
            sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2
            for value in values
        ]

    a, b = ranks(x), ranks(y)
    ma, mb = mean(a), mean(b)
    top = sum((i - ma) * (j - mb) for i, j in zip(a, b, strict=True))
    bottom = math.sqrt(sum((i - ma) ** 2 for i in a) * sum((j - mb) ** 2 for j in b))
    return top / bottom if bottom else 0.0


# --------------------------------------------------------------------------- figure 4


def fig04_numbers(curves: Curves) -> Numbers:
    sizes = curves.labels("prompts")
    ends = {p: curves.at(REWARD, reward="r1", prompts=p) for p in sizes}
    means = [mean(ends[p]) for p in sizes]
    out = {
        "r1_gap": minus(ends[sizes[0]], ends[sizes[-1]]),
        "r1_least_drop": [min(a - b for a, b in itertools.pairwise(means))],
    }
    if "r2" in curves.labels("reward"):
        second = [mean(curves.at(REWARD, reward="r2", prompts=p)) for p in sizes]
        out |= {"r2_least": [min(second)], "r2_range": [max(second) - min(second)]}
        out["range_ratio"] = [(max(second) - min(second)) / max(max(means) - min(means), 1e-9)]
    return out


def fig04_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(f"{p} prompts a round", {"prompts": p}) for p in curves.labels("prompts")]
    _draw_curves(curves, path, title, lines)


def _draw_curves(curves: Curves, path: Path, title: str, lines: Any, **more: Any) -> None:
    panels = more.pop("panels", [p for p in PANELS if curves.where(**p[1])])
    with plots.figure(path, 2, len(panels), title=title, size=2.6) as axes:
        plots.curve_rows(axes, curves, panels=panels, lines=lines, **more)
        least = min(r.columns["samples"][0] for r in curves.runs)
        most = max(r.columns["samples"][-1] for r in curves.runs)
        for axis in axes[1] if most > 5000 else []:
            axis.set_xscale("log")
            axis.set_xlim(left=max(least, 10))
        plots.legend(axes)


# --------------------------------------------------------------------------- figure 10


def fig10_numbers(curves: Curves) -> Numbers:
    passes = curves.labels("passes")
    ends = [curves.at(REWARD, reward="r1", passes=t) for t in passes]
    changes = [minus(b, a) for a, b in itertools.pairwise(ends)]
    scaled = [mean(c) / max(standard_error(c), 1e-9) for c in changes]
    equal = []
    for t in (t for t in passes if int(t) >= 5):
        early = _at_or_before(curves, 300 // int(t), reward="r1", passes="1")
        equal.append(minus(curves.at(REWARD, reward="r1", passes=t), early))
    second = [mean(curves.at(REWARD, reward="r2", passes=t)) for t in passes]
    return {
        "r1_inversion": [min(max(scaled), max(-s for s in scaled))],
        "r1_equal_samples_least": [min(mean(e) for e in equal)],
        "r2_least": [min(second)],
    }


def _at_or_before(curves: Curves, step: int, **labels: str) -> list[float]:
    """Values at the last measured step that is not after ``step`` samples' worth."""
    run = curves.where(**labels)[0]
    later = [s for s in run.columns["step"] if s >= step]
    return curves.at(REWARD, int(later[0]), **labels)


def fig10_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(f"T = {t} passes", {"passes": t}) for t in curves.labels("passes")]
    _draw_curves(curves, path, title, lines)


# --------------------------------------------------------------------------- figures 12, 13, C

METHODS = {
    "best_of_n": "Best-of-N", "best_of_n_negative": "Best-of-N + negative term", "ipo": "IPO",
    "dpo": "DPO", "pref_ft": "Pref-FT", "dpo_position": "DPO per position",
}  # fmt: skip


def fig12_numbers(curves: Curves) -> Numbers:
    out: Numbers = {}
    for reward in curves.labels("reward"):
        best = curves.at(REWARD, reward=reward, method="best_of_n")
        ipo = curves.at(REWARD, reward=reward, method="ipo")
        start = curves.at(REWARD, 0, reward=reward, method="ipo")
        out |= {
            f"{reward}_best_of_n": best,
            f"{reward}_ipo": ipo,
            f"{reward}_gap": minus(ipo, best),
            f"{reward}_mean_distance": [abs(mean(ipo) - mean(best))],
            f"{reward}_least_gain": [min(mean(minus(ipo, start)), mean(minus(best, start)))],
        }
    if {"r1", "r2"} <= set(curves.labels("reward")):
        out["gap_r1_minus_r2"] = [mean(out["r1_gap"]) - mean(out["r2_gap"])]
    ceiling = reward_distribution(action_rewards("r1"), reference_probs()).best_of(10)
    if "r1_best_of_n" in out:
        out["r1_closed_form_distance"] = [abs(mean(out["r1_best_of_n"]) - ceiling)]
    return out


def fig12_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(METHODS[m], {"method": m}) for m in curves.labels("method")]
    _draw_curves(curves, path, title, lines)


def fig12_tokens_numbers(curves: Curves) -> Numbers:
    out = fig12_numbers(curves)
    ceiling = mean_distribution(action_rewards("r1"), reference_probs()).best_of(10)
    out["r1_closed_form_distance"] = [abs(mean(out["r1_best_of_n"]) - ceiling)]
    return out


def fig13_numbers(curves: Curves) -> Numbers:
    end = {m: curves.at(REWARD, reward="r1", method=m) for m in curves.labels("method")}
    plain = [max(a, b) for a, b in zip(end["best_of_n"], end["pref_ft"], strict=True)]
    return {
        "r1_dpo_over_positive": minus(end["dpo"], plain),
        "r1_negative_term_over_positive": minus(end["best_of_n_negative"], plain),
        **{f"r1_{m}": v for m, v in end.items()},
        **{f"r2_{m}": curves.at(REWARD, reward="r2", method=m) for m in end},
    }


def widths_numbers(curves: Curves) -> Numbers:
    gap = {
        w: minus(
            curves.at(REWARD, reward=w, method="ipo"),
            curves.at(REWARD, reward=w, method="best_of_n"),
        )
        for w in curves.labels("reward")
    }
    return {
        **{f"gap_{w}": v for w, v in gap.items()},
        "first_shrinks": minus(gap["r1"], gap["r1_wide"]),
        "second_shrinks": minus(gap["r1_wide"], gap["r1_wider"]),
    }


def widths_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(METHODS[m], {"method": m}) for m in curves.labels("method")]
    width = {"r1": "width 10", "r1_wide": "width 20", "r1_wider": "width 30"}
    panels = [(width[w], {"reward": w}) for w in curves.labels("reward")]
    _draw_curves(curves, path, title, lines, panels=panels)


# --------------------------------------------------------------------------- figures 15, 16

CLEAR, ALL = "curve/h_margin_clear", "curve/h_margin_all"


def fig15_numbers(curves: Curves) -> Numbers:
    out: Numbers = {}
    for reward in curves.labels("reward"):
        for step in (100, 200):
            for name, metric in (("clear", CLEAR), ("all", ALL)):
                ipo = mean(curves.at(metric, step, reward=reward, method="ipo"))
                best = mean(curves.at(metric, step, reward=reward, method="best_of_n"))
                out[f"{reward}_{name}_ratio_{step}"] = [ipo / best]
        out[f"{reward}_ipo_clear"] = curves.at(CLEAR, 200, reward=reward, method="ipo")
        out[f"{reward}_best_of_n_clear"] = curves.at(CLEAR, 200, reward=reward, method="best_of_n")
    return out


def fig15_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(METHODS[m], {"method": m}) for m in curves.labels("method")]
    with plots.figure(path, 2, 2, title=title, size=2.6) as axes:
        for row, (metric, what) in enumerate(((CLEAR, "pairs with gap > 0.2"), (ALL, "all pairs"))):
            plots.curve_rows(
                axes[row : row + 1], curves, panels=[(f"{p[0]}:\n{what}", p[1]) for p in PANELS],
                lines=lines, metric=metric, ylabel="margin of h (nats)",
            )  # fmt: skip
        plots.legend(axes)


def fig16_numbers(curves: Curves) -> Numbers:
    prompts = curves.labels("prompts")
    out: Numbers = {}
    for reward in curves.labels("reward"):
        chosen = {p: curves.at("curve/h_chosen", reward=reward, prompts=p) for p in prompts}
        rejected = [mean(curves.at("curve/h_rejected", reward=reward, prompts=p)) for p in prompts]
        means = [mean(chosen[p]) for p in prompts]
        few = [m for p, m in zip(prompts, means, strict=True) if int(p) <= 10]
        many = [m for p, m in zip(prompts, means, strict=True) if int(p) >= 100]
        out |= {f"{reward}_h_chosen_{p}": v for p, v in chosen.items()}
        out |= {
            f"{reward}_few_least": [min(few)],
            f"{reward}_many_largest": [max(many)],
            f"{reward}_trend": [spearman([float(p) for p in prompts], means)],
            f"{reward}_rejected_largest": [max(rejected)],
        }
    return out


def fig16_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(f"{p} prompts", {"prompts": p}) for p in curves.labels("prompts")]
    with plots.figure(path, 2, 2, title=title, size=2.6) as axes:
        for row, name in enumerate(("chosen", "rejected")):
            plots.curve_rows(
                axes[row : row + 1], curves, panels=[(f"{p[0]}:\n{name}", p[1]) for p in PANELS],
                lines=lines, metric=f"curve/h_{name}", ylabel="implicit reward h (nats)",
            )  # fmt: skip
        plots.legend(axes, title="offline IPO; all its samples are drawn before the first step")


# --------------------------------------------------------------------------- figure 18


def fig18_numbers(curves: Curves) -> Numbers:
    out: Numbers = {}
    for reward in curves.labels("reward"):
        end = {m: curves.at(REWARD, reward=reward, method=m) for m in curves.labels("method")}
        out |= {f"{reward}_{m}": v for m, v in end.items()}
        out[f"{reward}_least"] = [min(mean(v) for v in end.values())]
        out[f"{reward}_on_minus_off_best_of_n"] = minus(end["on_best_of_n"], end["off_best_of_n"])
        first = {m: curves.first_step(REWARD, 0.9, reward=reward, method=m) for m in end}
        out[f"{reward}_speed_ratio"] = [mean(first["on_ipo"]) / mean(first["on_best_of_n"])]
        never = [math.isinf(s) for m in ("off_ipo", "off_best_of_n") for s in first[m]]
        out[f"{reward}_offline_never"] = [float(all(never))]
    return out


SOURCES = {
    "on_ipo": "on-policy IPO", "off_ipo": "offline IPO",
    "on_best_of_n": "on-policy Best-of-N", "off_best_of_n": "offline Best-of-N",
}  # fmt: skip


def fig18_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(SOURCES[m], {"method": m}) for m in curves.labels("method")]
    _draw_curves(curves, path, title, lines)


# --------------------------------------------------------------------------- ablation A


def negatives_numbers(curves: Curves) -> Numbers:
    kept = curves.at(REWARD, update="kept")
    return {
        "kept_minus_removed": minus(kept, curves.at(REWARD, update="removed")),
        "kept_minus_shifted": minus(kept, curves.at(REWARD, update="shifted")),
        **{f"reward_{u}": curves.at(REWARD, update=u) for u in curves.labels("update")},
    }


def negatives_draw(curves: Curves, path: Path, title: str) -> None:
    names = {
        "kept": "as published", "removed": "negative part removed",
        "shifted": "advantages shifted",
    }  # fmt: skip
    lines = [(names[u], {"update": u}) for u in curves.labels("update")]
    _draw_curves(curves, path, title, lines, panels=[("R1, token bandit", {})])


# --------------------------------------------------------------------------- ablation B


def legacy_numbers(curves: Curves) -> Numbers:
    out: Numbers = {}
    for code in curves.labels("code"):
        end = {m: curves.at(REWARD, code=code, method=m) for m in curves.labels("method")}
        out |= {f"{code}_{m}": v for m, v in end.items()}
        out[f"{code}_gap"] = minus(end["ipo"], end["best_of_n"])
        out[f"{code}_dpo_sequence_minus_position"] = minus(end["dpo"], end["dpo_position"])
    return out


def legacy_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(METHODS[m], {"method": m}) for m in curves.labels("method")]
    panels = [
        ("correct log-prob and reward", {"code": "correct"}),
        ("the reference code's", {"code": "legacy"}),
    ]
    _draw_curves(curves, path, title, lines, panels=panels)


FIGURES: dict[str, RunFigure] = {
    "fig04": RunFigure(fig04_numbers, fig04_draw),
    "fig04_tokens": RunFigure(fig04_numbers, fig04_draw),
    "fig10": RunFigure(fig10_numbers, fig10_draw),
    "fig12": RunFigure(fig12_numbers, fig12_draw),
    "fig12_tokens": RunFigure(fig12_tokens_numbers, fig12_draw),
    "fig13_tokens": RunFigure(fig13_numbers, fig12_draw),
    "fig15": RunFigure(fig15_numbers, fig15_draw),
    "fig16": RunFigure(fig16_numbers, fig16_draw),
    "fig18": RunFigure(fig18_numbers, fig18_draw),
    "fig18_tokens": RunFigure(fig18_numbers, fig18_draw),
    "ablation_a": RunFigure(negatives_numbers, negatives_draw),
    "ablation_b": RunFigure(legacy_numbers, legacy_draw),
    "ablation_c": RunFigure(widths_numbers, widths_draw),
}
"""Figures by name; the length tasks and the gold reward add theirs in their own module."""
