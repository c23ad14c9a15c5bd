"""How the final reward depends on reuse: a table whose cells are shaded by their number."""

from __future__ import annotations

from html import escape

from lit_pref.report.statistics import Estimate
from lit_pref.report.sweep import Setting, SweepRecord
from lit_pref.report.table import number

__all__ = ["STYLE", "reuse_map", "shade"]

REUSE = "data.reuse"
# A scale of one hue whose lightness alone tells the order: it survives greyscale and any kind of
# colour blindness. Light to dark, in sRGB.
_SCALE = ((237, 244, 250), (158, 197, 227), (64, 132, 188), (8, 56, 110))

STYLE = """
.heat td,.heat th{text-align:center;vertical-align:middle;border:2px solid var(--card);
padding:9px 14px;min-width:104px}
.heat th[scope=row]{text-align:left;color:var(--ink);white-space:nowrap}
.heat .cell{font-variant-numeric:tabular-nums;font-weight:600}
.heat .cell small{display:block;font-weight:400;font-size:11.5px}
.heat .none{color:var(--soft);background:repeating-linear-gradient(45deg,var(--grid) 0 5px,
transparent 5px 10px);font-style:italic}
.scale{display:flex;align-items:center;gap:8px;padding:4px 16px 14px;font-size:12.5px;
color:var(--soft);font-variant-numeric:tabular-nums}
.scale i{display:inline-block;width:160px;height:12px;border-radius:3px}
"""


def reuse_map(sweep: SweepRecord, key: str, title: str) -> str:
    """The section, or nothing where ``data.reuse`` has one value.

    Args:
        sweep: the sweep.
        key: number of ``summary.json`` that shades the cells.
        title: what that is.
    """
    if REUSE not in sweep.columns:
        return ""
    place = sweep.columns.index(REUSE)
    settings = sweep.settings()
    reuses = sorted({s.values[place] for s in settings}, key=_order)
    rows: dict[tuple[str, ...], dict[str, Setting]] = {}
    for setting in settings:
        rest = tuple(v for n, v in enumerate(setting.values) if n != place)
        rows.setdefault(rest, {})[setting.values[place]] = setting
    means = [m for s in settings if (m := s.measure(key).mean) is not None]
    if not means:
        return ""
    low, high = min(means), max(means)
    head = "".join(f'<th scope="col">{escape(r or "default")}</th>' for r in reuses)
    body = ""
    for rest, cells in rows.items():
        name = ", ".join(v or "default" for v in rest) or title
        shown = "".join(_cell(cells.get(r), key, low, high) for r in reuses)
        body += f'<tr><th scope="row">{escape(name)}</th>{shown}</tr>'
    others = ", ".join(k for k in sweep.columns if k != REUSE) or "setting"
    colours = ",".join(f"rgb{c}" for c in _SCALE)
    return (
        '<section><div class="head"><h2>Sample reuse</h2>'
        f"<p>{escape(title.capitalize())}, mean over seeds with half the 95 % interval; passes "
        f"over each round (data.reuse) from left to right, {escape(others)} from top to bottom. "
        'Darker is larger.</p></div><div class="card"><div class="scroll"><table class="heat">'
        f'<thead><tr><th scope="col">{escape(others)}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f'<div class="scale">{escape(number(low, digits=3))}'
        f'<i style="background:linear-gradient(90deg,{colours})"></i>'
        f"{escape(number(high, digits=3))} {escape(title)}</div></div></section>"
    )


def _cell(setting: Setting | None, key: str, low: float, high: float) -> str:
    if setting is None:
        return '<td class="none">not asked for</td>'
    value = setting.measure(key)
    if value.mean is None:
        status = setting.cells[0].status if setting.cells else "missing"
        reason = escape(setting.cells[0].reason if setting.cells else "")
        return f'<td class="none" title="{reason}">{escape(status)}</td>'
    colour, ink = shade(value.mean, low, high)
    return (
        f'<td class="cell" style="background:{colour};color:{ink}">'
        f"{escape(number(value.mean, digits=3))}{_half(value)}</td>"
    )


def _half(value: Estimate) -> str:
    if value.half is None:
        return ""
    return f"<small>&plusmn; {escape(number(value.half, digits=2))}</small>"


def shade(value: float, low: float, high: float) -> tuple[str, str]:
    """Background and text colour of a number on the scale; the text has the larger contrast."""
    share = 0.5 if high <= low else min(max((value - low) / (high - low), 0.0), 1.0)
    at = share * (len(_SCALE) - 1)
    first = min(int(at), len(_SCALE) - 2)
    mix = [
        round(a + (at - first) * (b - a))
        for a, b in zip(_SCALE[first], _SCALE[first + 1], strict=True)
    ]
    # Contrast with white is (1.05) / (L + 0.05), with near-black (L + 0.05) / 0.0605.
    light = luminance(mix)
    ink = "#fff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.0605 else "#16202c"
    return f"rgb({mix[0]},{mix[1]},{mix[2]})", ink


def luminance(rgb: list[int] | tuple[int, ...]) -> float:
    """Relative luminance of an sRGB colour, as WCAG defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _order(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value
