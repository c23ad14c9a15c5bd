"""Sweeps: every cell a row, failures and refusals beside results, going on later, no leaks."""

import csv
import json
import os
import shutil

import pytest

from lit_pref.app.train import main
from lit_pref.errors import Refusal

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
    line = next(x for x in (tmp_path / "table.md").read_text().splitlines() if "3 of 3" in x)
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


# --------------------------------------------------------------------------- planning, no training


def planned(*arguments):
    from hydra.core.global_hydra import GlobalHydra

    from lit_pref.app.cells import plan_cells

    try:
        return plan_cells(["-m", *arguments]).cells
    finally:
        GlobalHydra.instance().clear()


def test_a_key_that_a_cell_lacks_refuses_that_cell(tmp_path):
    cells = planned(
        "objective=dpo,reinforce", "objective.beta=0.1,0.2", f"hydra.sweep.dir={tmp_path}"
    )
    assert [c["refused"] for c in cells] == [None, None] + [
        "this cell has no key objective.beta"
    ] * 2
    assert [c["folder"] for c in cells] == ["0_dpo_onpolicy", "1_dpo_onpolicy", None, None]


def test_a_key_that_only_a_swept_option_has(tmp_path):
    """Hydra applies what is not swept to the default objective, which has no such key."""
    from lit_pref.app.preflight import check_arguments

    arguments = ["objective=reinforce", "objective.baseline=running", "seed=0,1"]
    check_arguments(["-m", *arguments])
    cells = planned(*arguments, f"hydra.sweep.dir={tmp_path}")
    assert [c["refused"] for c in cells] == [None, None]


def test_a_value_that_a_cell_must_be_given(tmp_path):
    cells = planned("model=gpt_nano,hf", f"hydra.sweep.dir={tmp_path}")
    assert cells[0]["refused"] is None
    assert "model.path must be given" in cells[1]["refused"]


def test_a_grid_grows_and_its_cells_keep_their_folders(tmp_path):
    place = f"hydra.sweep.dir={tmp_path}"
    first = planned("objective=dpo,ipo", "seed=0", place)
    more = planned("objective=dpo,ipo", "seed=0,1", place, "sweep.resume=true")
    assert more[:2] == first
    assert [c["overrides"] for c in more[2:]] == [
        ["objective=dpo", "seed=1"], ["objective=ipo", "seed=1"],
    ]  # fmt: skip
    assert [c["number"] for c in more] == [0, 1, 2, 3]


def test_the_same_overrides_twice_are_two_cells(tmp_path):
    place = f"hydra.sweep.dir={tmp_path}"
    cells = planned("seed=0,1,0", place)
    assert [c["folder"][0] for c in cells] == ["0", "1", "2"]
    assert planned("seed=0,1,0", place, "sweep.resume=true") == cells


def test_going_on_where_there_is_nothing(tmp_path):
    with pytest.raises(Refusal, match="no sweep to go on"):
        planned("seed=0,1", f"hydra.sweep.dir={tmp_path}", "sweep.resume=true")


def test_another_sweeper_has_its_own_way_to_go_on(monkeypatch):
    from lit_pref.app import sweep as module

    def not_ours(arguments):
        raise module.NotOurs

    monkeypatch.setattr(module, "plan_cells", not_ours)
    with pytest.raises(Refusal, match=r"hydra\.sweeper\.storage"):
        module.run_sweep(["-m", "sweep.resume=true"])


def test_a_launcher_that_breaks_leaves_the_table(tmp_path, monkeypatch, capsys):
    from lit_pref.app.cells import Grid

    def broken(self, job):
        raise RuntimeError("no such partition")

    monkeypatch.setattr(Grid, "launch", broken)
    sweep("seed=0,1", f"hydra.sweep.dir={tmp_path}", code=1)
    assert "Failed: the launcher: RuntimeError: no such partition" in capsys.readouterr().err
    assert [r["status"] for r in rows(tmp_path)] == ["missing", "missing"]


# --------------------------------------------------------------------------- stopping, processes

STOP = """
import os, pathlib, signal
import lightning as L

class Stop(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        flag = pathlib.Path(__file__).with_suffix(".stopped")
        if trainer.global_step == 1 and trainer.datamodule.seed == 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_stops_the_sweep_and_it_goes_on_bitwise(tmp_path, monkeypatch):
    (tmp_path / "stop_once.py").write_text(STOP)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["seed=0,1,2", "+callbacks.stop._target_=stop_once.Stop", *SMALL, "data.rounds=3"]
    place = f"hydra.sweep.dir={tmp_path / 'a'}"
    sweep(*command, place, code=143)
    assert [r["status"] for r in rows(tmp_path / "a")] == ["finished", "interrupted", "missing"]
    sweep(*command, place, "sweep.resume=true")
    sweep(*command, f"hydra.sweep.dir={tmp_path / 'b'}")  # the flag is there: not interrupted
    for folder in sorted((tmp_path / "b").glob("[0-9]*")):
        for name in ("metrics.csv", "samples.jsonl", "validation.jsonl"):
            again = tmp_path / "a" / folder.name / name
            assert again.read_bytes() == (folder / name).read_bytes(), (folder.name, name)


def test_cells_of_one_and_of_two_processes(tmp_path):
    """Cell 2 is the same job as cell 0, after one that had two processes."""
    sweep("strategy=ddp", "trainer.accelerator=cpu", "trainer.devices=1,2,1", *SMALL,
          f"hydra.sweep.dir={tmp_path}")  # fmt: skip
    assert [r["status"] for r in rows(tmp_path)] == ["finished"] * 3
    first, two, last = sorted(tmp_path.glob("[0-9]*"))
    for name in ("metrics.csv", "samples.jsonl", "validation.jsonl"):
        assert (first / name).read_bytes() == (last / name).read_bytes(), name
    rounds = [json.loads(x)["round"] for x in (two / "samples.jsonl").read_text().splitlines()]
    assert rounds == [0, 0]


def test_isolation_puts_everything_back():
    import random
    import signal

    import torch

    from lit_pref.app.isolation import isolated

    def state():
        return (
            dict(os.environ), random.getstate(), torch.get_rng_state().tolist(),
            torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(), torch.is_grad_enabled(), signal.getsignal(signal.SIGINT),
        )  # fmt: skip

    before = state()
    with isolated():
        os.environ["LOCAL_RANK"] = "1"
        del os.environ["PATH"]
        random.seed(1)
        torch.manual_seed(1)
        torch.backends.cudnn.benchmark = True
        torch.use_deterministic_algorithms(True)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert state() == before
