"""Jobs in children of a warmed server process, killed where the test says.

A fork server has imported everything and run nothing, so a job costs a second and not a start.
"""

import functools
import gc
import multiprocessing
import os
import signal
import socket
import sys
import time

PRELOAD = ["lit_pref.app.run", "lit_pref.app.resume", "lit_pref.app.train", __name__]


def begin(function, *arguments):
    """Run in a child; returns the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def ended(process, seconds=120):
    """The exit code of a child, negative for a signal."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError("the job did not end")
    return process.exitcode


def start(function, *arguments):
    """Run in a child; returns its exit code, negative for a signal."""
    return ended(begin(function, *arguments))


def start_two(function, *arguments, crash=(None, None)):
    """Run in two children, as torchrun would start them; returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    two = [begin(_as_rank, r, port, function, arguments, crash[r]) for r in range(2)]
    return [ended(process) for process in two]


def _as_rank(rank, port, function, arguments, crash):
    os.environ.update(
        TORCHELASTIC_RUN_ID="test", RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0",
        WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    function(*arguments, crash=crash)


@functools.cache
def composed(*overrides):
    """A configuration, to be given to ``train``; made once, here, for all runs of it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from lit_pref.app.preflight import config_dir

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return OmegaConf.to_container(compose("train", overrides=[*overrides]))


def train(config, folder, crash=None):
    """A new run in ``folder`` of overrides, or of what ``composed`` made of them.

    ``crash`` is (point, how many times it passes, signal).
    """
    from omegaconf import OmegaConf

    from lit_pref.app.run import run_job

    _quiet(folder)
    _inject(crash)
    cfg = OmegaConf.create(composed(*config) if isinstance(config, list) else config)
    cfg.paths.run_dir = str(folder)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    sys.exit(run_job(cfg, folder).exit_code)


def resume(folder, arguments=(), crash=None):
    """Go on with the run in ``folder``."""
    from lit_pref.app.train import main

    _quiet(folder)
    _inject(crash)
    main([f"resume={folder}", *arguments])


def metric_of_resumed(folder, to):
    """The metric that a sweeper would get of a resumed run, written to a file."""
    from omegaconf import OmegaConf

    from lit_pref.app.run import run_job

    _quiet(folder)
    outcome = run_job(OmegaConf.load(folder / "config.yaml"), folder, resume=True)
    to.write_text(str(outcome.metric))


def _quiet(folder):
    import torch

    gc.freeze()  # what the server imported is no garbage; looking for it takes half a second
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _inject(crash):
    if crash is None:
        return
    point, passes, signum = crash
    left = [passes]

    def hit():
        left[0] -= 1
        if left[0] == 0 and isinstance(signum, int):
            os.kill(os.getpid(), signum)
        elif left[0] == 0:  # a path: the signal comes from outside
            signum.touch()
            while signum.exists():
                time.sleep(0.01)

    POINTS[point](hit)


def send(process, here, *signums):
    """Signals to a child that has touched ``here`` and waits; then it goes on."""
    while not here.exists():
        assert process.exitcode is None, "it ended before"
        time.sleep(0.01)
    for signum in signums:
        os.kill(process.pid, signum)
        time.sleep(0.2)
    here.unlink()


def _before(owner, name, hit, when=lambda *arguments: True):
    original = getattr(owner, name)

    def wrapped(*arguments, **keywords):
        if when(*arguments):
            hit()
        return original(*arguments, **keywords)

    setattr(owner, name, wrapped)


def _sampling(stage):
    def inject(hit):
        from lit_pref.data.datamodule import RoundDataModule

        _before(RoundDataModule, "tell", hit, lambda self, at, *rest: at == stage)

    return inject


def _annotating(hit):
    from lit_pref.objectives.forward import EngineForward

    _before(EngineForward, "__call__", hit)


def _training(hit):
    from lit_pref.objectives.base import ObjectiveModule

    _before(ObjectiveModule, "_update", hit)


def _writing(hit):
    """Between the writing of a checkpoint and its renaming, with half of it on disk."""
    from lit_pref.callbacks import checkpoints

    real = os.replace

    class Half:
        def __getattr__(self, name):
            return getattr(os, name)

        def replace(self, source, target):
            if str(target).endswith("last.ckpt"):
                whole = open(source, "rb").read()
                open(source, "wb").write(whole[: len(whole) // 2])
                hit()
                open(source, "wb").write(whole)
            real(source, target)

    checkpoints.os = Half()


def _linking(hit):
    """Between the writing of the last checkpoint and making it the best one."""
    from lit_pref.callbacks import checkpoints

    _before(checkpoints, "_link", hit, lambda source, target, *rest: target.stem == "best")


def _building(hit):
    from lit_pref.app import run

    _before(run, "build", hit)


def _exporting(hit):
    from lit_pref.objectives.base import ObjectiveModule

    _before(ObjectiveModule, "export", hit)


def _summing_up(hit):
    from lit_pref.app.record import Summary

    _before(Summary, "write", hit)


def _reporting(hit):
    from lit_pref.app import run

    _before(run, "write_report", hit)


POINTS = {
    "generating": _sampling("generating"),
    "scoring": _sampling("scoring"),
    "annotating": _annotating,
    "training": _training,
    "writing": _writing,
    "linking": _linking,
    "building": _building,
    "exporting": _exporting,
    "summing up": _summing_up,
    "reporting": _reporting,
}
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
