"""``samples.jsonl`` and ``validation.jsonl`` of a run, and cutting all files back on resume."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L

from lit_pref.callbacks.metrics_csv import MetricsCSV
from lit_pref.types import Group, Round

__all__ = ["RunFiles"]

log = logging.getLogger(__name__)


class RunFiles(L.Callback):
    """Writes samples and validation samples; its state is how far each file reached.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.lines = {"samples.jsonl": 0, "validation.jsonl": 0}
        self._restored: dict[str, Any] | None = None
        self._trainer: L.Trainer | None = None
        self._begun = False

    # ------------------------------------------------------------------ set-up and resume

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._trainer = trainer
            trainer.datamodule.listeners.append(self)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()

    def _begin(self) -> None:
        """Start or cut back the files, once, at the first use.

        Not at the start of the fit: a sharded strategy restores its state only after that.
        """
        trainer: Any = self._trainer
        if self._begun or not trainer.is_global_zero:
            return
        self._begun = True
        state = self._restored
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.start() if state is None else logger.restore(state["metrics"])
        for name in self.lines:
            lines = 0 if state is None else state["lines"][name]
            self.lines[name] = _cut(self.folder / name, lines)
            if self.lines[name] < lines:
                log.warning("%s has lost lines: %d of %d are left", name, self.lines[name], lines)

    def state_dict(self) -> dict[str, Any]:
        csv = [x for x in self._trainer.loggers if isinstance(x, MetricsCSV)]  # type: ignore[union-attr]
        return {
            "lines": dict(self.lines),
            "metrics": csv[0].state() if csv else {},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    # ------------------------------------------------------------------ rounds

    def on_pass_start(self, index: int, number: int) -> None:
        """Nothing to write."""

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """Nothing to write."""

    def on_round(self, round: Round) -> None:
        self._begin()
        trainer: Any = self._trainer
        rewards = [r.reward for g in round.groups for r in g.responses if r.reward is not None]
        lengths = [len(r.ids) for g in round.groups for r in g.responses]
        finished = [r.finished for g in round.groups for r in g.responses]
        values = {
            "completions/mean_length": sum(lengths) / len(lengths),
            "completions/min_length": float(min(lengths)),
            "completions/max_length": float(max(lengths)),
            "completions/clipped_ratio": 1 - sum(finished) / len(finished),
            **round.counts,
        }
        if rewards:
            mean = sum(rewards) / len(rewards)
            variance = sum((r - mean) ** 2 for r in rewards) / len(rewards)
            values["round/reward"], values["round/reward_std"] = mean, variance**0.5
            spread = [{r.reward for r in g.responses} for g in round.groups]
            spread = [s for s in spread if None not in s]  # ranks or labels are signal too
            if spread:
                values["round/no_signal"] = sum(len(s) == 1 for s in spread) / len(spread)
        data = trainer.datamodule
        for logger in trainer.loggers:
            logger.log_metrics({**data.progress(), **values}, step=trainer.global_step)
        self._append("samples.jsonl", (g.to_json() for g in data.newly_sampled))

    def on_failed_round(self, index: int, groups: list[Group]) -> None:
        """Keep what was sampled before the failure, in a file of its own."""
        path = self.folder / "failed_round.jsonl"
        rank = self._trainer.global_rank  # type: ignore[union-attr]
        if rank:
            path = path.with_name(f"failed_round.rank{rank}.jsonl")
        path.write_text("".join(_line(g.to_json() | {"round": index}) for g in groups))
        log.error("round %d failed; the %d groups sampled so far: %s", index, len(groups), path)

    def on_evaluation(self, trainer: L.Trainer, metrics: dict, groups: list[Group]) -> None:
        """Called by ``Evaluation``."""
        self._begin()
        lines = ({"step": trainer.global_step, **g.to_json()} for g in groups)
        self._append("validation.jsonl", lines)

    def _append(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        if not self._trainer.is_global_zero:  # type: ignore[union-attr]
            return
        with (self.folder / name).open("a", encoding="utf-8") as file:
            for record in records:
                file.write(_line(record))
                self.lines[name] += 1


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _cut(path: Path, lines: int) -> int:
    """Keep the first ``lines`` lines, and say how many there were of them.

    The file is replaced as a whole.
    """
    kept = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".jsonl.part")
    with temporary.open("wb") as out:
        if lines and path.exists():
            with path.open("rb") as file:
                for _, line in zip(range(lines), file, strict=False):
                    out.write(line)
                    kept += 1
    os.replace(temporary, path)
    return kept
