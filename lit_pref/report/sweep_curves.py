"""The curves of a sweep: evaluations of each setting, averaged over seeds, in comparable panels.

A panel (facet) holds at most six lines, which differ by colour, dash and marker. What does not fit
into one panel is spread over several with the same axes, the other panels' lines in grey behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_pref.report.charts import AXES, Chart, Series
from lit_pref.report.read import MetricsTable, read_metrics
from lit_pref.report.sweep import Setting, SweepRecord

__all__ = ["Panel", "SweepCurves", "read_curves"]

LINES = 6
"""Most lines of a panel: as many as stay apart in greyscale."""
KL = "val/kl"
_MEASURED = (("val/reward", "true reward"), ("val/accuracy", "accuracy on held-out pairs"))
_X = tuple(column for column, _, _ in AXES)


@dataclass(kw_only=True, slots=True)
class Panel:
    """Some settings that share a drawing.

    Attributes:
        title: what they have in common.
        lines: (what tells the line from the others, index of its setting, its style): equal
            names have equal styles in all panels.
    """

    title: str
    lines: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class SweepCurves:
    """Evaluations of a whole sweep as one table.

    Attributes:
        table: a row per evaluation: x axes, KL, and one column per setting (``m<i>``, the mean
            over seeds) and per cell (``c<i>.<seed>``).
        panels: how settings are spread over drawings.
        measure: title of what is measured, with its unit.
        seeds: most seeds of a setting.
    """

    table: MetricsTable
    panels: list[Panel]
    measure: str
    seeds: int

    @property
    def columns(self) -> int:
        """Panels side by side, so that no row holds a single one."""
        return 2 if len(self.panels) in (2, 4) else 3

    def charts(self) -> list[Chart]:
        """The measure over the x axis that is picked."""
        reach = {x: self._range([x]) for x in _X}
        return [self._chart(panel, reach=reach) for panel in self.panels]

    def frontier(self) -> list[Chart]:
        """The measure over KL; none where no KL was measured."""
        if not self.table.present([KL]):
            return []
        x = (KL, "KL to the reference, nats per response")
        return [self._chart(p, x=x, reach={KL: self._range([KL])}) for p in self.panels]

    def _chart(
        self,
        panel: Panel,
        *,
        reach: dict[str, tuple[float, float]],
        x: tuple[str, str] | None = None,
    ) -> Chart:
        slots = {index: slot for _, index, slot in panel.lines}
        means = [c for c in self.table.columns if c.startswith("m")]
        every = [c for c in self.table.columns if c[0] in "mc" and c[1:2].isdigit()]
        low, high = self._range(every)
        seeds = [
            Series(column=c, label="", slot=slots[int(c[1:].split(".")[0])])
            for c in every
            if c.startswith("c") and int(c[1:].split(".")[0]) in slots
        ]
        return Chart(
            title=panel.title,
            unit=self.measure,
            series=tuple(
                Series(column=f"m{index}", label=label, slot=slot)
                for label, index, slot in panel.lines
            ),
            floor=low,
            ceiling=high,
            x=x,
            faint=() if x else tuple(seeds),
            behind=tuple(
                Series(column=c, label="", slot=0) for c in means if int(c[1:]) not in slots
            ),
            smooth=False,
            reach=reach,
        )

    def _range(self, columns: Sequence[str]) -> tuple[float, float]:
        found = [
            float(v) for c in columns for v in self.table.column(c) if isinstance(v, (int, float))
        ]
        return (min(found), max(found)) if found else (0.0, 1.0)


def read_curves(sweep: SweepRecord) -> SweepCurves | None:
    """Read the evaluations of all cells that finished; None where nothing was measured."""
    settings = sweep.settings()
    runs = [
        [
            read_metrics(sweep.path / cell.folder / "metrics.csv")
            for cell in setting.cells
            if cell.status == "finished"
        ]
        for setting in settings
    ]
    present = {c for tables in runs for t in tables for c in t.present([m for m, _ in _MEASURED])}
    measured = next(((c, unit) for c, unit in _MEASURED if c in present), None)
    if measured is None:
        return None
    column, unit = measured
    rows: list[dict[str, float]] = []
    drawn: list[int] = []
    for index, tables in enumerate(runs):
        seeds = [_evaluations(t, column) for t in tables]
        seeds = [s for s in seeds if s]
        if not seeds:
            continue
        drawn.append(index)
        rows += [{**_mean(some), f"m{index}": m} for some, m in _over_seeds(seeds)]
        if len(seeds) > 1:
            for n, points in enumerate(seeds):
                rows += [{**p[0], f"c{index}.{n}": p[1]} for p in points]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = MetricsTable(columns=names, rows=[[row.get(n) for n in names] for row in rows])
    panels = _panels(sweep.columns, settings, drawn)
    most = max(len(tables) for tables in runs)
    return SweepCurves(table=table, panels=panels, measure=unit, seeds=most)


_Point = tuple[dict[str, float], float]
"""Where (x axes and KL) and what was measured."""


def _evaluations(table: MetricsTable, column: str) -> list[_Point]:
    """The rows of a run that have the measure, in file order."""
    names = [*_X, KL]
    columns = [table.column(n) for n in names]
    out: list[_Point] = []
    for value, *places in zip(table.column(column), *columns, strict=True):
        if isinstance(value, (int, float)):
            found = zip(names, places, strict=True)
            at = {n: float(p) for n, p in found if isinstance(p, (int, float))}
            out.append((at, float(value)))
    return out


def _over_seeds(seeds: list[list[_Point]]) -> list[tuple[list[dict[str, float]], float]]:
    """Where and the mean of each evaluation, of those steps that every seed has."""
    by_step = [{at.get("step"): (at, value) for at, value in points} for points in seeds]
    shared = [s for s in by_step[0] if s is not None and all(s in other for other in by_step)]
    return [
        ([seed[s][0] for seed in by_step], sum(seed[s][1] for seed in by_step) / len(by_step))
        for s in shared
    ]


def _mean(places: list[dict[str, float]]) -> dict[str, float]:
    names = [n for n in places[0] if all(n in p for p in places)]
    return {n: sum(p[n] for p in places) / len(places) for n in names}


# --------------------------------------------------------------------------- panels


def _panels(columns: Sequence[str], settings: Sequence[Setting], drawn: list[int]) -> list[Panel]:
    """Spread settings over panels of at most ``LINES`` lines.

    The first columns name the panel, the others its lines: as few columns as possible go to the
    panels, those with most values first.
    """
    by_column = {key: [settings[i].values[n] for i in drawn] for n, key in enumerate(columns)}
    order = sorted(columns, key=lambda key: -len(set(by_column[key])))
    for count in range(len(order) + 1):
        heads = [key for key in columns if key in order[:count]]
        tails = [key for key in columns if key not in heads]
        panels: dict[str, Panel] = {}
        styles: dict[str, int] = {}
        for place, index in enumerate(drawn):
            title = _named(heads, by_column, place) or "All settings"
            label = _named(tails, by_column, place) or "mean over seeds"
            slot = styles.setdefault(label, len(styles))
            panels.setdefault(title, Panel(title=title)).lines.append((label, index, slot))
        if len(styles) <= LINES:
            break
    return list(panels.values())


def _named(keys: Sequence[str], values: dict[str, list[str]], place: int) -> str:
    """``dpo, offline, reuse 4``: the names of groups need no key."""
    said = []
    for key in keys:
        value = values[key][place] or "default"
        said.append(value if "." not in key else f"{key.rpartition('.')[2]} {value}")
    return ", ".join(said)
