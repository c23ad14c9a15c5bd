"""Reward models on disk: written by training, read by ``reward=learned``.

Shapes: ``B`` responses, ``H`` hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_pref.policies.heads import ScalarHead
from lit_pref.policies.pretrained import no_progress_bars
from lit_pref.types import Refusal

if TYPE_CHECKING:
    from lit_pref.policies.causal_lm import HFPolicy

__all__ = ["HEAD_FILE", "Scorer", "load_scorer", "save_scorer"]

log = logging.getLogger(__name__)

HEAD_FILE = "score_head.safetensors"
"""The head, where the architecture has no sequence-classification class of transformers."""


def save_scorer(policy: HFPolicy, head: ScalarHead, folder: str | Path) -> None:
    """Write a folder that ``AutoModelForSequenceClassification.from_pretrained`` loads.

    Where the architecture has no such class (or one whose head is more than a linear map of the
    last hidden state), the language model is written as it is with the head beside it, and the log
    says so; ``load_scorer`` reads both forms.

    transformers reads the score at the last token that is not padding. The padding token of the
    folder's config is therefore left out when it also ends responses: batches of more than one
    row then need a padding token of your own choice. ``load_scorer`` has no such limit.

    Args:
        policy: what was trained.
        head: its score head.
        folder: where to.
    """
    folder = Path(folder)
    model = _classifier(policy, head)
    if model is None:
        from safetensors.torch import save_file

        policy.save_pretrained(str(folder))
        weight = {k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}
        save_file(weight, folder / HEAD_FILE)
        log.warning(
            "%s has no plain sequence-classification class in transformers: %s holds the language "
            "model, and its score head in %s",
            policy.spec.name,
            folder,
            HEAD_FILE,
        )
        return
    with no_progress_bars():
        model.save_pretrained(folder)
    if policy.spec.tokenizer is not None:
        policy.spec.tokenizer.save_pretrained(folder)


def _classifier(policy: HFPolicy, head: ScalarHead) -> Any:
    """The policy's backbone and the head as transformers' own class; None if they do not fit."""
    from transformers import AutoModelForSequenceClassification

    config = policy.portable_config()
    config.num_labels = 1
    tokenizer = policy.spec.tokenizer
    pad = None if tokenizer is None else tokenizer.pad_token_id
    config.pad_token_id = None if pad in policy.spec.eos_ids else pad
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError:  # the architecture has none
        return None
    inner = f"{policy.model.base_model_prefix}."
    backbone = {k: v for k, v in policy.whole_state().items() if k.startswith(inner)}
    state = {f"{model.base_model_prefix}.{k.removeprefix(inner)}": v for k, v in backbone.items()}
    assert head.weight is not None
    state["score.weight"] = head.weight.detach()[None].to(next(policy.parameters()).dtype)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    if head.has_bias or shapes != {k: v.shape for k, v in state.items()}:
        return None
    model.load_state_dict(state, assign=True)
    return model


class Scorer(nn.Module):
    """A loaded reward model.

    Args:
        backbone: gives ``last_hidden_state``.
        head: linear map to one number.
        context_length: most tokens of prompt and response together; None if unlimited.
        tokenizer: of the folder, None if it has none.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, context_length: int | None, tokenizer: Any
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.context_length, self.tokenizer = context_length, tokenizer

    @torch.no_grad()
    def forward(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[B] scores at the last token of each sequence.

        Args:
            sequences: token ids of prompt and response, not empty.
        """
        device = next(self.parameters()).device
        longest = max(len(s) for s in sequences)
        if self.context_length is not None and longest > self.context_length:
            raise ValueError(
                f"a prompt and response of {longest} tokens are longer than the reward model's "
                f"context of {self.context_length}; lower sampler.max_new_tokens"
            )
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, sequence in enumerate(sequences):  # on the right, so that positions start at 0
            ids[i, : len(sequence)] = torch.tensor(list(sequence))
            mask[i, : len(sequence)] = 1
        out = self.backbone(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
        )
        last = mask.sum(1) - 1
        hidden = out.last_hidden_state[torch.arange(len(last)), last.to(device)]
        return self.head(hidden).reshape(-1).float()


def load_scorer(folder: str | Path) -> Scorer:
    """Read what ``save_scorer`` wrote, or any linear sequence classifier with one label.

    Raises:
        Refusal: it is no such folder.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folder = Path(folder)
    options = {"dtype": torch.float32, "trust_remote_code": False, "local_files_only": True}
    beside = folder / HEAD_FILE
    try:
        kind = AutoModelForCausalLM if beside.exists() else AutoModelForSequenceClassification
        with no_progress_bars():
            model = kind.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise Refusal(f"{folder} cannot be read as a reward model: {error}") from error
    if beside.exists():
        from safetensors.torch import load_file

        weights = load_file(beside)
        head: Any = ScalarHead(len(weights["weight"]), bias="bias" in weights)
        head.load_state_dict(weights)
    else:
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise Refusal(
                f"{folder} is not a reward model with a single score (its head: {head}); give a "
                "run of objective=reward_model"
            )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    scorer = Scorer(model.base_model, head, context, _tokenizer(folder))
    return scorer.requires_grad_(False).eval()


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").exists():
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
