"""``report.html``: one run on one page that needs no network and no script.

The page holds all rows of ``metrics.csv`` once, as JSON. The curves are drawn here, once per x
axis; a radio button picks one by a style rule, so that the page works with scripts disabled. A
content security policy forbids every request and every script except ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from lit_pref.report import parts
from lit_pref.report.assets import SCRIPT, STYLE
from lit_pref.report.axes import axis_rules, axis_switch
from lit_pref.report.charts import AXES, Chart, Series, draw, is_noisy, legend
from lit_pref.report.read import MetricsTable, RunRecord, read_run
from lit_pref.types import Refusal

__all__ = ["render", "write_report"]

_ENDS = ("_low", "_high")
"""Ends of intervals: in the data and the tip of their chart, no chart of their own."""
_REWARD_ROUND = ("round/reward", "round/reward_mean", "round/reward/mean", "reward", "reward/mean")

# Title, unit of the y axis, floor and ceiling of the y axis, (column, label) of each line. Of
# several names for one thing, given as a tuple, the first that the file has is drawn.
_CHARTS = (
    ("True reward", "reward", None, None,
     (("val/reward", "validation prompts"), (_REWARD_ROUND, "training samples, mean of a round"))),
    ("Preference accuracy", "share of pairs", 0.0, 1.0,
     (("rewards/accuracies", "training pairs"),
      (("val/accuracy", "val/accuracies"), "held-out pairs"))),
    ("KL to the reference", "nats per response", 0.0, None,
     (("val/kl", "KL(policy, reference)"), (("round/kl", "kl"), "training samples"),
      ("val/forward_kl", "KL(reference, policy)"))),
    ("Response length", "tokens", 0.0, None,
     (("val/mean_length", "validation prompts, mean"),
      (("completions/mean_length", "round/mean_length"), "training samples, mean"),
      ("val/length_p10", "validation, 10 % quantile"),
      ("val/length_p90", "validation, 90 % quantile"))),
    ("Loss", "loss", None, None,
     (("loss", "training loss"), ("val/loss", "validation loss"))),
    ("Implicit rewards", "beta x log-ratio", None, None,
     (("rewards/margins", "margin"), ("rewards/chosen", "chosen"),
      ("rewards/rejected", "rejected"))),
    ("Displacement: log-prob against the reference", "nats per response", None, None,
     (("probe/chosen_change", "chosen of the probe"),
      ("probe/rejected_change", "rejected of the probe"),
      ("probe/samples_change", "own samples"), ("probe/greedy_change", "greedy continuation"))),
    ("Probe pairs", "share", 0.0, 1.0,
     (("probe/chosen_fell", "chosen fell"), ("probe/coverage", "chosen above the floor"))),
    ("Wins against the reference", "share of comparisons", 0.0, 1.0,
     (("val/win_rate", "by reward"), ("val/win_rate_lc", "by reward, at equal length"),
      ("val/judge_win_rate", "by the judge"),
      ("val/judge_win_rate_lc", "by the judge, at equal length"))),
    ("Entropy", "nats per token", 0.0, None,
     (("entropy", "training samples"), ("val/entropy", "validation, of sampled tokens"),
      ("val/next_token_entropy", "validation, of distributions"))),
    ("Diversity", "share that is distinct", 0.0, 1.0,
     (("val/distinct_responses", "responses"), ("val/distinct_1", "tokens"),
      ("val/distinct_2", "2-grams"), ("val/distinct_3", "3-grams"))),
    ("Gradient norm", "L2 norm before clipping", 0.0, None,
     (("grad_norm", "all parameters"), ("gradient/positive_norm", "part that raises log-probs"),
      ("gradient/negative_norm", "part that lowers them"))),
    ("Cosine of the two gradient parts", "cosine", -1.0, 1.0,
     (("gradient/cosine", "raising against lowering"),)),
)  # fmt: skip


def write_report(run_dir: str | Path, *, prompts: int = 10) -> Path:
    """Write ``report.html`` into a run directory, over an older one.

    Args:
        run_dir: the run directory; missing and damaged files are named on the page.
        prompts: how many prompts to show before and after.

    Returns:
        The path of the page.

    Raises:
        Refusal: ``run_dir`` is not a run directory, or cannot be written.
    """
    run = read_run(run_dir, prompts=prompts)
    target = run.path / "report.html"
    part = run.path / f".report.html.{os.getpid()}"
    try:
        part.write_bytes(render(run).encode("utf-8", errors="replace"))
        part.replace(target)
    except OSError as error:
        raise Refusal(
            f"expected to write {str(target)!r}, got {error.strerror!r}. "
            "Make the run directory writable, or copy it to a place that is."
        ) from error
    return target


def render(run: RunRecord) -> str:
    """The page as text."""
    table = _with_step(run.metrics)
    charts = _present(table)
    others = _others(table, charts)
    identity = run.identity()
    title = " ".join(identity[k] for k in ("objective", "data", "task", "model"))
    seed = identity["seed"]
    body = [
        parts.heading(run),
        parts.problems(run),
        parts.tiles(run),
        _curves(charts, others, table),
        parts.samples(run),
        parts.configuration(run),
        parts.versions(run),
        f"<footer>lit_pref report of <code>{escape(run.path.resolve().name)}</code>: "
        f"{len(table.rows):,} rows of metrics.csv, embedded in this page.</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)} seed {escape(seed)} - lit_pref</title>"
        f"<style>{STYLE}{axis_rules()}</style></head>\n"
        f'<body><div class="page">\n{chr(10).join(part for part in body if part)}\n</div>'
        '<div id="tip" role="status" hidden></div>\n'
        f'<script type="application/json" id="data">{_data(table)}</script>\n'
        f"<script>{SCRIPT}</script>\n</body></html>\n"
    )


# --------------------------------------------------------------------------- data and policy


def _data(table: MetricsTable) -> str:
    """All rows as JSON that cannot end its script element."""
    axes = [(column, button) for column, _, button in AXES if column in table.columns]
    content = {"axes": axes, "columns": table.columns, "rows": table.rows}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


# --------------------------------------------------------------------------- curves


def _with_step(table: MetricsTable) -> MetricsTable:
    """The table itself, or with the row number as ``step`` when it has no such column."""
    if not table.columns or "step" in table.columns:
        return table
    rows = [[number, *row] for number, row in enumerate(table.rows)]
    return MetricsTable(columns=["step", *table.columns], rows=rows)


def _present(table: MetricsTable) -> list[Chart]:
    """The charts with at least one line, and of those the lines that the file has."""
    charts = []
    for title, unit, floor, ceiling, lines in _CHARTS:
        series = []
        for slot, (names, label) in enumerate(lines):
            found = table.present((names,) if isinstance(names, str) else names)
            if found:
                series.append(Series(column=found[0], label=label, slot=slot))
        if series:
            charts.append(
                Chart(title=title, unit=unit, series=tuple(series), floor=floor, ceiling=ceiling)
            )
    if table.points("val/kl", "val/reward"):
        dots = Series(column="val/reward", label="one dot per evaluation", slot=0)
        x = ("val/kl", "KL to the initial policy, nats per response")
        charts.append(Chart(title="Reward against KL", unit="reward", series=(dots,), x=x))
    return charts


def _others(table: MetricsTable, charts: list[Chart]) -> list[Chart]:
    """A small chart for each further column, so that nothing logged is out of sight."""
    drawn = {s.column for c in charts for s in c.series}
    drawn |= (
        {"val/kl"}
        | {n for n in table.columns if n.endswith(_ENDS)}
        | {column for column, _, _ in AXES}
        | {"epoch"}
    )
    names = [n for n in table.present(table.columns) if n not in drawn]
    return [Chart(title=n, unit="", series=(Series(column=n, label=n, slot=0),)) for n in names]


def _curves(charts: list[Chart], others: list[Chart], table: MetricsTable) -> str:
    if not charts and not others:
        return (
            '<section><div class="head"><h2>Curves</h2>'
            "<p>No curves: metrics.csv has no row with a number.</p></div></section>"
        )
    axes = [axis for axis in AXES if axis[0] in table.columns] or [AXES[0]]
    picks, switch = axis_switch(axes)
    main = "".join(_figure(chart, table, axes, 180) for chart in charts)
    noisy = any(is_noisy(c, table.points(axes[0][0], s.column)) for c in charts for s in c.series)
    notes = "Faint: logged values. Bold: their moving mean. " if noisy else ""
    if any(n.endswith(_ENDS) for n in table.columns):
        notes += "Bands: 95 % confidence intervals over prompts."
    faint = f"<p>{notes.strip()}</p>" if notes else ""
    more = ""
    if others:
        small = "".join(_figure(chart, table, axes, 60) for chart in others)
        more = (
            f'<details class="card"><summary>All other logged metrics<span>{len(others)}</span>'
            f'</summary><div class="grid3">{small}</div></details>'
        )
    return (
        f'<section>{picks}<div class="head"><h2>Curves</h2>'
        f"{switch}{faint}</div>"
        f'<div class="grid3">{main}</div>{more}</section>'
    )


def _figure(
    chart: Chart, table: MetricsTable, axes: Sequence[tuple[str, str, str]], buckets: int
) -> str:
    plots = "".join(
        draw(chart, table, axis=column, x_title=title, buckets=buckets)
        for column, title in ([chart.x] if chart.x else [axis[:2] for axis in axes])
    )
    only = ' class="only"' if chart.title == chart.series[0].label else ""
    keys = "".join(legend(series) for series in chart.series)
    head = f"<h3>{escape(chart.title)}</h3><ul{only}>{keys}</ul>"
    return f'<figure class="chart card">{head}{plots}</figure>'
