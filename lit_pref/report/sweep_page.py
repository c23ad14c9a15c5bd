"""``report.html`` of a sweep: one row per setting, mean and interval over seeds; all cells below.

Curves with the reward over steps, samples and queries, the reward-KL frontier, a heat map over
``data.reuse``. The page has no script and needs no network.
"""

from __future__ import annotations

import math
from html import escape
from urllib.parse import quote

from lit_pref.report.assets import STYLE
from lit_pref.report.axes import axis_rules, axis_switch
from lit_pref.report.charts import AXES, Chart, draw, legend
from lit_pref.report.heat_map import STYLE as HEAT
from lit_pref.report.heat_map import reuse_map
from lit_pref.report.statistics import Estimate
from lit_pref.report.sweep import SEED, Cell, Setting, SweepRecord
from lit_pref.report.sweep_curves import SweepCurves, read_curves
from lit_pref.report.sweep_table import measures, shown
from lit_pref.report.table import duration, number

__all__ = ["render_sweep"]

_STYLE = """
.scroll{overflow-x:auto;padding:6px 16px 10px}
.scroll table{width:100%}
th{text-align:left;font-size:12.5px;font-weight:600;color:var(--soft);padding:7px 20px 7px 0;
border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:bottom}
.scroll td{padding:6px 20px 6px 0;border-bottom:1px solid var(--grid);color:var(--ink);
overflow-wrap:normal}
.scroll tr:last-child td{border-bottom:0}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.num small{color:var(--soft)}
.scroll .why,.scroll .under td{color:var(--soft);overflow-wrap:anywhere}
.scroll .under td{padding-top:0}.scroll tr:has(+.under) td{border-bottom:0}
.scroll a{color:var(--key)}
@media (min-width:800px){.across2{grid-template-columns:1fr 1fr}}
.range{width:170px;height:18px;display:block}
.range .bar{stroke:var(--c0);stroke-width:2}.range .mean{fill:var(--c0)}
.range .one{fill:var(--c0);fill-opacity:.35}.range .base{stroke:var(--grid)}
"""


def render_sweep(sweep: SweepRecord) -> str:
    """The page as text."""
    varied = " x ".join(sweep.columns) or "one setting"
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    curves, (key, title) = read_curves(sweep), measures(sweep)[0]
    body = [_heading(sweep, varied), _comparison(sweep)]
    if curves is not None:
        body += [_curves(curves), _frontier(curves)]
    body += [reuse_map(sweep, key, title), _cells(sweep)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(varied)} - lit_pref sweep</title>"
        f"<style>{STYLE}{_STYLE}{HEAT}{axis_rules()}</style></head>\n"
        f'<body><div class="page">\n{chr(10).join(part for part in body if part)}\n'
        f"<footer>lit_pref sweep <code>{escape(sweep.path.resolve().name)}</code>; the same "
        "numbers with all digits are in table.csv.</footer></div></body></html>\n"
    )


def _heading(sweep: SweepRecord, varied: str) -> str:
    kinds = {"finished": "good", "failed": "bad", "interrupted": "bad", "missing": "bad"}
    status = "".join(
        f'<span class="status {kinds.get(name, "")}">{count} {escape(name)}</span>'
        for name, count in sweep.counts().items()
    )
    fixed = "".join(
        f"<span>{escape(key)} <b>{escape(value)}</b></span>" for key, value in sweep.fixed().items()
    )
    return (
        f'<header><p class="kicker">Sweep report</p><h1>{escape(varied)}</h1>'
        f'<div class="facts">{fixed}{status}</div></header>'
    )


# --------------------------------------------------------------------------- settings


def _comparison(sweep: SweepRecord) -> str:
    settings = sweep.settings()
    asked = measures(sweep)
    heads = "".join(f'<th class="num">{escape(name)}</th>' for _, name in asked[1:])
    names = "".join(f"<th>{escape(key)}</th>" for key in sweep.columns)
    key, title = asked[0]
    low, high = _range(settings, key)
    head = (
        f'<tr>{names}<th class="num">seeds</th><th class="num">{escape(title)}</th>'
        f"<th>{_scale(low, high)}</th>{heads}</tr>"
    )
    rows = "".join(_setting(setting, asked, low, high) for setting in settings)
    return (
        '<section><div class="head"><h2>Comparison</h2><p>Mean over the seeds that finished, with '
        "half the 95 % confidence interval of the mean (Student's t). In the drawing: the dot is "
        "the mean, the bar its interval (cut at the ends of the scale), faint dots are single "
        "seeds.</p></div>"
        f'<div class="card scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
        "</section>"
    )


def _setting(setting: Setting, asked: tuple[tuple[str, str], ...], low: float, high: float) -> str:
    values = "".join(f"<td>{escape(value)}</td>" for value in setting.values)
    key = asked[0][0]
    reward = setting.measure(key)
    ones = [float(c.summary[key]) for c in setting.cells if c.summary.get(key) is not None]
    cells = "".join(_measure(key, setting.measure(key)) for key, _ in asked[1:])
    row = (
        f'{values}<td class="num">{setting.finished} of {len(setting.cells)}</td>'
        f"{_measure(key, reward)}<td>{_drawing(reward, ones, low, high)}</td>{cells}"
    )
    notes = escape("; ".join(setting.notes()))
    if not notes:
        return f"<tr>{row}</tr>"
    width = len(setting.values) + 2 + len(asked)
    return f'<tr>{row}</tr><tr class="under"><td colspan="{width}">{notes}</td></tr>'


def _measure(key: str, value: Estimate) -> str:
    mean, _, half = shown(key, value).partition(" +- ")
    interval = f" <small>&plusmn;&nbsp;{escape(half)}</small>" if half else ""
    return f'<td class="num">{escape(mean)}{interval}</td>'


def _range(settings: list[Setting], key: str) -> tuple[float, float]:
    """The ends of the common scale: room around the single rewards, not around the intervals.

    The interval of two seeds is wide enough to hide every difference.
    """
    found = [c.summary.get(key) for s in settings for c in s.cells if c.status == "finished"]
    values = [float(v) for v in found if isinstance(v, (int, float))]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = 0.15 * (high - low) or 0.5
    return low - room, high + room


def _scale(low: float, high: float) -> str:
    apart = high - low
    if not 1e-4 <= apart < 1e7:
        return f"{escape(number(low))} to {escape(number(high))}"
    digits = max(1 - math.floor(math.log10(apart)), 0)  # two of the difference, for both ends
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _drawing(value: Estimate, ones: list[float], low: float, high: float) -> str:
    if value.mean is None:
        return ""

    def x(reward: float) -> float:
        return round(5 + 160 * min(max((reward - low) / (high - low), 0.0), 1.0), 1)

    half = value.half or 0.0
    dots = "".join(f'<circle class="one" cx="{x(one)}" cy="9" r="3"/>' for one in ones)
    words = f"final reward {shown('reward_final', value)}"
    return (
        f'<svg class="range" viewBox="0 0 170 18" role="img" aria-label="{escape(words)}">'
        '<path class="base" d="M5 9H165"/>'
        f'<path class="bar" d="M{x(value.mean - half)} 9H{x(value.mean + half)}"/>'
        f'{dots}<circle class="mean" cx="{x(value.mean)}" cy="9" r="4"/></svg>'
    )


# --------------------------------------------------------------------------- curves


def _curves(curves: SweepCurves) -> str:
    axes = [axis for axis in AXES if curves.table.present([axis[0]])]
    picks, switch = axis_switch(axes)
    notes = ["Bold: mean over the seeds that finished."]
    if curves.seeds > 1:
        notes.append("Thin: single seeds.")
    if len(curves.panels) > 1:
        notes.append("Grey: the means of the other panels. All panels have the same axes.")
    figures = "".join(_figure(curves, chart, axes) for chart in curves.charts())
    return (
        f'<section>{picks}<div class="head"><h2>{escape(curves.measure.capitalize())} on '
        f"validation prompts</h2>{switch}<p>{' '.join(notes)}</p></div>"
        f'<div class="grid3 across{curves.columns}">{figures}</div></section>'
    )


def _frontier(curves: SweepCurves) -> str:
    charts = curves.frontier()
    if not charts:
        return ""
    figures = "".join(_figure(curves, chart, []) for chart in charts)
    return (
        f'<section><div class="head"><h2>{escape(curves.measure.capitalize())} against KL</h2>'
        "<p>One marker per evaluation, mean over seeds, joined in the order of training. Up and "
        "to the left is better: more reward for the same distance to the reference.</p></div>"
        f'<div class="grid3 across{curves.columns}">{figures}</div></section>'
    )


def _figure(curves: SweepCurves, chart: Chart, axes: list[tuple[str, str, str]]) -> str:
    """A panel; its legend stands above the drawing and covers nothing."""
    plots = "".join(
        draw(chart, curves.table, axis=column, x_title=title)
        for column, title in ([chart.x] if chart.x else [axis[:2] for axis in axes])
    )
    keys = "".join(legend(series) for series in chart.series)
    return (
        f'<figure class="chart card"><h3>{escape(chart.title)}</h3><ul>{keys}</ul>{plots}</figure>'
    )


# --------------------------------------------------------------------------- cells


def _cells(sweep: SweepRecord) -> str:
    keys = [*sweep.columns, *([SEED] if SEED in sweep.varying else [])]
    heads = "".join(f"<th>{escape(key)}</th>" for key in keys)
    rows = "".join(_cell(sweep, cell, keys) for cell in sweep.cells)
    return (
        f'<section><div class="head"><h2>All cells</h2></div><div class="card scroll"><table>'
        f'<thead><tr><th class="num">cell</th>{heads}<th>status</th>'
        '<th class="num">final reward</th><th class="num">final KL</th>'
        '<th class="num">wall time</th><th>folder, reason</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _cell(sweep: SweepRecord, cell: Cell, keys: list[str]) -> str:
    values = "".join(f"<td>{escape(cell.overrides.get(key, ''))}</td>" for key in keys)
    kind = {"finished": "good", "refused": ""}.get(cell.status, "bad")
    summary = cell.summary
    where = escape(cell.folder)
    if cell.folder and (sweep.path / cell.folder / "report.html").is_file():
        where = f'<a href="{escape(quote(cell.folder))}/report.html">{where}</a>'
    numbers = "".join(
        f'<td class="num">{escape(text)}</td>'
        for text in (
            number(summary.get("reward_final")),
            number(summary.get("kl_final")),
            duration(summary.get("wall_seconds")) if summary else "-",
        )
    )
    reason = f" {escape(cell.reason)}" if cell.reason else ""
    return (
        f'<tr><td class="num">{cell.number}</td>{values}'
        f'<td><span class="{kind}">{escape(cell.status)}</span></td>{numbers}'
        f'<td class="why">{where}{reason}</td></tr>'
    )
