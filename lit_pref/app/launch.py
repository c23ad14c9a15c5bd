"""Several processes on this machine for one run: started, watched, ended together.

The command that the user typed trains nothing itself: it starts one process per device, passes
signals on, and ends all of them within seconds of the first that dies. So a run in one process, a
run in several and a cell of a sweep end in the same way, and nothing of a process group, a rank or
a port stays behind for the next cell. Not used where torchrun, SLURM or another launcher has
started the processes (``lit_pref.app.processes``).
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf

from lit_pref.app.outcome import Outcome
from lit_pref.app.processes import COUNT, started_by

__all__ = ["LaunchedProcess", "process_count", "run_apart", "run_processes"]

log = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-m", "lit_pref.app.child")
_POLL = 0.05
_GRACE = 5.0
"""Seconds between the first failure and the end of all: time for summary and report."""
_GRACE_ORDERLY = 60.0
"""The same after a refusal or an interruption, which every process comes to by itself."""
_LAUNCHERS = re.compile(
    r"(SLURM|TORCHELASTIC|PL)_|(MASTER_(ADDR|PORT)|NODE_RANK|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE))$"
)
"""Variables by which launchers and Lightning tell a process of its peers."""
_ORDERLY = (2, 128 + signal.SIGINT, 128 + signal.SIGTERM)


class LaunchedProcess(LightningEnvironment):
    """Ranks and port come from ``run_processes``; Lightning starts no process of its own.

    Given to the trainer, so that the allocation of a scheduler is not taken for its launcher.
    """

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @staticmethod
    def detect() -> bool:
        return started_by() == "lit_pref"


def process_count(cfg: DictConfig) -> int:
    """How many processes must be started for ``trainer.devices``; 1: train in this one."""
    devices, kind = cfg.trainer.get("devices", "auto"), cfg.trainer.get("accelerator", "auto")
    if started_by() != "itself" or devices in (1, "1") or kind == "tpu":
        return 1
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    wanted: Any = OmegaConf.to_container(devices) if OmegaConf.is_config(devices) else devices
    try:
        return L.Trainer(
            accelerator=kind,
            devices=wanted,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).num_devices
    except Exception:  # the run's own trainer meets it too, and says so
        return 1


def run_processes(cfg: DictConfig, folder: Path, count: int, *, resume: bool) -> Outcome:
    """Train in ``count`` processes of their own; returns when all have ended.

    Args:
        cfg: the composed configuration.
        folder: the run directory.
        count: processes on this machine.
        resume: go on from the checkpoints in ``folder``.
    """
    with tempfile.TemporaryDirectory(prefix="lit_pref_") as told:
        processes = _Processes(Path(told), count)
        with _signals_to(processes):
            processes.start(_message(cfg, folder, resume=resume))
            processes.wait()
        return processes.outcome()


def run_apart(message: dict[str, Any], output: Path) -> Outcome:
    """Work in one process of its own that knows nothing of a launcher's other processes.

    Args:
        message: see ``lit_pref.app.child``.
        output: the file that takes what it prints.
    """
    with tempfile.TemporaryDirectory(prefix="lit_pref_") as told, output.open("ab") as printed:
        processes = _Processes(Path(told), 1, alone=True, printed=printed)
        with _signals_to(processes):
            processes.start(message)
            processes.wait()
        return processes.outcome()


def _message(cfg: DictConfig, folder: Path, *, resume: bool) -> dict[str, Any]:
    """What a process needs to know; it goes through its standard input, not through a file."""
    handlers = None
    if HydraConfig.initialized():
        handlers = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    return {
        "config": OmegaConf.to_yaml(cfg, resolve=True),
        "folder": str(folder),
        "resume": resume,
        "logging": handlers,
    }


class _Processes:
    """The processes of one run.

    Args:
        told: where each leaves how it ended.
        count: how many there are.
        command: what each of them is.
        alone: they are no part of what a launcher has started.
        printed: takes what they print; None: where this process prints.
    """

    def __init__(
        self,
        told: Path,
        count: int,
        command: Sequence[str] = _COMMAND,
        *,
        alone: bool = False,
        printed: IO[bytes] | None = None,
    ) -> None:
        self.told, self.count, self.command = told, count, list(command)
        self.alone, self.printed = alone, printed
        self.running: list[subprocess.Popen[bytes]] = []
        self.received: list[int] = []
        self.first: int | None = None  # the one whose end is the reason for the others'

    def start(self, message: dict[str, Any]) -> None:
        around = {k: v for k, v in os.environ.items() if not (self.alone and _LAUNCHERS.match(k))}
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            **around,  # several machines: the user has set address, port and NODE_RANK
            # The same modules as here, whatever way this process was started.
            "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path),
            "PYTHONSAFEPATH": "1",
            COUNT: str(self.count),
        }
        for local_rank in range(self.count):
            ending = {"outcome": str(self._file(local_rank))}
            process = subprocess.Popen(
                self.command,
                env={**environment, "LOCAL_RANK": str(local_rank)},
                stdin=subprocess.PIPE,
                stdout=self.printed,
                stderr=self.printed,
                start_new_session=True,  # Ctrl-C comes once, from here
            )
            self.running.append(process)
            assert process.stdin is not None
            try:  # stays open: its end tells the process that this one is gone
                process.stdin.write(json.dumps(message | ending).encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it died already; wait() sees it

    def send(self, signum: int) -> None:
        """Pass a signal on; the third one ends everything."""
        self.received.append(signum)
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if len(self.received) > 2 else signum)

    def wait(self) -> None:
        """Until all have ended, by themselves or because one did not end well."""
        deadline = float("inf")
        try:
            while any(process.poll() is None for process in self.running):
                if self.first is None:
                    self.first = self._first_bad()
                    if self.first is not None:
                        code = self.running[self.first].returncode
                        grace = _GRACE_ORDERLY if code in _ORDERLY else _GRACE
                        deadline = time.monotonic() + grace
                if time.monotonic() > deadline:
                    self._kill()
                time.sleep(_POLL)
        finally:
            self._kill()
            for process in self.running:
                process.wait()
                assert process.stdin is not None
                process.stdin.close()
        if self.first is None:
            self.first = self._first_bad()

    def _kill(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()

    def _first_bad(self) -> int | None:
        """The process that ended badly: one that could not say why before one that could."""
        bad = []
        for local_rank, process in enumerate(self.running):
            code = process.poll()
            ending = self._ending(local_rank)
            if code is not None and (code != 0 or ending is None):
                bad.append((ending is not None, ending["at"] if ending else 0.0, local_rank))
        return min(bad)[2] if bad else None

    def outcome(self) -> Outcome:
        """How the run ended, from how its processes did."""
        if self.first is None:
            ending = self._ending(0)
            assert ending is not None
            return Outcome("finished", 0, ending["metric"])
        ending = self._ending(self.first)
        if self.received and (ending is None or ending["status"] != "refused"):
            signum = self.received[0]
            reason = f"stopped by {signal.Signals(signum).name}"
            return Outcome("interrupted", 128 + signum, reason=reason)
        if ending is None:
            return Outcome("failed", 1, reason=self._silent_end(self.first))
        reason = ending["reason"]
        if ending["status"] == "failed" and self.first > 0:
            reason = f"in process {self.first} of {self.count}: {reason}"
        return Outcome(ending["status"], ending["exit_code"], reason=reason)

    def _silent_end(self, local_rank: int) -> str:
        code = self.running[local_rank].returncode
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (the machine may be out of memory)"
        return f"process {local_rank} of {self.count} {how}, without an error of its own"

    def _file(self, local_rank: int) -> Path:
        return self.told / f"{local_rank}.json"

    def _ending(self, local_rank: int) -> dict[str, Any] | None:
        try:
            return json.loads(self._file(local_rank).read_text())
        except (OSError, ValueError):
            return None


@contextmanager
def _signals_to(processes: _Processes) -> Iterator[None]:
    """SIGTERM and SIGINT are passed on for the time of a block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    for signum in before:
        signal.signal(signum, lambda number, frame: processes.send(number))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
