"""Figures on the length tasks: their numbers and their pictures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_pref.app.paper import plots
from lit_pref.app.paper.bandits import (
    METHODS,
    REWARD,
    Numbers,
    RunFigure,
    mean,
    minus,
    spearman,
)
from lit_pref.app.paper.cells import Curves, Run

__all__ = ["FIGURES", "NAMES"]

CUT = "mean and 95 % interval over seeds; intervals that leave the frame are cut"
LENGTH, DISTANCE = "length (tokens)", "distance to the mode (tokens)"
TASKS = {
    "min": ("Min Length", LENGTH), "mode": ("Mode Length", DISTANCE),
    "skew": ("Skew Length", LENGTH),
}  # fmt: skip
NAMES = METHODS | {
    "on_dpo": "on-policy DPO", "off_dpo": "offline DPO", "ppo": "PPO", "rwr": "on-policy RWR",
    "reinforce": "REINFORCE",
}  # fmt: skip


def tokens(curves: Curves, step: int | None = None, **labels: str) -> list[float]:
    """Length or distance to the mode, by seed: the true reward with its sign changed."""
    return [-v for v in curves.at(REWARD, step, **labels)]


def start_of(curves: Curves, **labels: str) -> float:
    """The same before training; all seeds share their start."""
    return mean(tokens(curves, 0, **labels))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line."""
    mx, my = mean(x), mean(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / sum((a - mx) ** 2 for a in x)


def spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def over(top: float, bottom: float) -> float:
    """A ratio; of nothing to nothing it is not a number, of anything else to nothing infinite."""
    if bottom == 0:
        return math.nan if top == 0 else math.inf
    return top / bottom


# --------------------------------------------------------------------------- figures 5 to 8


def fig05_07_numbers(curves: Curves) -> Numbers:
    sizes = curves.labels("size")
    out: Numbers = {}
    for task in curves.labels("task"):
        ends = {b: tokens(curves, task=task, size=b) for b in sizes}
        means = [mean(ends[b]) for b in sizes]
        out[f"{task}_spearman"] = [spearman([float(b) for b in sizes], means)]
        out |= {f"{task}_length_{b}": v for b, v in ends.items()}
        out |= _to_half(curves, task, sizes)
    return out


def _to_half(curves: Curves, task: str, sizes: Sequence[str]) -> Numbers:
    half = -start_of(curves, task=task) / 2
    return {
        f"{task}_steps_to_half_{b}": curves.first_step(REWARD, half, task=task, size=b)
        for b in sizes
    }


def fig06_numbers(curves: Curves) -> Numbers:
    sizes = curves.labels("size")
    out: Numbers = {}
    for task in ("min", "mode"):
        start = start_of(curves, task=task)
        ends = {b: tokens(curves, task=task, size=b) for b in sizes}
        out |= {f"{task}_end_{b}": v for b, v in ends.items()}
        out[f"{task}_range"] = [spread([mean(v) for v in ends.values()]) / start]
    out["range_ratio"] = [over(out["mode_range"][0], out["min_range"][0])]
    return out


def fig08_numbers(curves: Curves) -> Numbers:
    sizes = curves.labels("size")
    logs = [math.log2(float(b)) for b in sizes]
    out: Numbers = {}
    for method in curves.labels("method"):
        for task in curves.labels("task"):
            labels = {"method": method, "task": task}
            start = start_of(curves, **labels)
            ends = [tokens(curves, None, **labels, size=b) for b in sizes]
            out[f"{method}_{task}_slope"] = [
                slope(logs, [e / start for e in by_size]) for by_size in zip(*ends, strict=True)
            ]
            out |= {f"{method}_{task}_end_{b}": v for b, v in zip(sizes, ends, strict=True)}
        flat, steep = (mean(out[f"{method}_{t}_slope"]) for t in ("mode", "min"))
        out[f"{method}_mode_over_min"] = [over(abs(flat), abs(steep))]
    return out


def sizes_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(f"B = {b}", {"size": b}) for b in curves.labels("size")]
    _draw_tasks(curves, path, title, lines)


def fig08_draw(curves: Curves, path: Path, title: str) -> None:
    sizes = curves.labels("size")
    tasks = curves.labels("task")
    with plots.figure(path, 1, len(tasks), title=title, size=2.6) as axes:
        for axis, task in zip(axes[0], tasks, strict=True):
            for style, method in enumerate(curves.labels("method")):
                by_size = [tokens(curves, method=method, task=task, size=b) for b in sizes]
                runs = [list(values) for values in zip(*by_size, strict=True)]
                plots.plot_seeds(axis, [float(b) for b in sizes], runs, NAMES[method], style)
            axis.set_xscale("log", base=2)
            axis.set_xticks([float(b) for b in sizes], sizes)
            axis.set_xlabel("B, responses of a round")
            axis.set_title(TASKS[task][0])
            axis.set_ylabel(textwrap.fill(f"final {TASKS[task][1]}", 22))
            most = max(-r.columns[REWARD][-1] for r in curves.where(task=task))
            axis.set_ylim(0, 1.15 * most)
        title = "at equal optimizer steps, samples and reward queries;\nhollow marks: single seeds"
        plots.legend(axes, title=f"{title} (their 95 % intervals are in the tables)")


def _draw_tasks(curves: Curves, path: Path, title: str, lines: Any, **labels: str) -> None:
    """A column per task; against optimizer steps, samples and reward queries."""
    tasks = curves.labels("task")
    with plots.figure(path, 3, len(tasks), title=title, size=2.3) as axes:
        for column, task in enumerate(tasks):
            name, ylabel = TASKS[task]
            most = max(-v for r in curves.where(task=task, **labels) for v in r.columns[REWARD])
            plots.curve_rows(
                axes[:, column : column + 1], curves, panels=[(name, {"task": task, **labels})],
                lines=lines, ylabel=ylabel, sign=-1.0, separate=True, ylim=(0, 1.05 * most),
            )  # fmt: skip
        plots.legend(axes, title=CUT)


# --------------------------------------------------------------------------- figure 11


def fig11_numbers(curves: Curves) -> Numbers:
    passes = curves.labels("passes")
    start = start_of(curves)
    out: Numbers = {}
    for method in curves.labels("method"):
        ends = {t: tokens(curves, method=method, passes=t) for t in passes}
        equal = _at_equal_steps(curves, method, passes)
        samples = _at_equal_samples(curves, method, passes)
        out |= {f"{method}_end_{t}": v for t, v in ends.items()}
        out |= {f"{method}_equal_steps_{t}": v for t, v in equal.items()}
        out |= {f"{method}_equal_samples_{t}": v for t, v in samples.items()}
    steps = [mean(out[f"ppo_equal_steps_{t}"]) for t in passes]
    clipped = [_clipped(curves, t) for t in passes]
    out["ppo_spread"] = [spread(steps) / start]
    out["ppo_spread_equal_samples"] = [
        spread([mean(out[f"ppo_equal_samples_{t}"]) for t in passes]) / start
    ]
    out["ppo_clip_trend"] = [spearman([float(t) for t in passes], clipped)]
    out |= {f"ppo_clipped_{t}": [v] for t, v in zip(passes, clipped, strict=True)}
    best = {t: mean(out[f"best_of_n_equal_samples_{t}"]) for t in passes}
    out["best_of_n_reuse_gain"] = [best["1"] - min(best[t] for t in passes if t != "1")]
    last = {t: mean(out[f"best_of_n_equal_steps_{t}"]) for t in passes}
    out["best_of_n_loss_of_8"] = [last["8"] - min(last[t] for t in passes if t != "8")]
    return out


def _at_equal_steps(curves: Curves, method: str, passes: Sequence[str]) -> Numbers:
    """At the last step that all T have reached."""
    last = min(r.columns["step"][-1] for r in curves.where(method=method))
    return {t: tokens(curves, int(last), method=method, passes=t) for t in passes}


def _at_equal_samples(curves: Curves, method: str, passes: Sequence[str]) -> Numbers:
    """With the last number of samples that all T have drawn, all passes over them done."""
    budget = min(r.columns["samples"][-1] for r in curves.where(method=method))
    out: Numbers = {}
    for t in passes:
        (run, *_) = curves.where(method=method, passes=t)
        points = zip(run.columns["step"], run.columns["samples"], strict=True)
        step = max(s for s, n in points if n <= budget)
        out[t] = tokens(curves, int(step), method=method, passes=t)
    return out


def _clipped(curves: Curves, passes: str) -> float:
    """Mean clip fraction of a run, over seeds."""
    shares = []
    for run in curves.where(method="ppo", passes=passes):
        shares += [v for v in run.columns["clip_ratio/region"] if math.isfinite(v)]
    return mean(shares)


def fig11_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(f"T = {t} passes", {"passes": t}) for t in curves.labels("passes")]
    panels = [(NAMES[m], {"method": m}) for m in curves.labels("method")]
    with plots.figure(path, 3, len(panels), title=title, size=2.3) as axes:
        plots.curve_rows(
            axes,
            curves,
            panels=panels,
            lines=lines,
            ylabel=LENGTH,
            sign=-1.0,
            separate=True,
            ylim=(0, 1.05 * start_of(curves)),
        )
        plots.legend(axes, title=CUT)


# --------------------------------------------------------------------------- figures 13 and 19


def fig13_numbers(curves: Curves) -> Numbers:
    out: Numbers = {}
    for task in curves.labels("task"):
        start = start_of(curves, task=task)
        end = {m: tokens(curves, task=task, method=m) for m in curves.labels("method")}
        plain = [min(a, b) for a, b in zip(end["best_of_n"], end["pref_ft"], strict=True)]
        for method in ("dpo", "best_of_n_negative"):
            gain = [v / start for v in minus(plain, end[method])]
            out[f"{task}_{method}_shorter"] = gain
        out |= {f"{task}_{m}": v for m, v in end.items()}
    return out


def fig19_numbers(curves: Curves) -> Numbers:
    methods = curves.labels("method")
    out: Numbers = {}
    for task in curves.labels("task"):
        start = start_of(curves, task=task)
        ends = {m: tokens(curves, task=task, method=m) for m in methods}
        out |= {f"{task}_{m}": v for m, v in ends.items()}
        quarter = {m: curves.first_step(REWARD, -start / 4, task=task, method=m) for m in methods}
        out |= {f"{task}_quarter_{m}": v for m, v in quarter.items()}
        means = {m: mean(v) for m, v in ends.items()}
        if task == "min":
            first = {m: mean(v) for m, v in quarter.items()}
            out["min_off_dpo_later"] = [_later(first["on_dpo"], first["off_dpo"])]
            out["min_rwr_later"] = [_later(first["off_dpo"], first["rwr"])]
        if task == "skew":
            out["skew_off_dpo_longer"] = minus(ends["off_dpo"], ends["on_dpo"])
            out["skew_ppo_longer"] = minus(ends["ppo"], ends["on_dpo"])
            out["skew_rwr_longer_than_ppo"] = minus(ends["rwr"], ends["ppo"])
        if task == "mode":
            out["mode_spread"] = [spread(list(means.values())) / start]
    return out


def _later(first: float, second: float) -> float:
    """Steps from the first to the second; inf where only the second never comes, -inf reversed."""
    if math.isinf(first):
        return -math.inf
    return second - first


def methods_draw(curves: Curves, path: Path, title: str) -> None:
    lines = [(NAMES[m], {"method": m}) for m in curves.labels("method")]
    _draw_tasks(curves, path, title, lines)


# --------------------------------------------------------------------------- wall clock


def time_numbers(curves: Curves) -> Numbers:
    methods = curves.labels("method")
    start = start_of(curves)
    steps = [s for r in curves.runs for s in r.columns["step"]]
    best = min(
        mean(tokens(curves, int(s), method=m)) for m in methods for s in dict.fromkeys(steps)
    )
    goal = start - 0.9 * (start - best)
    out: Numbers = {"goal_length": [goal]}
    for m in methods:
        out[f"{m}_steps"] = curves.first_step(REWARD, -goal, method=m)
        out[f"{m}_seconds"] = [
            _seconds_at(run, step)
            for run, step in zip(curves.where(method=m), out[f"{m}_steps"], strict=True)
        ]
    out["time_ratio"] = [mean(out["on_dpo_seconds"]) / mean(out["ppo_seconds"])]
    return out


def _seconds_at(run: Run, step: float) -> float:
    if math.isinf(step):
        return math.inf
    return run.columns["seconds"][run.columns["step"].index(step)]


def time_draw(curves: Curves, path: Path, title: str) -> None:
    methods = curves.labels("method")
    goal = time_numbers(curves)["goal_length"][0]
    with plots.figure(path, 1, 1, title=title, size=3.2) as axes:
        axis = axes[0][0]
        for style, m in enumerate(methods):
            runs = curves.where(method=m)
            seconds = [mean(v) for v in zip(*(r.columns["seconds"] for r in runs), strict=True)]
            values = [[-v for v in r.columns[REWARD]] for r in runs]
            plots.plot_band(axis, seconds, values, NAMES[m], style)
        axis.axhline(goal, color="0.4", linewidth=1, label="nine tenths of the way")
        axis.set_xlabel("processor time of training (s)")
        axis.set_ylabel(LENGTH)
        axis.set_ylim(bottom=0)
        plots.legend(axes)


FIGURES: dict[str, RunFigure] = {
    "fig05_07": RunFigure(fig05_07_numbers, sizes_draw),
    "fig06": RunFigure(fig06_numbers, sizes_draw),
    "fig08": RunFigure(fig08_numbers, fig08_draw),
    "fig11": RunFigure(fig11_numbers, fig11_draw),
    "fig13": RunFigure(fig13_numbers, methods_draw),
    "fig19": RunFigure(fig19_numbers, methods_draw),
    "wall_clock": RunFigure(time_numbers, time_draw),
}
"""Figures by name."""
