"""From a configuration to objects, in an order that checks everything before weights load."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from lit_pref.app.preflight import REPLACED_OPTIONS, did_you_mean
from lit_pref.app.quiet import quiet_lightning
from lit_pref.callbacks import MetricsCSV, RunFiles
from lit_pref.data import RoundDataModule
from lit_pref.objectives import ObjectiveModule
from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.lora import LoRA
from lit_pref.policies.spec import ModelSpec
from lit_pref.rewards import task_reward
from lit_pref.tasks.base import Task
from lit_pref.types import Refusal

__all__ = ["Parts", "build", "make", "make_objective", "make_reward", "make_spec", "make_task"]

log = logging.getLogger(__name__)

_MODEL_KEYS = (
    "lr", "micro_batch_tokens", "threads", "forward", "gradient_checkpointing", "lora",
)  # fmt: skip
_TASK_KEYS = ("sizes", "prepare", "rival_model")
_OBJECTIVE_KEYS = ("monitor",)
"""Keys of these groups that the run or other groups read; they are not for the group's class."""


@dataclass
class Parts:
    """What a run is made of; no weight is loaded yet."""

    task: Task
    policy: Any
    objective: ObjectiveModule
    data: RoundDataModule


def make(node: DictConfig, *, without: tuple[str, ...] = (), **extra: Any) -> Any:
    """Build a node's object.

    Nested nodes with a ``_target_`` go through Hydra; the outermost call is plain Python, so that
    objects arrive as they are and the constructor's own errors come out unwrapped.

    Args:
        node: with a ``_target_``. Its keys are arguments, and one that the constructor does not
            take is refused; only ``name``, which every node may have, is passed where it is taken.
        without: keys of the node that are not for the constructor, whether it takes them or not.
        extra: further arguments, passed where the constructor takes them.

    Raises:
        Refusal: the class cannot be imported, or cannot be made from these arguments.
    """
    fields = OmegaConf.to_container(node, resolve=True)
    assert isinstance(fields, dict)
    target = fields.pop("_target_")
    kind = _imported(target)
    taken = inspect.signature(kind).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    left = {*without, *({"name"} - set(taken))}
    fields = {k: v for k, v in fields.items() if k not in left}
    arguments = {str(k): _nested(v) for k, v in fields.items()}
    arguments.update({k: v for k, v in extra.items() if k in taken or open_ended})
    if arguments.pop("_partial_", False):
        return functools.partial(kind, **arguments)
    try:
        return kind(**arguments)
    except TypeError as error:  # a value of the wrong type, or an argument it does not take
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in fields:
            words = ", ".join(
                f"{k} must be a number, got {fields[k]!r}" for k in _words(kind, fields)
            )
            raise Refusal(
                f"{target} cannot be made from its configuration: {words or error}"
            ) from error
        known = sorted(set(_arguments(kind)) - {*extra, *without})
        raise Refusal(
            f"{target} does not take the key {unknown[1]!r}.{did_you_mean(unknown[1], known)} "
            f"It takes {', '.join(known)}"
        ) from error


def _imported(target: str) -> Any:
    """The class or function that a ``_target_`` names."""
    hydra = logging.getLogger("hydra.utils")  # it logs what is said here
    was, hydra.disabled = hydra.disabled, True
    try:
        return get_object(target)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise Refusal(
            f"cannot import {target!r} ({type(cause).__name__}: {cause}); check the _target_ of "
            "this group. Its module must be installed, or its folder be on PYTHONPATH"
        ) from error
    finally:
        hydra.disabled = was


def _arguments(kind: Any) -> dict[str, inspect.Parameter]:
    """What a function takes, or a class, with what it passes on to its bases."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found: dict[str, inspect.Parameter] = {}
    for maker in inspect.getmro(kind) if inspect.isclass(kind) else [kind]:
        parameters = inspect.signature(maker).parameters.values()
        found = {p.name: p for p in parameters if p.kind in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _words(kind: Any, fields: dict[Any, Any]) -> list[str]:
    """Keys with a text where a number is declared."""
    numbers = ("float", "int", "float | None", "int | None", float, int)
    declared = _arguments(kind)
    texts = [k for k, v in fields.items() if isinstance(v, str) and k in declared]
    return [k for k in texts if declared[k].annotation in numbers]


def _nested(value: Any) -> Any:
    """Objects for the parts of a field that have a ``_target_``."""
    if isinstance(value, dict):
        if "_target_" in value:
            try:
                return instantiate(value, _convert_="all")
            except InstantiationException as error:
                raise (error.__cause__ or error) from None
        return {k: _nested(v) for k, v in value.items()}
    return [_nested(v) for v in value] if isinstance(value, list) else value


def build(cfg: DictConfig) -> Parts:
    """Task, policy, objective and data, checked; weights load when training starts."""
    check_trainer(cfg)
    task, policy = task_and_policy(cfg)
    reference = make(cfg.reference) if "_target_" in cfg.reference else None
    objective = make_objective(
        cfg,
        policy=policy,
        reference=reference,
        optimizer=make(cfg.optimizer),
        scheduler=make(cfg.scheduler),
    )
    reward = None
    if cfg.reward.name == "task":
        samples = cfg.data.name == "onpolicy" or cfg.data.get("onpolicy_fraction", 0) > 0
        if samples or task.true_reward() is not None:
            reward = task_reward(task)
    else:
        reward = make_reward(cfg, task, tokenizer=policy.spec.tokenizer)
    more: dict[str, Any] = {}
    if "held_out" in cfg.data and cfg.data.held_out is None:
        more["held_out"] = 0.0 if objective.needs.policy else 0.1
    if "path" in cfg.data:  # groups of a file: their tokens are checked
        more["vocab_size"] = policy.spec.vocab_size
    data = make(
        cfg.data,
        **more,
        task=task,
        sampler=make(cfg.sampler),
        reward=reward,
        max_steps=cfg.trainer.max_steps,
        seed=cfg.seed,
    )
    data.check(objective)
    return Parts(task=task, policy=policy, objective=objective, data=data)


def make_spec(cfg: DictConfig) -> ModelSpec:
    """The model of the configuration, without its weights."""
    spec: ModelSpec = make(cfg.model, without=_MODEL_KEYS)
    return spec


def make_task(cfg: DictConfig, spec: ModelSpec) -> Task:
    """The task of the configuration, for this model; its files are not read yet."""
    task: Task = make(
        cfg.task,
        without=_TASK_KEYS,
        tokenizer=spec.tokenizer,
        eos_ids=spec.eos_ids,
        context_length=spec.context_length,
        max_new_tokens=cfg.sampler.max_new_tokens,
    )
    return task


def make_objective(cfg: DictConfig, **extra: Any) -> ObjectiveModule:
    """The objective of the configuration, on the policy of ``extra``."""
    objective: ObjectiveModule = make(cfg.objective, without=_OBJECTIVE_KEYS, **extra)
    return objective


def make_reward(cfg: DictConfig, task: Task, **extra: Any) -> Any:
    """The reward or oracle of the configuration, where it is not the task's own."""
    return make(cfg.reward, without=("name",), true_reward=task.true_reward(), **extra)


def _with_cache(initialise: Callable[..., None], cache_dir: str) -> Callable[..., None]:
    """A task's ``initialise``, told where to keep what it makes if it asks."""
    if "cache_dir" not in inspect.signature(initialise).parameters:
        return initialise
    return functools.partial(initialise, cache_dir=cache_dir)


def task_and_policy(cfg: DictConfig, *, initialise: bool = True) -> tuple[Task, HFPolicy]:
    """The task, its files read and checked, and the policy without its weights.

    Args:
        cfg: with ``task``, ``model``, ``sampler`` and ``paths``.
        initialise: bring a new policy to the task's initial policy; not for a trained model.
    """
    if cfg.model.get("threads"):
        torch.set_num_threads(cfg.model.threads)
    spec = make_spec(cfg)
    task = make_task(cfg, spec)
    _check_lengths(cfg, spec, task)
    task.check()
    start = _with_cache(task.initialise, cfg.paths.cache_dir) if initialise else None
    return task, _policy(cfg.model, spec, start)


def _policy(model: DictConfig, spec: ModelSpec, initialise: Callable[..., None] | None) -> HFPolicy:
    """The policy of a model; one of a class of its own has one forward and trains all weights."""
    lora = lora_of(model)
    if spec.policy is None:
        return HFPolicy(
            spec,
            initialise=initialise,
            path=model.forward,
            gradient_checkpointing=model.gradient_checkpointing,
            lora=lora,
        )
    asked = {
        "forward": model.forward != "auto",
        "gradient_checkpointing": model.gradient_checkpointing,
        "lora": lora is not None,
    }
    for key in (key for key, value in asked.items() if value):
        raise Refusal(
            f"model.{key} is for language models; model={model.name} has one forward and trains "
            "all of its weights: leave it out"
        )
    return spec.policy(spec, initialise=initialise)


def lora_of(model: DictConfig) -> LoRA | None:
    """Adapters to train instead of the model's weights; None where ``model.lora`` asks for none."""
    node = model.get("lora")
    if node is None or node.rank is None:
        return None
    return LoRA(**OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]


def _check_lengths(cfg: DictConfig, spec: Any, task: Task) -> None:
    length, room = cfg.sampler.max_new_tokens, spec.context_length
    if not task.eos_ids and length != task.max_new_tokens:
        raise Refusal(
            f"sampler.max_new_tokens={length}, but responses of task {task.name!r} have exactly "
            f"{task.max_new_tokens} tokens; leave sampler.max_new_tokens out"
        )
    if length >= room:
        raise Refusal(
            f"sampler.max_new_tokens={length} leaves no room for a prompt in the context of "
            f"{spec.name} ({room} tokens); lower sampler.max_new_tokens"
        )


def check_trainer(cfg: DictConfig) -> None:
    """Refuse Lightning options that rounds and manual optimisation replace."""
    for name, instead in REPLACED_OPTIONS.items():
        if cfg.trainer.get(name) is not None:
            raise Refusal(f"trainer.{name}={cfg.trainer[name]} does not apply here; {instead}")
    if str(cfg.trainer.strategy).startswith("fsdp"):
        raise Refusal(
            f"trainer.strategy={cfg.trainer.strategy}: FSDP of the first generation is not "
            "supported; use strategy=fsdp2"
        )
    if re.search("spawn|fork|notebook", str(cfg.trainer.strategy)):
        raise Refusal(
            f"trainer.strategy={cfg.trainer.strategy}: processes that are copies of this one are "
            "not supported; use strategy=ddp, which starts its own"
        )
    if str(cfg.trainer.precision) in ("16", "16-mixed", "16-true"):
        raise Refusal(
            f"trainer.precision={cfg.trainer.precision}: half precision with loss scaling is not "
            "supported; use bf16-mixed or 32-true"
        )


def trainer_of(cfg: DictConfig, parts: Parts, folder: str, **extra: Any) -> L.Trainer:
    """The trainer of a run: the configuration's options, the data's, ours and the user's."""
    quiet_lightning()
    options = _nested(OmegaConf.to_container(cfg.trainer, resolve=True))
    wanted = parts.data.trainer_kwargs()
    callbacks = wanted.pop("callbacks")
    callbacks += [make(node) for node in _present(cfg.get("callbacks"))]
    callbacks += [RunFiles(folder), *extra.pop("callbacks", [])]
    loggers = [MetricsCSV(folder), *(make_logger(node) for node in _present(cfg.get("logger")))]
    try:
        return L.Trainer(
            **{**options, **wanted},
            callbacks=callbacks,
            logger=loggers,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            **extra,
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise Refusal(f"lightning.Trainer cannot be made from trainer.*: {error}") from error


def _present(group: DictConfig | None) -> list[DictConfig]:
    """Nodes of a group of named objects; null switches one off."""
    return [node for node in (group or {}).values() if node is not None]


def make_logger(node: DictConfig) -> Any:
    """A Lightning logger; a missing package is a refusal that names the install command."""
    try:
        return make(node)
    except ModuleNotFoundError as error:
        name = node["_target_"].rsplit(".", 1)[-1]
        extra = "wandb" if "Wandb" in name else "tensorboard"
        raise Refusal(
            f"{name} needs a package that is not installed ({error}); "
            f'install it with: pip install -e ".[{extra}]"'
        ) from error
