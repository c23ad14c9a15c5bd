"""The report page: complete data, nothing unescaped, no request, whatever is missing."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from lit_pref.report import final_table, read_metrics, read_run, write_report
from lit_pref.report.charts import AXES, Chart, Series, draw, moving_mean, thin, ticks
from lit_pref.report.table import duration, number
from lit_pref.types import Group, Prompt, Refusal, Response

COLUMNS = (
    "step samples reward_queries round pass loss val/reward val/kl rewards/margins odd".split()
)
NASTY = "</script><b>&\"'<img src=x onerror=alert(1)>"
SUMMARY = {
    "objective": "dpo",
    "data": "onpolicy",
    "task": "token_bandit",
    "model": "gpt_nano",
    "seed": 11,
    "steps": 4,
    "rounds": 4,
    "passes": 1,
    "samples": 400,
    "reward_queries": 400,
    "eval_queries": 1234,
    "reward_start": 0.0812,
    "reward_final": 0.9431,
    "kl_final": 18.02,
    "wall_seconds": 185.0,
    "status": "finished",
}
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """Every element with its attributes, and the text of some."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {}
        self.visible = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(dict(attrs).get("id") or tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data
            if self.open[-1] not in ("style", "script", "data"):
                self.visible += data

    def data(self):
        return json.loads(self.texts["data"])

    def plots(self, axis: str):
        return [
            a
            for t, a in self.elements
            if t == "svg" and "plot" in (a["class"] or "").split() and a["data-axis"] == axis
        ]


def group(prompt_id, prompt, text, reward, step, **kwargs):
    response = Response(ids=[7, 8, 9], text=text, reward=reward, **kwargs)
    record = Group(
        prompt=Prompt(id=prompt_id, text=prompt, ids=[0, 1]), responses=[response], round=step
    )
    return {**record.to_json(), "step": step}


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "summary.json").write_text(json.dumps(SUMMARY))
    (path / "config.yaml").write_text("objective:\n  name: dpo\n  note: '" + NASTY[:15] + "'\n")
    (path / "environment.json").write_text(json.dumps({"torch": "2.13.0", "git": {"commit": "a"}}))
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for step in range(5):
            loss = "" if step == 0 else 0.7 - 0.1 * step
            value = 0.1 * step if step % 2 == 0 else ""
            writer.writerow(
                [step, 100 * step, 100 * step, step, 0, loss, value, value, loss, "x<y"]
            )
    lines = [group(i, f"prompt {i} {NASTY}", f"old {NASTY}", 0.1, 0) for i in range(12)]
    lines += [group(i, f"prompt {i} {NASTY}", f"new {NASTY}", 0.9, 4) for i in range(12)]
    lines += [group(0, "middle", "never shown", 0.5, 2)]
    (path / "validation.jsonl").write_text("".join(json.dumps(g) + "\n" for g in lines))
    return path


def page(path) -> Page:
    return Page(write_report(path).read_text(encoding="utf-8"))


def test_data_has_one_entry_per_row_with_its_values(run_dir):
    parsed = page(run_dir)
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    data = parsed.data()
    assert data["columns"] == COLUMNS
    assert len(data["rows"]) == len(rows) == 5
    for entry, row in zip(data["rows"], rows, strict=True):
        for name, cell in zip(data["columns"], entry, strict=True):
            if name == "odd":
                assert cell == row[name]
            else:
                assert cell == (float(row[name]) if row[name] else None)
    assert sum(a.get("id") == "data" for _, a in parsed.elements) == 1


def test_every_axis_is_drawn_and_one_is_picked(run_dir):
    parsed = page(run_dir)
    count = len(parsed.plots("step"))
    # Reward, KL, loss, implicit rewards; round and pass among the others.
    assert count == 6
    for column, _, _ in AXES:
        assert len(parsed.plots(column)) == count
    radios = [a for t, a in parsed.elements if t == "input"]
    assert [a["id"] for a in radios] == [f"x-{column}" for column, _, _ in AXES]
    assert ["checked" in a for a in radios] == [True, False, False]
    assert len(parsed.plots("val/kl")) == 1
    # Four losses from step 1 to 4: the x axis of that chart spans them.
    loss = next(a for a in parsed.plots("samples") if a["aria-label"].startswith("Loss"))
    assert loss["data-x"] == "100 400"
    assert "training loss from 0.6 to 0.3 (4 points)" in loss["aria-label"]


def test_nothing_is_requested(run_dir):
    text = write_report(run_dir).read_text()
    parsed = Page(text)
    for tag, attributes in parsed.elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "data:,") == "data:,"
    policy = next(a["content"] for t, a in parsed.elements if t == "meta" and "content" in a)
    assert policy.startswith("default-src 'none'")
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_script_matches_the_hash_that_the_policy_allows(run_dir):
    text = write_report(run_dir).read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_text_is_escaped(run_dir):
    text = write_report(run_dir).read_text()
    parsed = Page(text)
    assert "onerror=alert(1)" in parsed.visible
    assert NASTY in parsed.visible
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert sum(t == "script" for t, _ in parsed.elements) == 2
    assert parsed.open == []


def test_ten_prompts_side_by_side(run_dir):
    parsed = page(run_dir)
    assert sum(t == "article" for t, _ in parsed.elements) == 10
    assert parsed.visible.count(f"old {NASTY}") == parsed.visible.count(f"new {NASTY}") == 10
    assert "never shown" not in parsed.visible
    assert "Mean reward of those shown: 0.100" in parsed.visible
    assert "+0.800" in parsed.visible


def test_headline(run_dir):
    visible = page(run_dir).visible
    for piece in ("dpo", "onpolicy", "token_bandit", "gpt_nano", "finished", "0.0812", "0.943",
                  "+0.862", "18.02", "1,234", "3 min 05 s", "2.13.0", "git.commit"):  # fmt: skip
        assert piece in visible


def test_token_prompts_show_ids_and_messages_show_roles(run_dir):
    messages = [{"role": "system", "content": "be <brief>"}, {"role": "user", "content": "hi"}]
    lines = [group(0, "", "", 0.1, 0), group(1, messages, "", 0.1, 0, finished=False)]
    lines += [group(0, "", "", 0.9, 4), group(1, messages, "yes", 0.9, 4, finished=False)]
    (run_dir / "validation.jsonl").write_text("".join(json.dumps(g) + "\n" for g in lines))
    visible = page(run_dir).visible
    assert visible.count("7 8 9") == 3
    assert "0 1" in visible
    assert "be <brief>" in visible
    assert "yes [cut at the length limit]" in visible


def test_samples_stand_in_for_validation(run_dir):
    (run_dir / "validation.jsonl").unlink()
    lines = [group(3, "p", f"round {n}", 0.1 * n, n) for n in range(3)]
    for line in lines:
        del line["step"]
    text = "".join(json.dumps(g) + "\n" for g in lines) + '{"prompt_id": 3, "resp'
    (run_dir / "samples.jsonl").write_text(text)
    record = read_run(run_dir)
    assert (record.samples.before, record.samples.after) == ("round 0", "round 2")
    assert [p.after["responses"][0]["text"] for p in record.samples.pairs] == ["round 2"]
    assert any("1 line of samples.jsonl" in p for p in record.problems)
    assert "training samples" in page(run_dir).visible


@pytest.mark.parametrize(
    "name", ["summary.json", "config.yaml", "environment.json", "metrics.csv", "validation.jsonl"]
)
@pytest.mark.parametrize("how", ["missing", "empty", "broken"])
def test_each_file_may_be_missing_or_damaged(run_dir, name, how):
    if how == "missing":
        (run_dir / name).unlink()
    else:
        (run_dir / name).write_text("" if how == "empty" else '{"a": [\0\n\t- "')
    parsed = page(run_dir)
    if (name, how) != ("config.yaml", "empty"):
        assert name in parsed.visible
        assert "Not everything could be read" in parsed.visible
    assert parsed.open == []


def test_summary_missing_takes_the_headline_from_the_rows(run_dir):
    (run_dir / "summary.json").unlink()
    visible = page(run_dir).visible
    assert "unknown" in visible
    assert "0.000 " in visible
    assert "0.400" in visible
    assert "dpo" in visible


def test_one_evaluation_is_no_end(run_dir):
    (run_dir / "summary.json").unlink()
    (run_dir / "metrics.csv").write_text("step,val/reward\n0,0.25\n1,\n")
    assert re.search(r"0\.250 \S -", page(run_dir).visible)


def test_not_a_run_directory(tmp_path):
    with pytest.raises(Refusal, match="does not exist"):
        write_report(tmp_path / "no")
    with pytest.raises(Refusal, match=r"holds none of config\.yaml"):
        write_report(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="is a file"):
        write_report(tmp_path / "file")


def test_report_leaves_no_other_file_and_is_repeatable(run_dir):
    before = {p.name for p in run_dir.iterdir()}
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first
    assert {p.name for p in run_dir.iterdir()} == before | {"report.html"}


# --------------------------------------------------------------------------- reading


def test_cut_last_line_keeps_what_is_certain(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,samples,loss\n1,100,0.5\n2,200,0.2")
    problems: list[str] = []
    table = read_metrics(path, problems=problems)
    # 0.2 may be the head of 0.25: it is left out, the line is not.
    assert table.rows == [[1, 100, 0.5], [2, 200, None]]
    assert len(problems) == 1
    assert "line 3" in problems[0]
    path.write_text("step,samples,loss\n1,100,0.5\n2,20")
    assert read_metrics(path).rows == [[1, 100, 0.5], [2, None, None]]


def test_numbers_that_are_no_json_keep_their_text(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,nan\n2,inf\n3,-inf\n4,1e-3\n5,\n")
    table = read_metrics(path)
    assert table.column("loss") == ["nan", "inf", "-inf", 0.001, None]
    assert table.points("step", "loss") == [(4, 0.001)]
    assert table.column("absent") == [None] * 5


def test_long_run_keeps_all_rows_and_draws_few(run_dir):
    rows = "".join(f"{n},{n},{n},0,0,{n % 7},,,,\n" for n in range(5000))
    (run_dir / "metrics.csv").write_text(",".join(COLUMNS) + "\n" + rows)
    text = write_report(run_dir).read_text()
    assert len(Page(text).data()["rows"]) == 5000
    assert max(d.count("L") for d in re.findall(r' d="([^"]*)"', text)) < 360
    assert len(text) < 400_000


# --------------------------------------------------------------------------- drawing


def test_ticks_are_round_and_inside():
    assert ticks(0, 1, count=5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-1.3, 1.1, count=5) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert ticks(0, 6000, count=5) == [0, 1000, 2000, 3000, 4000, 5000, 6000]
    assert ticks(3, 3) == [3]


def test_thin_keeps_ends_and_extremes():
    points = [(float(i), 0.0) for i in range(10_000)]
    points[4321], points[77] = (4321.0, 9.0), (77.0, -9.0)
    kept = thin(points, buckets=50)
    assert len(kept) <= 100
    assert {points[0], points[77], points[4321], points[-1]} <= set(kept)
    assert kept == sorted(kept)
    assert thin(points[:100], buckets=50) == points[:100]


def test_moving_mean():
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, 6.0), (3.0, 4.0)]
    # (1+2)/2, (1+2+6)/3, (2+6+4)/3, (6+4)/2
    assert [y for _, y in moving_mean(points, window=3)] == [1.5, 3.0, 4.0, 5.0]
    assert moving_mean(points, window=3, count=3) == [(0.0, 1.5), (2.0, 4.0), (3.0, 5.0)]
    assert moving_mean(points, window=1) == points


def test_place_of_points(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n0,0\n10,1\n")
    table = read_metrics(tmp_path / "metrics.csv")
    series = (Series(column="loss", label="loss", slot=0),)
    chart = Chart(title="Loss", unit="loss", series=series, floor=0.0, ceiling=1.0)
    svg = draw(chart, table, axis="step", x_title="optimizer steps")
    # The box is 56..402 by 12..218: first point bottom left, second top right.
    assert 'd="M56.0 218.0L402.0 12.0"' in svg
    assert "no row has a value" in draw(chart, table, axis="samples", x_title="samples")


# --------------------------------------------------------------------------- final table


def test_final_table(tmp_path):
    (tmp_path / "report.html").write_text("")
    lines = final_table(SUMMARY, run_dir=tmp_path, width=200).splitlines()
    body = dict(line.split("  ", 1) for line in lines[1:-1])
    body = {k.strip(): v.strip() for k, v in body.items()}
    assert body["reward"].startswith("0.0812 -> 0.943  (+0.862)")
    assert body["KL"].startswith("18.02 nats")
    assert body["steps"] == "4 in 4 rounds, 1 pass"
    assert body["samples"] == "400"
    assert body["queries"] == "400 of the reward in training, 1,234 in evaluation"
    assert body["time"] == "3 min 05 s"
    assert body["report"] == str(tmp_path / "report.html")
    assert "metrics" not in body
    # One column: every value starts at the same place.
    assert len({len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines[1:-1]}) == 1


def test_final_table_has_the_intervals_that_were_measured():
    ends = {"reward_final_interval": [0.9, 0.98], "kl_final_interval": [17.0, 19.0]}
    text = final_table({**SUMMARY, **ends}, width=200)
    assert "0.0812 -> 0.943 [0.900, 0.980]  (+0.862)  true reward" in text
    assert "18.02 [17.00, 19.00] nats per response" in text
    exact = final_table({**SUMMARY, "kl_final_interval": [18.02, 18.02]}, width=200)
    assert "18.02 nats per response" in exact


def test_a_run_without_a_reward_says_so(run_dir):
    none = {**SUMMARY, "status": "finished", "reward_start": None, "reward_final": None}
    line = next(x for x in final_table(none).splitlines() if x.startswith("reward"))
    assert line.endswith("not measured: no reward was given, and the task has none of its own")
    assert "not measured" not in final_table({**none, "status": "failed"})  # it never came so far


def test_final_table_wraps_and_survives_missing_values():
    text = final_table({**SUMMARY, "reason": "word " * 40}, width=60)
    assert max(map(len, text.splitlines())) <= 60
    empty = final_table({"status": "failed"})
    assert "- -> -" in empty
    assert "None" not in empty


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (10000, "10,000"), (0.9431, "0.943"), (0.05, "0.0500"), (18.024, "18.02"),
     (-0.9121, "-0.912"), (0.00001, "1.00e-05"), (0.0, "0.000"), (float("nan"), "nan")],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (9.84, "9.8 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (8123, "2 h 15 min"),
        (None, "-"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_accuracy_of_a_reward_model_is_drawn_and_leads_the_page(tmp_path):
    """Its column is val/accuracy; there is no reward to show."""
    (tmp_path / "metrics.csv").write_text(
        "step,samples,reward_queries,round,pass,rewards/accuracies,val/accuracy,val/loss\n"
        "0,0,0,0,0,,0.5,0.7\n1,0,0,0,0,0.6,0.75,0.6\n"
    )
    summary = {"objective": "reward_model", "status": "finished", "reward_final": None,
               "accuracy_start": 0.5, "accuracy_final": 0.75}  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = write_report(tmp_path).read_text()
    assert '<li data-column="val/accuracy" data-slot="1">' in text
    assert "held-out pairs from 0.5 to 0.75 (2 points)" in text
    assert "Accuracy on held-out pairs" in text and "True reward" not in text.split("Curves")[0]
    assert "0.500 -> 0.750  (+0.250)  of the held-out pairs" in final_table(summary)
    assert "KL" not in final_table(summary)
    assert "KL to the initial policy" not in text and "Loss on held-out pairs" in text
    assert "validation.jsonl" not in text and "Before and after" not in text


def test_intervals_are_bands_and_instruments_have_charts(tmp_path):
    names = ["step", "val/reward", "val/reward_low", "val/reward_high", "probe/chosen_change",
             "probe/rejected_change", "probe/coverage", "val/win_rate", "val/win_rate_lc",
             "gradient/positive_norm", "gradient/cosine", "val/distinct_2", "val/forward_kl",
             "val/kl", "val/length_p90"]  # fmt: skip
    rows = [[s, 0.1 + s, 0.0 + s, 0.3 + s, *([0.5] * (len(names) - 4))] for s in range(3)]
    lines = [names, *rows]
    (tmp_path / "metrics.csv").write_text(
        "".join(",".join(map(str, line)) + "\n" for line in lines)
    )
    text = write_report(tmp_path).read_text()
    assert "95 % confidence intervals" in text
    bands = re.findall(r'<path class="band m0" d="M[^"]*L[^"]*Z"/>', text)
    assert len(bands) == 2  # over steps, and over KL
    for title in ("Displacement: log-prob against the reference", "Wins against the reference",
                  "Diversity", "Cosine of the two gradient parts", "Probe pairs"):  # fmt: skip
        assert f"<h3>{title}</h3>" in text
    others = text.split("All other logged metrics")
    assert len(others) == 1, "every column has its place"
