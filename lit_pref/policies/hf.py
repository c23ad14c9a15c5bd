"""A Hugging Face causal LM as a policy, and references made from it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_pref.engine.forward import Path, hf_token_stats
from lit_pref.policies.pretrained import no_progress_bars
from lit_pref.policies.probe import head_is_plain, packed_misfit
from lit_pref.policies.sharding import full_state, is_sharded
from lit_pref.types import FlatTokens, Refusal, TokenStats

if TYPE_CHECKING:
    from lit_pref.policies.models import ModelSpec

__all__ = ["HFPolicy"]

log = logging.getLogger(__name__)

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(slots=True)
class _DecodeState:
    """Key-value cache and what is needed to extend it.

    Attributes:
        cache: transformers cache; one entry per row.
        mask: [R, L] 1 where a cached token is real (prompts are padded on the left).
        position: [R] position of the next token in its own sequence.
    """

    cache: Any
    mask: Tensor
    position: Tensor


class HFPolicy(nn.Module):
    """Scores and continues sequences with a Hugging Face causal LM.

    Weights are loaded by ``load`` (idempotent), so that everything can be checked before. The
    forward goes through packed rows with shared prompts where the model supports it, which is
    verified once against the padded forward; otherwise everything is padded.

    Args:
        spec: what to load; see ``lit_pref.policies.models``.
        initialise: called once with the freshly loaded model (a task's supervised start).
        path: ``"auto"``, ``"packed"`` or ``"padded"`` forward.
        gradient_checkpointing: recompute activations in backward to save memory.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        initialise: Callable[[nn.Module], None] | None = None,
        path: Path = "auto",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.initialise = initialise
        self.path: Path = path
        self.gradient_checkpointing = gradient_checkpointing
        self.plain_head = True
        self.model: Any = None

    # ------------------------------------------------------------------ loading

    def load(self) -> HFPolicy:
        """Load the weights and choose the forward path; does nothing the second time."""
        if self.model is not None:
            return self
        model = self.spec.load()
        _dropout_off(model)
        if self.initialise is not None:
            self.initialise(model)
        self.model = model
        self.plain_head = head_is_plain(model)
        if self.path != "padded":
            self.path = self._verified_path()
        if self.gradient_checkpointing:
            _recompute_activations(model)
        return self

    def _verified_path(self) -> Path:
        """``self.path`` if the packed forward equals the padded one on a small batch."""
        reason = packed_misfit(self.model, self.spec, plain_head=self.plain_head)
        if reason is None:
            return self.path
        if self.path == "packed":
            raise Refusal(
                f"model.path=packed was asked for, but {self.spec.name} does not support packed "
                f"rows ({reason}); use path=padded"
            )
        log.info("%s: padded forward (packed rows do not apply: %s)", self.spec.name, reason)
        return "padded"

    # ------------------------------------------------------------------ scoring

    def forward(
        self,
        tokens: FlatTokens | None = None,
        *,
        stats: Iterable[str] = (),
        run: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Training forward at temperature 1; see ``lit_pref.types.Policy``.

        Every use of the model goes through this call, so that hooks on the policy see it (a
        sharded policy gathers its parameters in one): ``run`` is called with the model instead.
        """
        self.load()
        if run is not None:
            return run(self.model)
        assert tokens is not None
        return hf_token_stats(
            self.model,
            tokens,
            path=self.path,
            stats=stats,
            plain_head=self.plain_head,
            pad_id=self.spec.pad_id,
        )

    def token_logps(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        return self(tokens, stats=stats)

    # ------------------------------------------------------------------ decoding

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> tuple[Tensor, Any]:
        from transformers import DynamicCache

        self.load()
        device = self.device
        width = max(len(p) for p in prompts)
        ids = torch.full((len(prompts), width), self.spec.pad_id, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[i, width - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        out = self(
            run=lambda model: model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                past_key_values=DynamicCache(config=model.config),
                use_cache=True,
                logits_to_keep=1,
            )
        )
        cache = out.past_key_values
        logits, position = out.logits[:, -1], mask.sum(-1)
        if copies > 1:
            cache.batch_repeat_interleave(copies)
            logits = logits.repeat_interleave(copies, 0)
            mask = mask.repeat_interleave(copies, 0)
            position = position.repeat_interleave(copies, 0)
        return logits, _DecodeState(cache, mask, position)

    def step(self, token_ids: Tensor, state: _DecodeState) -> tuple[Tensor, Any]:
        mask = torch.cat([state.mask, state.mask.new_ones(len(token_ids), 1)], 1)
        out = self(
            run=lambda model: model(
                input_ids=token_ids[:, None],
                attention_mask=mask,
                position_ids=state.position[:, None],
                past_key_values=state.cache,
                use_cache=True,
            )
        )
        return out.logits[:, -1], _DecodeState(out.past_key_values, mask, state.position + 1)

    def keep_rows(self, state: _DecodeState, rows: Tensor) -> _DecodeState:
        state.cache.batch_select_indices(rows)
        return _DecodeState(state.cache, state.mask[rows], state.position[rows])

    # ------------------------------------------------------------------ the rest

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden state; the model must be loaded."""
        return int(self.model.config.get_text_config().hidden_size)

    def frozen_copy(self) -> HFPolicy:
        """A copy without gradients, in eval mode."""
        self.load()
        twin = HFPolicy(self.spec, path=self.path)
        twin.plain_head = self.plain_head
        twin.model = copy.deepcopy(self.model)
        return twin.requires_grad_(False).eval()

    def portable_config(self) -> Any:
        """The model's config without traces of how and where it was loaded."""
        from transformers import AutoConfig

        config = self.model.config
        fields = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
        drop = ("model_type", "transformers_version", "quantization_config")
        return AutoConfig.for_model(
            config.model_type, **{k: v for k, v in fields.items() if k not in drop}
        )

    def save_pretrained(self, folder: str) -> None:
        """Write a folder that ``from_pretrained`` loads, tokenizer included.

        Of a sharded policy rank 0 writes, and all processes must call.
        """
        weights = {k.removeprefix("model."): v for k, v in full_state(self).items()}
        if is_sharded(self) and torch.distributed.get_rank() != 0:
            return
        held, self.model.config = self.model.config, self.portable_config()
        try:
            with no_progress_bars():
                self.model.save_pretrained(folder, state_dict=weights)
        finally:
            self.model.config = held
        if self.spec.tokenizer is not None:
            self.spec.tokenizer.save_pretrained(folder)


def _dropout_off(model: Any) -> None:
    """Dropout would make the first on-policy ratio differ from 1, as it did in the paper's code."""

    def zero(owner: object, names: Iterable[str]) -> None:
        for name in names:
            if "drop" in name.lower() and isinstance(getattr(owner, name, None), float):
                setattr(owner, name, 0.0)

    zero(model.config, list(model.config.to_dict()))
    for module in model.modules():
        if isinstance(module, DROPOUT):
            module.p = 0.0
        zero(module, list(vars(module)))  # functional dropout reads its rate from an attribute


def _recompute_activations(model: Any) -> None:
    """Gradient checkpointing, under the name that this version of transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is not None:
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
