"""``reward=learned``: a reward model that ``objective=reward_model`` trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lit_pref.policies.scorer import HEAD_FILE, Scorer, load_scorer
from lit_pref.rewards.base import at_least_one
from lit_pref.types import Group, Refusal

__all__ = ["LearnedReward", "folder_fingerprint", "own_device"]


class LearnedReward:
    """Scores responses as the reward model did in its training: on the same token ids.

    Args:
        path: a run directory of ``objective=reward_model`` (its ``export/`` is read), or a
            sequence-classification folder of transformers with a single label.
        batch_size: responses that are scored at once.
        groups_at_once: prompts, with all their responses, in one call.
        device: where it runs; None: this process's GPU if there is one, else the processor.
        tokenizer: of the policy, to check that both have the same tokens.

    Raises:
        Refusal: no such folder, not a reward model, or one for other tokens.
    """

    name = "learned"
    held_out_accuracy: float | None
    """``val/accuracy`` at the end of its training: on pairs that it was not trained on."""

    def __init__(
        self,
        *,
        path: str,
        batch_size: int = 32,
        groups_at_once: int = 1,
        device: str | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.folder = _folder(path)
        self.held_out_accuracy = _held_out_accuracy(self.folder)
        self.batch_size = at_least_one("batch_size", batch_size)
        self.groups_at_once = at_least_one("groups_at_once", groups_at_once)
        self.device = device
        self.version = _fingerprint(self.folder)
        self._scorer: Scorer | None = None
        if tokenizer is not None:
            _check_tokens(self.folder, tokenizer)

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order."""
        sequences = [[*g.prompt.ids, *r.ids] for g in groups for r in g.responses]
        scorer = self._loaded()
        # Neighbours of like length waste little on padding.
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        out = [0.0] * len(sequences)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            for i, score in zip(part, scorer([sequences[i] for i in part]).tolist(), strict=True):
                out[i] = score
        return out

    def _loaded(self) -> Scorer:
        """The model, loaded when it is first needed."""
        if self._scorer is None:
            self._scorer = load_scorer(self.folder).to(self.device or own_device())
        return self._scorer


def own_device() -> str:
    """This process's GPU if there is one, else the processor.

    Which one it is stands fast once training (or evaluation) has begun.
    """
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _folder(path: str) -> Path:
    given = Path(path).expanduser()
    found = next((f for f in (given / "export", given) if (f / "config.json").exists()), None)
    if found is None:
        raise Refusal(
            f"reward.path={path}: neither {given / 'export'} nor {given} holds a config.json; give "
            "a finished run of objective=reward_model, or a model folder"
        )
    kinds = json.loads((found / "config.json").read_text()).get("architectures") or []
    scored = any("SequenceClassification" in k for k in kinds) or (found / HEAD_FILE).exists()
    if not scored:
        raise Refusal(
            f"reward.path={path}: {found} holds {', '.join(kinds) or 'a model'}, which scores "
            "nothing; give a run of objective=reward_model, or a sequence-classification folder"
        )
    return found


def _held_out_accuracy(folder: Path) -> float | None:
    """From the summary of the run that the export belongs to, if it is one."""
    try:
        summary = json.loads((folder.parent / "summary.json").read_text())
        return float(summary["accuracy_final"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def folder_fingerprint(folder: str | Path) -> str | None:
    """A digest of the weights (safetensors) in a folder; None if there are none."""
    files = sorted(Path(folder).expanduser().glob("*.safetensors"))
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=6)
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _fingerprint(folder: Path) -> str:
    """Equal versions score alike."""
    found = folder_fingerprint(folder)
    if found is None:
        raise Refusal(f"{folder} holds no weights (*.safetensors); export the reward model again")
    return found


def _check_tokens(folder: Path, tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    own = None
    if (folder / "tokenizer_config.json").exists():
        own = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if own is None or own.get_vocab() != tokenizer.get_vocab():
        what = "no tokenizer" if own is None else "another vocabulary than the policy"
        raise Refusal(
            f"the reward model in {folder} has {what}, so it cannot score the policy's tokens; "
            "train it with the model of the policy (objective=reward_model model=...)"
        )
