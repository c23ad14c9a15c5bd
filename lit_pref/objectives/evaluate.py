"""What ``trainer.validate``, ``trainer.test`` and ``trainer.predict`` do with an objective.

The DataModule samples and scores (objectives and data meet in the trainer alone); training itself
is measured by the Evaluation callback, never by Lightning's validation loop.
"""

from __future__ import annotations

from typing import Any

from lit_pref.types import Group, Refusal

__all__ = ["log_measures", "predict_groups"]


def log_measures(module: Any, batch: Any, prefix: str) -> None:
    """Sample responses to a batch of prompts and log ``<prefix>/reward``, ``/kl`` and so on.

    Every process logs the numbers of the whole batch, weighted by what they are means over, so
    that the result is that of all prompts at once.

    Args:
        module: the objective, attached to a trainer.
        batch: prompts, from the DataModule's own loader.
        prefix: ``"val"`` or ``"test"``.
    """
    measured = _data(module).measure(module, batch.prompts, key=(batch.stage,))
    for name, (value, weight) in measured.metrics().items():
        module.log(
            f"{prefix}/{name}",
            value,
            batch_size=weight,
            on_step=False,
            on_epoch=True,
            sync_dist=module.trainer.world_size > 1,
        )


def predict_groups(module: Any, batch: Any) -> list[Group]:
    """Responses to a batch of prompts as groups, sampled and scored as the DataModule says."""
    return _data(module).respond(module, batch.prompts, stage=batch.stage)


def _data(module: Any) -> Any:
    data = module.trainer.datamodule
    if data is None or not hasattr(data, "measure"):
        raise Refusal(
            "validate, test and predict of an objective sample with its data source: pass "
            "datamodule=OnPolicyDataModule(...) or OfflineDataModule(...), got "
            f"{'none' if data is None else type(data).__name__}"
        )
    return data
