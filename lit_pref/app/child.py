"""One of the processes of a run, started by ``lit_pref.app.launch``: not a command for people."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_pref.app.outcome import Outcome
from lit_pref.app.processes import is_main, rank
from lit_pref.errors import Refusal

__all__ = ["main"]

log = logging.getLogger(__name__)


def main() -> int:
    """Run what comes through standard input as one line of JSON; returns the exit code.

    ``outcome`` names the file that is told how it ended, ``folder`` that of the run, ``logging``
    the handlers. ``config`` (a configuration, with ``resume``) trains; ``generate`` (arguments)
    is ``lit-pref generate``.
    """
    message = json.loads(_first_line())
    threading.Thread(target=_follow, daemon=True, name="follow").start()
    _log_to(Path(message["folder"]), message["logging"])
    outcome = _generate(message["generate"]) if "generate" in message else _train(message)
    ending = {**vars(outcome), "at": time.time()}
    target = Path(message["outcome"])
    part = target.with_suffix(".part")
    part.write_text(json.dumps(ending))
    part.replace(target)
    return outcome.exit_code


def _train(message: dict[str, Any]) -> Outcome:
    cfg = OmegaConf.create(message["config"])
    assert isinstance(cfg, DictConfig)
    from lit_pref.app.run import run_job

    return run_job(cfg, Path(message["folder"]), resume=message["resume"])


def _generate(arguments: list[str]) -> Outcome:
    """``lit-pref generate`` for a prepared run; the one that asked says how it ended."""
    from lit_pref.app.generate_job import generate_request
    from lit_pref.app.request import parse_request

    try:
        generate_request(parse_request("generate", arguments))
    except Refusal as refusal:
        return Outcome("refused", 2, reason=str(refusal))
    except Exception as error:
        log.error("%s", traceback.format_exc())
        return Outcome("failed", 1, reason=f"{type(error).__name__}: {error}")
    return Outcome("finished", 0)


def _first_line() -> bytes:
    """Up to the first line break; unbuffered, because ``_follow`` reads on in its thread."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 65536)
    return line


def _follow() -> None:
    """End with the process that started this one, even if that one was killed."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _log_to(folder: Path, handlers: dict[str, Any] | None) -> None:
    """The main process logs as the command would; the others say what is wrong, and who it is."""
    if not is_main():
        form = f"[process {rank()}] %(message)s"
        logging.basicConfig(level=logging.WARNING, format=form, force=True)
        file = logging.FileHandler(folder / "run.log", delay=True)
        file.setLevel(logging.ERROR)
        file.setFormatter(logging.Formatter(f"[%(asctime)s][%(levelname)s]{form}"))
        logging.getLogger().addHandler(file)
    elif handlers is not None:
        logging.config.dictConfig(handlers)
    else:
        from lit_pref.app.resume import log_to

        log_to(folder)


if __name__ == "__main__":
    sys.exit(main())
