"""The short table that a run prints when it ends."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

__all__ = ["duration", "final_table", "measures_accuracy", "measures_reward", "number"]

NO_REWARD = "not measured: no reward was given, and the task has none of its own"
"""Said in place of the numbers."""

_FILES = (
    ("report", "report.html"),
    ("metrics", "metrics.csv"),
    ("samples", "samples.jsonl"),
    ("model", "export"),
    ("checkpoint", "checkpoints/last.ckpt"),
)


def number(value: Any, *, digits: int = 4) -> str:
    """A number for people: thousands separated, a few significant digits, ``-`` for none."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size and not 1e-4 <= size < 1e7:
        return f"{value:.{digits - 2}e}"
    whole = len(str(int(size))) if size >= 1 else 1
    decimals = max(digits - whole, 0)
    if 0 < size < 0.1:  # as many digits after the leading zeros
        decimals = digits - 2 - math.floor(math.log10(size))
    return f"{value:,.{decimals}f}"


def duration(seconds: Any) -> str:
    """Seconds for people: ``9.8 s``, ``3 min 05 s``, ``2 h 14 min``."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def final_table(
    summary: dict[str, Any], *, run_dir: str | Path | None = None, width: int = 80
) -> str:
    """The end of a run in a dozen aligned lines.

    Args:
        summary: the content of ``summary.json``; keys that are missing show ``-``.
        run_dir: where the files are, as the user should type it; those that exist are listed.
        width: columns of the terminal. Long values wrap under their own column; a path never does,
            so that it can be copied.
    """
    rows = [("run", _title(summary)), ("status", str(summary.get("status", "unknown")))]
    reason = summary.get("reason") or summary.get("error")
    if reason:
        rows.append(("reason", str(reason)))
    if measures_accuracy(summary):
        rows.append(("accuracy", _accuracy(summary)))
    else:
        rows += [("reward", reward_change(summary)), ("KL", _kl(summary))]
    rows += [
        ("steps", _steps(summary)),
        ("samples", number(summary.get("samples"))),
        ("queries", _queries(summary)),
        ("time", duration(summary.get("wall_seconds"))),
    ]
    files = [] if run_dir is None else [(n, Path(run_dir) / f) for n, f in _FILES]
    files = [(name, file) for name, file in files if file.exists()]
    label = max(len(name) for name, _ in (*rows, *files))
    room = max(width - label - 2, 20)
    lines = []
    for name, value in rows:
        parts = textwrap.wrap(value, room, break_long_words=False) or [""]
        lines.append(f"{name:<{label}}  {parts[0]}")
        lines += [" " * (label + 2) + part for part in parts[1:]]
    lines += [f"{name:<{label}}  {file}" for name, file in files]
    rule = "-" * min(width, max(len(line) for line in lines))
    return "\n".join([rule, *lines, rule])


def reward_change(summary: dict[str, Any]) -> str:
    """Reward before and after, with the difference when both are known."""
    if not measures_reward(summary):
        return NO_REWARD
    final = summary.get("reward_final")
    ends = _interval(summary.get("reward_final_interval"), final)
    change = _change(summary.get("reward_start"), final, ends)
    return change + "  true reward on the validation prompts"


def measures_reward(summary: dict[str, Any]) -> bool:
    """Whether a run that ended well measured a reward; one without a true reward has none."""
    known = [summary.get(name) for name in ("reward_start", "reward_final")]
    return summary.get("status") != "finished" or known != [None, None]


def measures_accuracy(summary: dict[str, Any]) -> bool:
    """Whether the run trained a reward model, which neither samples nor moves from a reference."""
    return summary.get("reward_final") is None and summary.get("accuracy_final") is not None


def _accuracy(summary: dict[str, Any]) -> str:
    change = _change(summary.get("accuracy_start"), summary.get("accuracy_final"))
    return change + "  of the held-out pairs in the right order"


def _change(start: Any, final: Any, ends: str = "") -> str:
    text = f"{number(start)} -> {number(final)}{ends}"
    if isinstance(start, (int, float)) and isinstance(final, (int, float)):
        difference = final - start
        sign = "+" if difference >= 0 else ""
        text += f"  ({sign}{number(float(difference))})"
    return text


def _title(summary: dict[str, Any]) -> str:
    known = [k for k in ("task", "model", "seed") if summary.get(k) is not None]
    name, data = summary.get("objective", "unknown objective"), summary.get("data")
    parts = [f"{name} on {data} data" if data is not None else str(name)]
    return ", ".join(parts + [f"{k} {summary[k]}" for k in known])


def _kl(summary: dict[str, Any]) -> str:
    value = summary.get("kl_final")
    ends = _interval(summary.get("kl_final_interval"), value)
    return f"{number(value)}{ends} nats per response, to the initial policy"


def _interval(ends: Any, value: Any) -> str:
    """A 95 % interval over the validation prompts; nothing where it has no width (exact KL)."""
    if not isinstance(ends, list) or value is None or ends[0] == ends[1]:
        return ""
    return f" [{number(ends[0])}, {number(ends[1])}]"


def _steps(summary: dict[str, Any]) -> str:
    text = number(summary.get("steps"))
    rounds, passes = summary.get("rounds"), summary.get("passes")
    if rounds is not None:
        text += f" in {number(rounds)} {_plural(rounds, 'round', 'rounds')}"
        text += "" if passes is None else f", {number(passes)} {_plural(passes, 'pass', 'passes')}"
    return text


def _plural(count: Any, one: str, many: str) -> str:
    return one if count == 1 else many


def _queries(summary: dict[str, Any]) -> str:
    return (
        f"{number(summary.get('reward_queries'))} of the reward in training, "
        f"{number(summary.get('eval_queries'))} in evaluation"
    )
