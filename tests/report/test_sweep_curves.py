"""Curves, frontier and heat map of a sweep, from files written by hand."""

import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from lit_pref.report import read_sweep, write_sweep
from lit_pref.report.heat_map import luminance, shade
from lit_pref.report.sweep_curves import LINES, read_curves

HEADER = "step,samples,reward_queries,round,pass,loss,val/reward,val/kl\n"


def make(base, cells, *, refused=()):
    """A sweep; ``cells`` are (overrides, [(step, samples, reward, kl), ...])."""
    listed = []
    for number, (overrides, points) in enumerate(cells):
        folder = base / f"{number}_run"
        folder.mkdir(parents=True)
        rows = "".join(f"{s},{n},{n},0,0,,{r},{k}\n" for s, n, r, k in points)
        (folder / "metrics.csv").write_text(HEADER + "1,5,5,0,0,0.7,,\n" + rows)
        summary = {"status": "finished", "reward_final": points[-1][2], "kl_final": points[-1][3]}
        (folder / "summary.json").write_text(json.dumps(summary))
        listed.append({"number": number, "folder": folder.name, "overrides": overrides})
    for overrides, reason in refused:
        number = len(listed)
        folder = base / f"{number}_run"
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"status": "refused", "reason": reason}))
        listed.append({"number": number, "folder": folder.name, "overrides": overrides})
    (base / "sweep.json").write_text(json.dumps({"cells": listed}))
    return base


def points(scale, *, samples=10):
    return [(s, samples * s, scale * s, 2 * scale * s) for s in (0, 1, 2)]


@pytest.fixture
def grid(tmp_path):
    cells = [
        ([f"objective={o}", f"data.reuse={r}", f"seed={s}"], points(n + 1 + s))
        for n, (o, r) in enumerate(itertools.product(("dpo", "rwr"), (1, 4)))
        for s in (0, 1)
    ]
    no = [(["objective=ppo", f"data.reuse={r}", "seed=0"], "<i>fresh</i> samples") for r in (1, 4)]
    return make(tmp_path / "sweep", cells, refused=no)


def column(curves, name):
    return [v for v in curves.table.column(name) if v is not None]


def test_curves_are_means_over_seeds(grid):
    curves = read_curves(read_sweep(grid))
    # seeds 0 and 1 of the first setting have scales 1 and 2: their mean is 1.5
    assert column(curves, "m0") == [0, 1.5, 3.0]
    assert column(curves, "c0.0") == [0, 1, 2] and column(curves, "c0.1") == [0, 2, 4]
    assert curves.table.points("samples", "m0") == [(0, 0), (10, 1.5), (20, 3.0)]
    assert curves.table.points("val/kl", "m0") == [(0, 0), (3, 1.5), (6, 3.0)]
    assert (curves.seeds, curves.measure) == (2, "true reward")


def test_evaluations_that_one_seed_lacks_are_left_out(tmp_path):
    cells = [
        (["objective=a", "seed=0"], points(1)),
        (["objective=a", "seed=1"], points(2)[:2]),
        (["objective=b", "seed=0"], points(1)),
    ]
    curves = read_curves(read_sweep(make(tmp_path, cells)))
    assert curves.table.points("step", "m0") == [(0, 0), (1, 1.5)]
    assert column(curves, "c0.0") == [0, 1, 2]


def test_one_panel_where_lines_stay_apart(grid):
    curves = read_curves(read_sweep(grid))
    (panel,) = curves.panels
    names = [label for label, _, _ in panel.lines]
    assert names == ["dpo, reuse 1", "dpo, reuse 4", "rwr, reuse 1", "rwr, reuse 4"]
    assert [slot for _, _, slot in panel.lines] == [0, 1, 2, 3]


def test_many_settings_are_spread_over_panels_of_equal_axes(tmp_path):
    objectives, sources, reuses = "abcdefg", ("offline", "onpolicy", "mixed"), (1, 4)
    cells = [
        ([f"objective={o}", f"data={d}", f"data.reuse={r}"], points(1 + n, samples=n + 1))
        for n, (o, d, r) in enumerate(itertools.product(objectives, sources, reuses))
    ]
    curves = read_curves(read_sweep(make(tmp_path, cells)))
    assert [p.title for p in curves.panels] == list(objectives)
    for panel in curves.panels:
        assert len(panel.lines) == LINES
        assert [(label, slot) for label, _, slot in panel.lines] == [
            (f"{d}, reuse {r}", n) for n, (d, r) in enumerate(itertools.product(sources, reuses))
        ]
    charts = curves.charts()
    assert len({(c.floor, c.ceiling, c.reach["samples"]) for c in charts}) == 1
    assert all(len(c.behind) == len(cells) - LINES for c in charts)


def test_a_line_keeps_its_style_in_every_panel(tmp_path):
    """A cell that was refused leaves a gap, not other colours."""
    cells = [
        ([f"objective={o}", f"data={d}", f"data.reuse={r}"], points(1))
        for o, d, r in itertools.product("abcd", ("offline", "onpolicy"), (1, 4))
        if (o, d) != ("d", "offline")
    ]
    curves = read_curves(read_sweep(make(tmp_path, cells)))
    styles = {}
    for panel in curves.panels:
        for label, _, slot in panel.lines:
            assert styles.setdefault(label, slot) == slot
    assert sorted(styles.values()) == [0, 1, 2, 3]


class Page(HTMLParser):
    """Text by class of table cell, addresses, and the attributes of drawings."""

    def __init__(self):
        super().__init__()
        self.addresses, self.plots, self.cells, self._kind = [], [], [], None

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href") and v]
        if tag == "svg" and "plot" in given.get("class", ""):
            self.plots.append(given)
        if tag == "td" and given.get("class") in ("cell", "none"):
            self.cells.append("")
            self._kind = given["class"]

    def handle_data(self, data):
        if self._kind:
            self.cells[-1] += data

    def handle_endtag(self, tag):
        if tag == "td":
            self._kind = None


def read_page(folder):
    write_sweep(folder)
    text = (folder / "report.html").read_text()
    page = Page()
    page.feed(text)
    return text, page


def test_the_page_has_curves_frontier_and_heat_map(grid):
    text, page = read_page(grid)
    axes = [p["data-axis"] for p in page.plots]
    assert axes == ["step", "samples", "reward_queries", "val/kl"]
    for plot in page.plots:
        assert "dpo, reuse 1 from 0" in plot["aria-label"]
    for title in ("optimizer steps", "responses sampled", "reward queries",
                  "KL to the reference, nats per response", "true reward"):  # fmt: skip
        assert f">{title}</text>" in text
    assert page.cells[0].startswith("3.00") and len(page.cells) == 6
    assert page.cells[4:] == ["refused", "refused"]
    assert "&lt;i&gt;fresh&lt;/i&gt; samples" in text and "<i>fresh" not in text
    assert not [a for a in page.addresses if re.match(r"(https?:)?//", a)]
    assert "<script" not in text


def test_all_lines_of_a_panel_have_a_legend_outside_of_the_drawing(grid):
    text, _ = read_page(grid)
    figure = re.search(r"<figure.*?</figure>", text, re.S)[0]
    keys, drawing = figure.split('<svg class="plot"', 1)
    assert len(re.findall(r"<li ", keys)) == 4
    assert "<li " not in drawing


def test_without_reuse_or_curves_those_parts_are_absent(tmp_path):
    cells = [([f"objective={o}"], points(1)) for o in "ab"]
    folder = make(tmp_path, cells)
    text, page = read_page(folder)
    assert "Sample reuse" not in text and page.plots
    for path in folder.glob("*/metrics.csv"):
        path.unlink()
    text, page = read_page(folder)
    assert not page.plots and "Comparison" in text


def test_reward_models_are_compared_by_accuracy(tmp_path):
    folder = make(tmp_path, [(["objective=reward_model", f"seed={s}"], points(1)) for s in (0, 1)])
    for run in folder.glob("*_run"):
        table = run / "metrics.csv"
        table.write_text(table.read_text().replace("val/reward,val/kl", "val/accuracy,x"))
        (run / "summary.json").write_text(
            json.dumps({"status": "finished", "reward_final": None, "accuracy_final": 0.75})
        )
    text, page = read_page(folder)
    assert "final accuracy" in text and "0.750" in text
    assert [p["data-axis"] for p in page.plots] == ["step", "samples", "reward_queries"]
    assert "final accuracy" in (folder / "table.md").read_text()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0])
def test_heat_map_text_can_be_read(share):
    colour, ink = shade(share, 0.0, 1.0)
    back = [int(v) for v in re.findall(r"\d+", colour)]
    front = [255] * 3 if ink == "#fff" else [0x16, 0x20, 0x2C]
    bright, dark = sorted((luminance(back), luminance(front)), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 3.8  # numbers are bold


def test_larger_is_darker_so_that_greyscale_keeps_the_order():
    shades = [shade(x / 20, 0.0, 1.0)[0] for x in range(21)]
    light = [luminance([int(v) for v in re.findall(r"\d+", s)]) for s in shades]
    assert light == sorted(light, reverse=True) and len(set(light)) == 21
    assert shade(1.0, 1.0, 1.0) == shade(0.5, 0.0, 1.0)
