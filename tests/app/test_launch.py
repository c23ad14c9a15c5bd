"""Several processes: started, watched, stopped together; one voice, each file once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lit_pref.app import launch
from lit_pref.app.processes import COUNT, is_main, rank, started_by

ROOT = Path(__file__).parents[2]
NAMES = (
    COUNT, "TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK",
    "SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_NAME",
)  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "by", "number"),
    [
        ({}, "itself", 0),
        ({COUNT: "4", "LOCAL_RANK": "3"}, "lit_pref", 3),
        ({COUNT: "4", "LOCAL_RANK": "0", "NODE_RANK": "1"}, "lit_pref", 4),
        ({COUNT: "2", "LOCAL_RANK": "1", "SLURM_NTASKS": "8"}, "lit_pref", 1),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "LOCAL_RANK": "1"}, "torchrun", 5),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "slurm", 1),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, "itself", 0),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"}, "itself", 0),
        ({"LOCAL_RANK": "1"}, "other", 1),
    ],
)
def test_who_started_it_and_which_rank(monkeypatch, environment, by, number):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (started_by(), rank(), is_main()) == (by, number, number == 0)


@pytest.mark.parametrize(
    ("devices", "count"), [(1, 1), ("1", 1), (2, 2), ("2", 2), ("auto", 1), ("nonsense", 1)]
)
def test_how_many_processes(devices, count):
    cfg = OmegaConf.create({"trainer": {"accelerator": "cpu", "devices": devices}})
    assert launch.process_count(cfg) == count


def test_no_process_is_started_where_a_launcher_did(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    cfg = OmegaConf.create({"trainer": {"accelerator": "cpu", "devices": 2}})
    assert launch.process_count(cfg) == 1


# ------------------------------------------------- the watcher, on processes that train nothing

HEAD = """
import json, os, signal, sys, time
told, me = json.loads(sys.stdin.readline()), int(os.environ["LOCAL_RANK"])
def end(status, code, reason="", metric=None):
    ending = dict(status=status, exit_code=code, reason=reason, metric=metric, at=time.time())
    open(told["outcome"], "w").write(json.dumps(ending))
    sys.exit(code)
"""


def processes(tmp_path, code, count=2):
    return launch._Processes(tmp_path, count, [sys.executable, "-c", HEAD + code])


def ended(group):
    began = time.monotonic()
    group.start({})
    group.wait()
    assert all(p.returncode is not None for p in group.running)
    return group.outcome(), time.monotonic() - began


def test_the_metric_is_that_of_rank_0(tmp_path):
    outcome, _ = ended(processes(tmp_path, "end('finished', 0, metric=me + 0.5)"))
    assert (outcome.status, outcome.exit_code, outcome.metric) == ("finished", 0, 0.5)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os._exit(3)", "process 1 of 2 ended with exit code 3"),
        ("os._exit(0)", "process 1 of 2 ended with exit code 0"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL (the machine may be out of memory)"),
        ("end('failed', 1, 'RuntimeError: x')", "in process 1 of 2: RuntimeError: x"),
    ],
)
def test_one_that_dies_ends_the_others(tmp_path, monkeypatch, code, words):
    monkeypatch.setattr(launch, "_GRACE", 0.3)
    outcome, seconds = ended(processes(tmp_path, f"{code} if me else time.sleep(60)"))
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert words in outcome.reason
    assert seconds < 20


def test_the_first_failure_is_the_reason(tmp_path):
    """Rank 0 sees a lost connection after rank 1 failed, and says so later."""
    code = "time.sleep(0.4 * (1 - me)); end('failed', 1, f'error of {me}')"
    outcome, _ = ended(processes(tmp_path, code))
    assert outcome.reason == "in process 1 of 2: error of 1"


def test_a_refusal_is_everybodys(tmp_path):
    outcome, _ = ended(processes(tmp_path, "end('refused', 2, 'no such thing')"))
    assert (outcome.status, outcome.exit_code, outcome.reason) == ("refused", 2, "no such thing")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(tmp_path, signum):
    code = """
signal.signal(signal.SIGTERM, lambda n, f: end("interrupted", 143, "saved"))
signal.signal(signal.SIGINT, lambda n, f: end("interrupted", 130, "saved"))
open(told["outcome"] + ".up", "w").close()
time.sleep(60)
"""
    group = processes(tmp_path, code)

    def when_up():
        while len(list(tmp_path.glob("*.up"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=when_up)
    before = signal.getsignal(signum)
    with launch._signals_to(group):
        thread.start()
        outcome, _ = ended(group)
    thread.join()
    assert (outcome.status, outcome.exit_code) == ("interrupted", 128 + signum)
    assert signal.getsignal(signum) is before


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    """SIGKILL cannot be passed on: a process notices that its standard input ended."""
    code = (
        "import json, os, subprocess, sys, time\n"
        "child = 'import os, sys; from lit_pref.app import child; child._first_line();'"
        "'open(sys.argv[1], \"w\").write(str(os.getpid())); child._follow()'\n"
        "p = subprocess.Popen([sys.executable, '-c', child, sys.argv[1]], stdin=-1)\n"
        "p.stdin.write(b'{}\\n'); p.stdin.flush(); time.sleep(60)\n"
    )
    note = tmp_path / "pid"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", code, str(note)], env=env)
    wait_for(lambda: note.exists() and note.read_text())
    parent.kill()
    parent.wait()
    wait_for(lambda: gone(int(note.read_text())))


def gone(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # ended; its new parent has not asked yet


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# --------------------------------------------------------------------------- whole runs

SMALL = ["data.rounds=2", "callbacks=minimal", "export=false"]
TWO = ["strategy=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


def run(folder, *overrides):
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lit_pref.app.preflight import config_dir
    from lit_pref.app.run import run_job

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", overrides=[*SMALL, *TWO, *overrides, f"paths.run_dir={folder}"])
    return run_job(cfg, folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    folder.mkdir()
    return folder, run(folder)


def lines(path):
    return path.read_text().splitlines()


def test_two_processes_write_each_file_once(two):
    folder, outcome = two
    assert (outcome.status, outcome.exit_code) == ("finished", 0)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["samples"] == 200
    assert abs(outcome.metric - summary["reward_final"]) < 1e-6
    samples = [json.loads(x) for x in lines(folder / "samples.jsonl")]
    assert [s["round"] for s in samples] == [0] * 10 + [1] * 10
    steps = [x.split(",")[0] for x in lines(folder / "metrics.csv")]
    assert steps == ["step", "0", "1", "2"]


def test_nothing_of_it_stays_in_this_process(two):
    assert not torch.distributed.is_initialized()
    assert not {"LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE", COUNT} & set(os.environ)


def test_a_rank_that_dies_ends_the_run_and_is_named(tmp_path, monkeypatch, capfd):
    (tmp_path / "dying_rank.py").write_text(
        "import os\nimport lightning as L\n\n\nclass Die(L.Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, index):\n"
        "        if trainer.global_rank == 1 and trainer.global_step == 1:\n"
        "            os._exit(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    outcome = run(folder, "+callbacks.die._target_=dying_rank.Die")
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    said = capfd.readouterr().err.strip().splitlines()
    assert said[-2] == f"Failed: {outcome.reason}"
    assert outcome.reason.startswith("process 1 of 2 ended with exit code 3")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("failed", outcome.reason)
    assert summary["steps"] == 1 and (folder / "report.html").exists()


def test_refused_once_and_written(tmp_path, capfd):
    outcome = run(tmp_path, "data.batch_size=3")
    assert (outcome.status, outcome.exit_code) == ("refused", 2)
    assert capfd.readouterr().err.count("Refused:") == 1
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "refused"


def test_torchrun_gives_the_same_run(two, tmp_path):
    folder = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(ROOT / "train.py"), *SMALL, *TWO, f"hydra.run.dir={folder}",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout.count("status      finished") == 1
    for name in ("samples.jsonl", "validation.jsonl", "metrics.csv"):
        assert (folder / name).read_bytes() == (two[0] / name).read_bytes(), name
    mine, other = (
        torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for f in (folder, two[0])
    )
    assert all(torch.equal(mine[k], other[k]) for k in other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "seed=0,1"], "a sweep cannot be started by torchrun"),
        (["seed=0"], "hydra.run.dir=FOLDER"),
    ],
)
def test_what_cannot_work_under_torchrun(monkeypatch, capsys, arguments, words):
    from lit_pref.app.train import main

    for number, times in ((0, 1), (1, 0)):  # said by rank 0 alone
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("RANK", str(number))
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert capsys.readouterr().err.count(words) == times
