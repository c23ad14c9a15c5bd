"""The policy of a request with its weights, and work on it under a Trainer (device, precision)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import get_object
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from lit_pref.app.build import make_reward, task_and_policy
from lit_pref.app.precision import settle_precision
from lit_pref.app.prepare import plan, prepare
from lit_pref.app.quiet import quiet_lightning
from lit_pref.app.request import Request, Source
from lit_pref.callbacks import newest_checkpoint
from lit_pref.objectives.forward import EngineForward
from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.models import hf
from lit_pref.policies.pretrained import no_progress_bars
from lit_pref.rewards.base import measuring
from lit_pref.tasks.base import Task
from lit_pref.types import Forward, Policy, Refusal

__all__ = [
    "PolicyWork",
    "load_weights",
    "policy_of",
    "reference_of",
    "checkpoint_file",
    "checkpoint_state",
    "reward_of",
    "trains_policy",
    "work_on",
]

log = logging.getLogger(__name__)


def policy_of(request: Request) -> tuple[Task, HFPolicy]:
    """The task and the policy before any training of the run; its weights are loaded later.

    Runs that the task needs are made first, where they are not there.

    Raises:
        Refusal: the run trains no policy.
    """
    run = request.source.run
    if run is not None and not trains_policy(OmegaConf.load(run / "config.yaml")):
        raise Refusal(
            f"{run} trains a reward model, and no policy that could respond. Its accuracy on "
            f"held-out pairs is in {run / 'summary.json'}; use it as a reward with reward=learned "
            f"reward.path={run}, or write its folder with lit-pref export {run}"
        )
    prepare(plan(request.cfg))
    return task_and_policy(request.cfg, initialise=request.source.folder is None)


def trains_policy(cfg: Any) -> bool:
    """Whether a run's objective trains a policy; reward models train a score."""
    target = OmegaConf.select(cfg, "objective._target_")
    try:
        return target is None or get_object(target).needs.policy
    except ImportError:  # its package is not here; the weights of a policy do not need it
        return True


def reward_of(cfg: DictConfig, task: Task, *, prefer_true: bool, measure: bool = False) -> Any:
    """The reward of the configuration; None where it is the task's own and the task has none.

    Args:
        cfg: with a ``reward`` node.
        task: the task.
        prefer_true: take the task's true reward where there is one, as validation does.
        measure: leave noise out, and refuse what compares and does not score.
    """
    true = task.true_reward()
    if cfg.reward.name == "task" or (prefer_true and true is not None):
        return true
    reward = make_reward(cfg, task)
    if not measure:
        return reward
    if (found := measuring(reward)) is None and not prefer_true:
        raise Refusal(
            f"reward={cfg.reward.name} compares responses with each other and gives none a score "
            "of its own, so it cannot measure a policy; choose a reward that scores"
        )
    return found


# --------------------------------------------------------------------------- weights


def load_weights(policy: HFPolicy, source: Source) -> dict[str, Any]:
    """Load the weights that a request asks for into its policy.

    Args:
        policy: loaded, as it was before training.
        source: what to load; a model folder is loaded already.

    Returns:
        ``checkpoint`` (the file, None for the model as it comes) and ``step`` (optimizer steps
        taken, None if the file does not say).

    Raises:
        Refusal: there are no such weights, or they are of another model.
    """
    if source.run is None:
        return {"checkpoint": None, "step": None}
    path = checkpoint_file(source.run, source.checkpoint or "last")
    if path.is_dir():
        weights, step = _folder_weights(path), None
        target: Any = policy.load_whole_state
    else:
        state, step = checkpoint_state(path)
        weights = {k.removeprefix("policy."): v for k, v in state.items() if k[:7] == "policy."}
        target = policy.load_state_dict
    try:
        target(weights)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise Refusal(
            f"{path} holds the weights of another model than {policy.spec.name}: {first}. Leave "
            "model= out, so that the run's own is taken"
        ) from error
    log.info("weights: %s%s", path, "" if step is None else f" (step {step})")
    return {"checkpoint": str(path), "step": step}


def checkpoint_file(run: Path, which: str) -> Path:
    """Where the weights of a run are that ``checkpoint=...`` means.

    Raises:
        Refusal: there are none.
    """
    folder, export = run / "checkpoints", run / "export"
    if which == "last":
        newest = newest_checkpoint(folder)
        if newest is None and not export.is_dir():
            raise Refusal(
                f"{run} has no checkpoint and no export/ yet; go on with it "
                f"(python train.py resume={run}) or give another run"
            )
        return newest or export
    path = {"best": folder / "best.ckpt", "export": export}.get(which, Path(which).expanduser())
    if not path.exists():
        present = sorted(p.stem for p in folder.glob("*.ckpt")) if folder.is_dir() else []
        there: list[str] = [*(p for p in ("last", "best") if p in present)]
        there += ["export"] if export.is_dir() else []
        raise Refusal(
            f"checkpoint={which}: {path} does not exist; this run has "
            f"{', '.join(there) or 'none'}; a file can be named too"
        )
    return path


def checkpoint_state(path: Path) -> tuple[dict[str, torch.Tensor], int | None]:
    """The weights of the whole objective in a checkpoint, and its step.

    Raises:
        Refusal: it cannot be read.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return saved["state_dict"], saved.get("global_step")
    except Exception as error:  # any kind of damage
        raise Refusal(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error}); try "
            "checkpoint=best or checkpoint=export"
        ) from error


def _folder_weights(path: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    try:
        with no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} cannot be read as a model folder: {error}") from error
    return model.state_dict()


def reference_of(request: Request, policy: HFPolicy) -> tuple[HFPolicy | None, str | None]:
    """The model that KL, wins and preferences are relative to, and its name.

    Args:
        request: its ``reference_model``: initial, a folder, none, or null.
        policy: loaded, as it was before training.

    Raises:
        Refusal: there is no such model, or it has other tokens.
    """
    wanted, run = request.cfg.reference_model, request.source.run
    if wanted is None:
        wanted = "none" if run is None else "initial"
    if wanted == "none":
        return None, None
    if wanted == "initial":
        if run is None:
            raise Refusal(
                "reference_model=initial is the policy before a run's training, and no run was "
                "given; name a model folder: reference_model=FOLDER"
            )
        return policy.frozen_copy(), "initial policy"
    reference = HFPolicy(hf(wanted), path=request.cfg.model.forward).load()
    mine, theirs = policy.spec, reference.spec
    if mine.vocab_size != theirs.vocab_size:
        raise Refusal(
            f"reference_model={wanted} has {theirs.vocab_size} tokens, the policy "
            f"{mine.vocab_size}; KL needs a reference with the same tokens"
        )
    return reference.requires_grad_(False).eval(), str(wanted)


# --------------------------------------------------------------------------- work


class PolicyWork(L.LightningModule):
    """Policy and reference on their devices, and one piece of work on them.

    Args:
        policy: loaded.
        reference: loaded, or None.
        micro_batch_tokens: token budget of one forward.
        work: called once in every process, with this.
    """

    def __init__(
        self,
        policy: HFPolicy,
        reference: HFPolicy | None,
        *,
        micro_batch_tokens: int | None,
        work: Callable[[PolicyWork], Any],
    ) -> None:
        super().__init__()
        self.policy, self.reference = policy, reference
        self.micro_batch_tokens = micro_batch_tokens
        self.work = work
        self.result: Any = None
        self.stopped = False

    def predict_step(self, batch: Any, batch_idx: int) -> bool:
        try:
            self.result = self.work(self)
        except KeyboardInterrupt:  # Lightning would exit with 1
            self.stopped = True
        return not self.stopped

    def where(self) -> dict[str, Any]:
        """This process and its precision, as sampling wants to know them."""
        return {
            "rank": self.trainer.global_rank,
            "world": self.trainer.world_size,
            "context": self.trainer.precision_plugin.forward_context,
        }

    def forward_pass(self) -> Forward:
        """How log-probs are computed."""
        models: dict[str, Policy] = {"policy": self.policy}
        if self.reference is not None:
            models["reference"] = self.reference
        context = self.trainer.precision_plugin.forward_context
        return EngineForward(models, self.micro_batch_tokens, self.device, context)


def work_on(cfg: DictConfig, module: PolicyWork) -> Any:
    """Run the work under the Trainer of ``cfg.trainer``; its result."""
    settle_precision(cfg)
    options = OmegaConf.to_container(cfg.trainer, resolve=True)
    assert isinstance(options, dict)
    names = ("accelerator", "devices", "num_nodes", "precision", "strategy", "deterministic")
    quiet_lightning()
    try:
        trainer = L.Trainer(
            **{k: options[k] for k in names if k in options},
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise Refusal(f"lightning.Trainer cannot be made from trainer.*: {error}") from error
    trainer.predict(module, dataloaders=range(1), return_predictions=False)
    if module.stopped:
        raise KeyboardInterrupt
    return module.result
