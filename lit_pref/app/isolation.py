"""What a job changes in its process is put back, so that jobs of a sweep do not meet."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["isolated"]

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lit_pref", "transformers")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def isolated() -> Iterator[None]:
    """Put back environment, random states, switches of torch, signal handlers and log levels.

    Lightning leaves PL_GLOBAL_SEED, CUBLAS_WORKSPACE_CONFIG, cudnn.benchmark, deterministic
    algorithms and the states of the global generators as the last run had them.
    """
    environment = dict(os.environ)
    states = _random_states()
    switches = _switches()
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    main = threading.current_thread() is threading.main_thread()
    handlers = {s: signal.getsignal(s) for s in _SIGNALS} if main else {}
    try:
        yield
    finally:
        _end_process_group()
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        _restore_random(states)
        _restore_switches(switches)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        gc.collect()  # trainer, module and callbacks refer to each other
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _random_states() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return (
        random.getstate(),
        None if numpy is None else numpy.random.get_state(),
        torch.get_rng_state(),
        cuda,
    )


def _restore_random(states: tuple[Any, ...]) -> None:
    python, numpy_state, cpu, cuda = states
    random.setstate(python)
    if numpy_state is not None:
        sys.modules["numpy"].random.set_state(numpy_state)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


def _switches() -> dict[str, Any]:
    return {
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.backends.cudnn.deterministic,
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
    }


def _restore_switches(was: dict[str, Any]) -> None:
    torch.backends.cudnn.benchmark = was["benchmark"]
    torch.backends.cudnn.deterministic = was["deterministic"]
    torch.use_deterministic_algorithms(was["algorithms"], warn_only=was["warn_only"])
    torch.set_float32_matmul_precision(was["matmul"])
    if torch.get_num_threads() != was["threads"]:
        torch.set_num_threads(was["threads"])
    torch.set_default_dtype(was["dtype"])
    torch.set_grad_enabled(was["grad"])
    torch.autograd.set_detect_anomaly(was["anomaly"])


def _end_process_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
