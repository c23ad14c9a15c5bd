"""Sweeps: every cell a row, failures and refusals beside results, going on later, no leaks."""

import csv
import json
import os
import shutil

import pytest

from lit_pref.app.train import main

SMALL = ["data.rounds=1", "callbacks=minimal", "export=false", "task.offline_prompts=2",
         "data.reuse=1", "data.batch_size=2", "data.responses_per_prompt=2",
         "data.prompts_per_round=2"]  # fmt: skip


def sweep(*arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main(["-m", *arguments])
    assert end.value.code == code
    return end.value.code


def rows(folder):
    return list(csv.DictReader((folder / "table.csv").open()))


def summaries(folder):
    return {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/summary.json")}


def test_a_grid_ends_in_one_table_and_page(tmp_path):
    sweep("objective=dpo,reinforce", "data=offline,onpolicy", "seed=0,1", *SMALL,
          f"hydra.sweep.dir={tmp_path}")  # fmt: skip
    found = summaries(tmp_path)
    assert sorted(s["status"] for s in found.values()) == ["finished"] * 6 + ["refused"] * 2
    table = rows(tmp_path)
    assert len(table) == 8
    refused = [r for r in table if r["status"] == "refused"]
    assert {r["objective"] for r in refused} == {"reinforce"}
    assert all("data=onpolicy" in r["reason"] for r in refused)
    page = (tmp_path / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert sum(line.startswith("| dpo") or line.startswith("| reinforce") for line in lines) == 4


def test_mean_and_interval_over_seeds(tmp_path):
    sweep("objective=dpo", "seed=0,1,2", *SMALL, f"hydra.sweep.dir={tmp_path}")
    values = [s["reward_final"] for s in summaries(tmp_path).values()]
    mean = sum(values) / 3
    line = next(
        x for x in (tmp_path / "table.md").read_text().splitlines() if "3 of 3" in x
    )
    shown = float(line.split("|")[2].split("+-")[0])
    assert shown == pytest.approx(mean, rel=0.01)


def test_cells_that_cannot_be_composed_are_rows_and_failures_do_not_stop_the_rest(tmp_path):
    sweep(
        "reward=task,callable", "+reward.function=math.sqrt,tests_integration_support.nan_reward",
        *SMALL, f"hydra.sweep.dir={tmp_path}", code=1,
    )  # fmt: skip
    status = [r["status"] for r in rows(tmp_path)]
    assert len(status) == 4
    assert "failed" in status
    assert "finished" in status


def test_only_refused_cells_exit_with_0(tmp_path):
    sweep("objective=reinforce", "data=offline", "seed=0,1", *SMALL, f"hydra.sweep.dir={tmp_path}")
    assert {r["status"] for r in rows(tmp_path)} == {"refused"}


def test_the_same_job_first_and_last_is_bitwise_equal(tmp_path):
    """What stands between changes seeds, threads' state, data source, objective and precision."""
    sweep("seed=3,4", "objective=dpo,reinforce", "trainer.precision=32-true,bf16-mixed", *SMALL,
          f"hydra.sweep.dir={tmp_path}/a")  # fmt: skip
    sweep("seed=3", "objective=dpo", "trainer.precision=32-true", *SMALL,
          f"hydra.sweep.dir={tmp_path}/b")  # fmt: skip
    first = next((tmp_path / "a").glob("0_*"))
    alone = next((tmp_path / "b").glob("0_*"))
    for name in ("metrics.csv", "samples.jsonl", "validation.jsonl"):
        assert (first / name).read_bytes() == (alone / name).read_bytes(), name
    for name in ("PL_GLOBAL_SEED", "LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE"):
        assert name not in os.environ


def test_an_interrupted_sweep_goes_on_with_what_is_missing(tmp_path):
    command = ["objective=dpo", "seed=0,1,2", *SMALL, f"hydra.sweep.dir={tmp_path}"]
    sweep(*command)
    before = {f.name: (f / "summary.json").read_bytes() for f in tmp_path.glob("[0-9]*")}
    gone, cut = sorted(before)[1:]
    samples = (tmp_path / cut / "samples.jsonl").read_bytes()
    shutil.rmtree(tmp_path / gone)
    summary = json.loads((tmp_path / cut / "summary.json").read_text())
    (tmp_path / cut / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    sweep(*command, "sweep.resume=true")
    kept = sorted(before)[0]
    assert (tmp_path / kept / "summary.json").read_bytes() == before[kept]  # not run again
    assert {s["status"] for s in summaries(tmp_path).values()} == {"finished"}
    assert (tmp_path / cut / "samples.jsonl").read_bytes() == samples
    assert len(rows(tmp_path)) == 3


def test_another_sweep_in_the_same_folder_is_refused(tmp_path, capsys):
    sweep("objective=dpo", "seed=0,1", *SMALL, f"hydra.sweep.dir={tmp_path}")
    with pytest.raises(SystemExit) as end:
        main(["-m", "objective=dpo", "seed=0,1", *SMALL, f"hydra.sweep.dir={tmp_path}"])
    assert end.value.code == 2
    assert "sweep.resume=true" in capsys.readouterr().err


def test_report_again_from_the_files_alone(tmp_path, monkeypatch):
    from lit_pref.report import write_sweep

    sweep("objective=dpo", "seed=0,1", *SMALL, f"hydra.sweep.dir={tmp_path}")
    page = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    write_sweep(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == page
