"""One export: the weights of a checkpoint as the folder that the run itself would write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lit_pref.app.build import lora_of, make_objective, make_spec, task_and_policy
from lit_pref.app.policy import checkpoint_file, checkpoint_state, load_weights, trains_policy
from lit_pref.app.request import Source
from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.pretrained import no_progress_bars
from lit_pref.types import Refusal

__all__ = ["export_run"]


def export_run(source: Source, output: Path) -> Path:
    """Write the weights of a run as a Hugging Face folder, whole or not at all.

    A reward model becomes a sequence-classification folder, like the ``export/`` of its run.

    Args:
        source: a run, and which of its checkpoints.
        output: a folder that is new or empty.

    Raises:
        Refusal: there are no such weights, or the folder cannot be written.
    """
    assert source.run is not None
    cfg = OmegaConf.load(source.run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    if lora_of(cfg.model) is None:
        # Every weight comes from the checkpoint: the task's files and start are not needed.
        spec = make_spec(cfg)
        made = HFPolicy(spec, path="padded") if spec.policy is None else spec.policy(spec)
        policy = made.load()
    else:  # adapters belong to the policy as it was before training
        policy = task_and_policy(cfg)[1].load()
    if trains_policy(cfg):
        load_weights(policy, source)
        save: Callable[[str], None] = policy.save_pretrained
    else:
        save = _scorer(cfg, policy, source)
    part = output.with_name(output.name + ".part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with no_progress_bars():
            save(str(part))
        if output.exists():
            output.rmdir()
        part.rename(output)
    except OSError as error:
        raise Refusal(
            f"{output} cannot be written ({error}); choose another folder with output=FOLDER"
        ) from error
    return output


def _scorer(cfg: DictConfig, policy: HFPolicy, source: Source) -> Callable[[str], None]:
    """The objective's own export, with the weights of the checkpoint in policy and head."""
    assert source.run is not None
    path = checkpoint_file(source.run, source.checkpoint or "last")
    if path.is_dir():
        raise Refusal(f"{path} is the exported reward model already; copy the folder")
    objective = make_objective(cfg, policy=policy)
    objective.configure_model()
    state, _ = checkpoint_state(path)
    try:
        objective.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise Refusal(f"{path} does not fit the run's objective and model: {first}") from error
    return objective.export
