"""Whether a run fits into memory, told before any weight is loaded, and what would fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from omegaconf import DictConfig

from lit_pref.app.build import Parts, lora_of
from lit_pref.app.own_gpu import own_gpu
from lit_pref.engine.available import available_bytes, resident_bytes
from lit_pref.engine.head import head_bytes
from lit_pref.objectives.families.paired import PairedModule
from lit_pref.objectives.forward import NO_GRADIENT_TOKENS
from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.decoding import logits_of_row, rows_within
from lit_pref.policies.footprint import Footprint, footprint
from lit_pref.policies.lora import LoRA
from lit_pref.policies.mapped import header_of
from lit_pref.policies.reference import FrozenReference
from lit_pref.types import Refusal

__all__ = ["Choices", "MemoryPlan", "Work", "check_memory", "plan_memory"]

log = logging.getLogger(__name__)

GIB = 2**30
LATER = 64 * 2**20
"""What the program still imports and makes beside tensors when training starts."""
SPREAD = 1.05
"""Freed blocks are not always where the next one fits."""
LOOKED_AT = 4096
"""Groups of a stored set whose lengths are read."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much goes through the model at once, in tokens.

    Attributes:
        prompt: of the longest prompt.
        answers: of the kept responses of the largest group.
        batch: of the largest batch of this process.
        rows: responses that could be sampled at the same time.
        sampled: of the longest prompt and response in sampling.
    """

    prompt: int
    answers: tuple[int, ...]
    batch: int
    rows: int
    sampled: int

    @property
    def group(self) -> int:
        return self.prompt + sum(self.answers)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Settings that decide how much memory the same training needs."""

    micro_batch_tokens: int | None
    gradient_checkpointing: bool
    max_rows: int | None
    lora: LoRA | None
    precision: str

    def overrides(self, other: Choices) -> str:
        """How a command line turns ``other`` into this."""
        words = []
        if self.micro_batch_tokens != other.micro_batch_tokens:
            words.append(f"data.micro_batch_tokens={self.micro_batch_tokens}")
        if self.gradient_checkpointing != other.gradient_checkpointing:
            words.append(f"model.gradient_checkpointing={str(self.gradient_checkpointing).lower()}")
        if self.max_rows != other.max_rows:
            words.append(f"sampler.max_rows={self.max_rows}")
        if self.lora != other.lora and self.lora is not None:
            words.append(f"model.lora.rank={self.lora.rank}")
        if self.precision != other.precision:
            words.append(f"trainer.precision={self.precision}")
        return " ".join(words)


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs at the peak of each phase, in bytes by part."""

    phases: dict[str, dict[str, int]]

    @property
    def phase(self) -> str:
        """The phase with the largest peak."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> int:
        return sum(self.phases[self.phase].values())

    def __str__(self) -> str:
        known = self.phases[self.phase].items()
        parts = ", ".join(f"{n} {b / GIB:.2f}" for n, b in known if b >= 0.005 * GIB)
        return f"{self.peak / GIB:.2f} GiB at the peak ({self.phase}: {parts})"


def plan_memory(
    found: Footprint,
    work: Work,
    choices: Choices,
    *,
    program: int,
    moments: int,
    reference: str,
    processes: int = 1,
    packed: bool = False,
) -> MemoryPlan:
    """Add up what each phase of a run needs.

    Args:
        found: of the model under these choices.
        work: tokens that go through it.
        choices: the settings.
        program: bytes of the process without tensors.
        moments: copies of the gradients that the optimizer keeps (AdamW: 2).
        reference: ``none``, ``memory`` (a copy is held), or ``file`` (there only while it works).
        processes: with more than one, gradients are held once more, in buckets.
        packed: sampling packs weights, as it does on a processor.
    """
    budget = min(choices.micro_batch_tokens or work.batch, work.batch)
    tokens = max(budget, work.group)
    responses = tokens * sum(work.answers) / work.group
    quiet = max(min(choices.micro_batch_tokens or NO_GRADIENT_TOKENS, 4 * work.batch), work.group)
    several = work.batch > tokens
    gradients = found.trainable * (2 if processes > 1 else 1)
    # A fresh gradient of the output layer stands beside the one that it is added to. In one
    # forward a batch, gradients come as activations go.
    fresh = found.table if several or processes > 1 else 0
    early = gradients if several else found.table
    activations = int(found.fixed + tokens * found.per_token)
    if choices.gradient_checkpointing:
        activations += int(tokens * found.again)
    held = {
        "program": program,
        "weights": found.weights,
        "reference": found.weights if reference == "memory" else 0,
        "optimizer": moments * found.trainable,
    }
    row = work.sampled * found.cache_per_token + logits_of_row(found.vocab_size)
    rows = min(choices.max_rows or rows_within(found.weights, int(row)), work.rows)
    training = {**held, "gradients": early + fresh, f"activations of {tokens} tokens": activations}
    training["logits"] = head_bytes(int(responses), found.vocab_size, half_table=found.half_table)
    noting = {**held, "gradients": gradients}
    if reference == "file":
        noting["reference"] = found.weights
    noting[f"forward of {quiet} tokens"] = int(quiet * found.again)
    noting["logits"] = head_bytes(int(quiet * responses / tokens), found.vocab_size, grad=False)
    sampling = {**held, "gradients": gradients, "packed weights": found.packed if packed else 0}
    sampling[f"cache of {rows} rows"] = int(rows * work.sampled * found.cache_per_token * 1.25)
    sampling["logits"] = rows * logits_of_row(found.vocab_size)
    phases = {"training step": training, "reference pass": noting, "sampling": sampling}
    for parts in phases.values():
        total = sum(parts.values()) - program
        parts["spread"] = int((SPREAD - 1) * total)
    return MemoryPlan(phases)


def check_memory(cfg: DictConfig, parts: Parts) -> MemoryPlan | None:
    """Plan a run, say it in the log, and refuse what does not fit.

    Args:
        cfg: the composed configuration.
        parts: what was made of it; no weight is loaded yet.

    Returns:
        The plan; None where there is none (no language model, an unknown architecture, shards).

    Raises:
        Refusal: it does not fit (``memory.when_over=refuse``).
    """
    settings = cfg.get("memory")
    if settings is None or settings.when_over == "off":
        return None
    if settings.when_over not in ("refuse", "warn"):
        raise Refusal(f"memory.when_over must be refuse, warn or off, got {settings.when_over!r}")
    planner = _planner(cfg, parts)
    if planner is None:
        return None
    plan = planner.plan(planner.choices)
    if plan is None:
        return None
    room = planner.room(settings.limit_gib)
    known = "" if room is None else f"; {room / GIB:.2f} GiB available"
    log.info("memory: %s%s", plan, known)
    if room is None or plan.peak <= room:
        return plan
    message = f"the run needs about {plan}, and {room / GIB:.2f} GiB are available. " + _advice(
        planner, room
    )
    if settings.when_over == "refuse":
        raise Refusal(f"{message} memory.when_over=warn tries it nevertheless")
    log.warning("%s", message)
    return plan


def _advice(planner: _Planner, room: int) -> str:
    fits, least = [], None
    for choices in planner.remedies():
        plan = planner.plan(choices)
        if plan is None:
            continue
        words = choices.overrides(planner.choices)
        if plan.peak <= room and words:
            fits.append(f"{words} ({plan.peak / GIB:.2f} GiB)")
        if least is None or plan.peak < least[0]:
            least = (plan.peak, words)
        if len(fits) == 3:
            break
    if fits:
        return f"What would fit: {'; or '.join(fits)}."
    if least is None:
        return "Use a smaller model."
    return (
        f"Even {least[1] or 'these settings'} would need {least[0] / GIB:.2f} GiB: use a smaller "
        "model, shorter responses (sampler.max_new_tokens) or a larger machine."
    )


class _Planner:
    """The plan of one run under changed settings."""

    def __init__(
        self, policy: HFPolicy, work: Work, choices: Choices, device: torch.device, **facts: Any
    ) -> None:
        self.policy, self.work, self.choices, self.device = policy, work, choices, device
        self.facts = facts
        self._found: dict[Any, Footprint | None] = {}
        self._program = LATER + resident_bytes() if device.type == "cpu" else 0

    def room(self, limit_gib: float | None) -> int | None:
        """Bytes of this process: the user's limit, or its share of what is there."""
        if limit_gib is not None:
            return int(limit_gib * GIB)
        room = available_bytes(self.device)
        share = self.facts["processes"] if self.device.type == "cpu" else 1
        return None if room is None else room // share

    def plan(self, choices: Choices) -> MemoryPlan | None:
        key = (choices.gradient_checkpointing, choices.lora, choices.precision)
        if key not in self._found:
            self._found[key] = footprint(
                self.policy.spec,
                group=(self.work.prompt, self.work.answers),
                path=self.policy.path,
                lora=choices.lora,
                gradient_checkpointing=choices.gradient_checkpointing,
                dtype=torch.bfloat16 if choices.precision == "bf16-true" else None,
                autocast=torch.bfloat16 if choices.precision == "bf16-mixed" else None,
            )
        found, reference = self._found[key], self.facts["reference"]
        if found is None:
            return None
        if reference != "none" and choices.lora is not None:
            reference = "none"  # it shares the weights
        elif reference == "file" and choices.precision == "bf16-true":
            reference = "memory"  # other bytes than in the file
        return plan_memory(
            found, self.work, choices, program=self._program, moments=self.facts["moments"],
            reference=reference, processes=self.facts["processes"],
            packed=self.device.type == "cpu",
        )  # fmt: skip

    def remedies(self) -> Iterator[Choices]:
        """From the mildest on: smaller parts first, then what changes how it trains."""
        now = self.choices
        parts = [replace(now, micro_batch_tokens=n) for n in self._budgets()]
        least = parts[-1] if parts else now
        rows = [
            n for n in (64, 32, 16, 8) if n < min(now.max_rows or self.work.rows, self.work.rows)
        ]
        yield from parts
        yield from (replace(now, max_rows=n) for n in rows)
        again = replace(now, gradient_checkpointing=True)
        yield again
        few = replace(least, max_rows=rows[-1] if rows else now.max_rows)
        yield replace(few, gradient_checkpointing=True)
        if now.lora is None and find_spec("peft") is not None:
            small = LoRA(rank=16)
            yield replace(now, lora=small)
            yield replace(few, lora=small, gradient_checkpointing=True)
        if now.precision != "bf16-true":
            yield replace(now, precision="bf16-true")
            yield replace(few, precision="bf16-true", gradient_checkpointing=True)

    def _budgets(self) -> list[int]:
        """Powers of two below the present budget; below the largest group nothing is gained."""
        top = min(self.choices.micro_batch_tokens or self.work.batch, self.work.batch)
        sizes = [2**n for n in range(20, 6, -1) if 2**n < top]
        useful = [n for n in sizes if n >= self.work.group]
        return useful + [n for n in sizes if n < self.work.group][:1]


def _planner(cfg: DictConfig, parts: Parts) -> _Planner | None:
    policy = parts.policy
    if not isinstance(policy, HFPolicy) or policy.spec.config is None or policy.spec.quantized:
        return None
    if "fsdp" in str(cfg.trainer.strategy):
        return None
    cuda = str(cfg.trainer.accelerator) != "cpu" and torch.cuda.is_available()
    if not cuda and str(cfg.trainer.accelerator) not in ("cpu", "auto"):
        return None  # an accelerator whose memory is not known here
    devices = cfg.trainer.get("devices", 1)
    processes = int(devices) if str(devices).isdigit() else 1
    choices = Choices(
        micro_batch_tokens=parts.data.micro_batch_tokens,
        gradient_checkpointing=policy.gradient_checkpointing,
        max_rows=getattr(parts.data.sampler, "max_rows", None),
        lora=lora_of(cfg.model),
        precision=str(cfg.trainer.precision),
    )
    adam = parts.objective.optimizer_settings.name != "sgd"
    return _Planner(
        policy, _work(parts, processes), choices, own_gpu(cfg) if cuda else torch.device("cpu"),
        processes=processes, moments=2 if adam else 0, reference=_reference(parts, cuda=cuda),
    )  # fmt: skip


def _reference(parts: Parts, *, cuda: bool) -> str:
    """Where the reference's weights will be."""
    reference, spec = parts.objective.reference, parts.policy.spec
    if reference is None:
        return "none"
    files = list(spec.weight_files())
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    if cuda or not isinstance(reference, FrozenReference) or not files:
        return "memory"
    for path in files:
        if path.suffix != ".safetensors":
            return "memory"
        header, _ = header_of(path)
        if any(kinds.get(entry["dtype"]) != spec.dtype for entry in header.values()):
            return "memory"
    return "file"


def _work(parts: Parts, processes: int) -> Work:
    data, objective = parts.data, parts.objective
    new = int(getattr(data.sampler, "max_new_tokens", 0) or 0)
    count = data.responses_per_prompt
    if isinstance(objective, PairedModule) and objective.pairs != "all":
        count = min(count, 2)
    groups: list[tuple[int, tuple[int, ...]]] = []
    if data.stored is not None and data.stored.groups is not None:
        every = max(data.stored.size // LOOKED_AT, 1)
        for row in range(0, data.stored.size, every):
            group = data.stored.groups[row]
            groups.append((len(group.prompt.ids), tuple(len(r.ids) for r in group.responses)))
    fresh = data.fresh_groups > 0 or data.stored is None or data.stored.groups is None
    prompts = [len(p.ids) for p in parts.task.prompts()] if fresh else []
    if fresh:
        groups += [(n, (new,) * count) for n in prompts]
    measured = [len(p.ids) for p in data.validation_prompts]
    sizes = [p + sum(a) for p, a in groups] or [1 + new]
    batch = -(-data.batch_size // processes)
    mean = sum(sizes) / len(sizes)
    spread = (sum((s - mean) ** 2 for s in sizes) / len(sizes)) ** 0.5
    likely = batch * mean + 3 * spread * batch**0.5
    prompt, answers = max(groups, key=lambda g: g[0] + sum(g[1]), default=(1, (new or 1,)))
    rows = data.prompts_per_round * data.responses_per_prompt if fresh else 0
    return Work(
        prompt=max(prompt, 1),
        answers=tuple(max(n, 1) for n in answers) or (1,),
        batch=max(int(min(likely, batch * max(sizes))), max(sizes)),
        rows=max(rows, len(measured)),
        sampled=max([*prompts, *measured], default=0) + new,
    )
