"""A few steps of a run, timed by phase and counted by part; see ``lit-pref bench``."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from lit_pref.app.build import build, trainer_of
from lit_pref.app.memory_plan import MemoryPlan, check_memory
from lit_pref.app.precision import settle_precision
from lit_pref.engine.allocator import keep_freed_memory
from lit_pref.engine.forward import micro_batches
from lit_pref.engine.layout import prefer_packed
from lit_pref.rewards.scoring import Scoring
from lit_pref.types import Batch, FlatTokens

__all__ = ["measure"]


class Phases:
    """Seconds by name, counted only while ``counting``; a phase inside another is taken off it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.overlapping: dict[str, float] = {}
        self.counting = False
        self._inner: list[float] = []
        self._replaced: list[tuple[Any, str, Any]] = []

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Time every call of ``owner.method``, until ``undo``; of an object or of a class."""
        run: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = _now()
            self._inner.append(0.0)
            try:
                return run(*args, **kwargs)
            finally:
                spent = _now() - start
                own = spent - self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent
                if self.counting:
                    self.seconds[name] = self.seconds.get(name, 0.0) + own

        self._replace(owner, method, run, timed)

    def beside(self, owner: Any, method: str, name: str) -> None:
        """Time calls that a second thread makes: they are part of no other phase."""
        run: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return run(*args, **kwargs)
            finally:
                if self.counting:
                    spent = time.perf_counter() - start
                    self.overlapping[name] = self.overlapping.get(name, 0.0) + spent

        self._replace(owner, method, run, timed)

    def _replace(self, owner: Any, method: str, run: Any, timed: Any) -> None:
        self._replaced.append((owner, method, run))
        setattr(owner, method, timed)

    def undo(self) -> None:
        """Everything is called without a clock again."""
        while self._replaced:
            owner, method, run = self._replaced.pop()
            setattr(owner, method, run)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class _Meter(L.Callback):
    """Starts the clock after the first step and counts what goes through the model."""

    def __init__(self, phases: Phases, policy: Any) -> None:
        self.phases, self.policy = phases, policy
        self.began = self.ended = 0.0
        self.steps = self.tokens = self.responses = self.positions = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.ended = _now()
        if not self.phases.counting:
            self.began, self.phases.counting = self.ended, True
            return
        self.steps += 1
        self.tokens += batch.tokens.num_tokens
        self.responses += sum(batch.tokens.lengths)
        for index in micro_batches(
            batch.tokens, batch.micro_batch_tokens, whole_prompts=pl_module.whole_prompts
        ):
            self.positions += self._positions(batch.tokens.select(index))

    def _positions(self, tokens: FlatTokens) -> int:
        """Positions that one forward computes."""
        path = self.policy.path
        if path == "packed" or (path == "auto" and prefer_packed(tokens)):
            return tokens.num_tokens
        rows = zip(tokens.prompt_of, tokens.lengths, strict=True)
        return max(tokens.prompt_lengths[p] + n for p, n in rows) * tokens.num_responses


def measure(cfg: DictConfig, steps: int) -> str:
    """Train for some steps in a temporary folder; the table as text.

    Args:
        cfg: the composed configuration of ``lit-pref train``; it is changed.
        steps: optimizer steps, the first of them not counted.
    """
    OmegaConf.set_struct(cfg, False)
    cfg.trainer.max_steps, cfg.callbacks, cfg.logger = steps, {}, {}
    cfg.data.rounds = max(int(cfg.data.rounds), steps)
    if str(cfg.trainer.accelerator) == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
    settle_precision(cfg)
    L.seed_everything(cfg.seed, workers=False, verbose=False)
    parts = build(cfg)
    plan = check_memory(cfg, parts)
    phases = Phases()
    meter = _Meter(phases, parts.policy)
    _watch(phases, parts)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(cfg, parts, folder, callbacks=[meter], enable_checkpointing=False)
            trainer.fit(parts.objective, datamodule=parts.data)
    finally:
        phases.undo()
    return "\n".join(_lines(meter, phases, parts, trainer, plan))


def _watch(phases: Phases, parts: Any) -> None:
    phases.wrap(parts.data.sampler, "sample", "generate")
    phases.wrap(Scoring, "finish", "reward")  # what is left to wait for after sampling
    for call in ("score", "compare"):  # rewards have one, oracles the other
        if hasattr(parts.data.reward, call):
            phases.beside(parts.data.reward, call, "reward (beside others)")
    phases.wrap(parts.objective, "annotate", "annotate")
    phases.wrap(parts.objective, "training_step", "forward and backward")
    phases.wrap(parts.objective, "_update", "optimizer")
    phases.wrap(parts.objective, "log_step", "logging")


def _lines(
    meter: _Meter, phases: Phases, parts: Any, trainer: L.Trainer, plan: MemoryPlan | None
) -> Iterable[str]:
    seconds = meter.ended - meter.began
    each = seconds / meter.steps
    yield f"{'steps measured':24} {meter.steps} in {seconds:.2f} s, {each:.4f} s each"
    yield (
        f"{'tokens a second':24} {meter.tokens / seconds:.0f} (prompts counted once), "
        f"{meter.responses / seconds:.0f} of responses"
    )
    yield f"{'precision':24} {trainer.precision}"
    if meter.positions:
        yield f"{'useful positions':24} {meter.tokens / meter.positions:.1%} of those computed"
    else:  # ties alone, for example
        yield f"{'useful positions':24} none: no response of these steps was trained on"
    yield from _utilisation(meter, phases, parts.policy, str(trainer.precision))
    yield ""
    for name, size in _memory(parts, trainer).items():
        yield f"{name:24} {size / 2**20:.1f} MiB"
    if plan is not None:
        yield f"{'planned':24} {plan}"
    yield ""
    rest = seconds - sum(phases.seconds.values())
    for name, value in [
        *phases.seconds.items(),
        ("loop and data", rest),
        *phases.overlapping.items(),
    ]:
        yield f"{name:24} {value / meter.steps * 1000:.2f} ms a step, {value / seconds:.1%}"


def _utilisation(meter: _Meter, phases: Phases, policy: Any, precision: str) -> Iterable[str]:
    """Useful floating-point operations of the update, against a large matrix product."""
    embeddings = getattr(policy.model, "get_input_embeddings", None)
    if embeddings is None:
        yield f"{'model-FLOP utilisation':24} counted for language models alone"
        return
    table = embeddings().weight
    body = sum(p.numel() for p in policy.parameters()) - table.numel()
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    passes = 6 if trained >= body else 4  # frozen weights have no gradient of their own
    head = policy.model.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is table
    work = passes * (body * meter.tokens + (table.numel() * meter.responses if tied else 0))
    rate = work / max(phases.seconds.get("forward and backward", 0.0), 1e-9)
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    best = _matmul_rate(table.device, mixed.get(precision, table.dtype))
    share = f"{rate / best:.1%} of {best / 1e9:.0f} GFLOP/s"
    yield f"{'model-FLOP utilisation':24} {share} in the update"


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product, the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    times = []
    for _ in range(6):
        start = _now()
        a @ a
        times.append(_now() - start)
    return 2 * size**3 / min(times[1:])


def _memory(parts: Any, trainer: L.Trainer) -> dict[str, float]:
    def size(tensors: Iterable[Any]) -> float:
        return float(sum(t.numel() * t.element_size() for t in tensors))

    mine = list(parts.objective.parameters())
    reference = getattr(parts.objective.reference, "copy", None)
    shared = {id(p) for p in mine}
    others = [] if reference is None else [p for p in reference.parameters() if id(p) not in shared]
    states = [t for o in trainer.optimizers for s in o.state.values() for t in s.values()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    out = {
        "weights": size(mine),
        "reference": size(others),
        "gradients": size(p for p in mine if p.requires_grad),
        "optimizer state": size(t for t in states if torch.is_tensor(t)),
        "process at its peak": float(peak),
    }
    if torch.cuda.is_available():
        out["device at its peak"] = float(torch.cuda.max_memory_allocated())
    return out
