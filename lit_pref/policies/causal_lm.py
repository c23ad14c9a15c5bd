"""A Hugging Face causal LM as a policy, and references made from it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_pref.engine.forward import Path, hf_token_stats
from lit_pref.engine.kv_cache import SharedCache
from lit_pref.engine.recorded import RecordedStep
from lit_pref.policies import decoding
from lit_pref.policies.lora import (
    LoRA,
    adapters_off,
    add_adapters,
    is_adapter,
    merged_state,
    save_adapters,
)
from lit_pref.policies.mapped import MappedWeights
from lit_pref.policies.prepare import (
    keep_trainable,
    recompute_activations,
    switch_dropout_off,
    weights_digest,
)
from lit_pref.policies.pretrained import no_progress_bars
from lit_pref.policies.probe import decoding_misfit, head_is_plain, packed_misfit
from lit_pref.policies.sharding import full_state, is_sharded
from lit_pref.policies.spec import config_identity, digest
from lit_pref.types import FlatTokens, Refusal, TokenStats

if TYPE_CHECKING:
    from lit_pref.policies.models import ModelSpec

__all__ = ["HFPolicy"]

log = logging.getLogger(__name__)


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
        lora: train adapters instead of the weights. Checkpoints then hold the adapters alone, and
            references share the weights.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        initialise: Callable[[nn.Module], None] | None = None,
        path: Path = "auto",
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__()
        if spec.quantized and lora is None:
            raise Refusal(
                f"the weights of {spec.name} are quantized (model.quantize) and cannot be trained; "
                "train adapters on them with model.lora.rank=16, or leave model.quantize out"
            )
        if spec.quantized and lora is not None and lora.export == "merged":
            raise Refusal(
                "adapters cannot be merged into quantized weights (model.quantize); use "
                "model.lora.export=adapter"
            )
        self.spec = spec
        self.initialise = initialise
        self.path: Path = path
        self.gradient_checkpointing = gradient_checkpointing
        self.lora = lora
        self.plain_head = True
        self.record_steps = False
        """Whether decoding steps are recorded and replayed; see ``recorded_steps``."""
        self._recordable = True
        self.shared_decoding = False
        """Whether prompts are shared while decoding; found out when the weights are loaded."""
        self.model: Any = None
        self.mapped: MappedWeights | None = None
        self._digest: str | None = None
        self._rounded: list[HFPolicy] = []  # a list: no part of the weights of this module
        self._hooks: list[Any] = []
        if lora is not None:
            self._hooks = [
                self.register_state_dict_post_hook(_adapters_alone),
                self.register_load_state_dict_post_hook(_weights_are_there),
            ]

    # ------------------------------------------------------------------ loading

    def load(self) -> HFPolicy:
        """Load the weights and choose the forward path; does nothing the second time."""
        if self.model is not None:
            return self
        model = self.spec.load()
        switch_dropout_off(model)
        keep_trainable(model)
        if self.initialise is not None:
            self.initialise(model)
        if self.lora is not None:
            add_adapters(model, self.lora)
        self.model = model
        self.plain_head = head_is_plain(model)
        if self.path != "padded":
            self.path = self._verified_path()
        self.shared_decoding = self.path != "padded" and self._decodes_shared()
        if self.gradient_checkpointing:
            recompute_activations(model)
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

    def _decodes_shared(self) -> bool:
        """Whether decoding with shared prompts equals the padded forward on a small batch."""
        reason = decoding_misfit(self.model, self.spec)
        if reason is not None:
            log.info("%s: prompts are not shared while decoding: %s", self.spec.name, reason)
        return reason is None

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
        self.load()
        if not self.shared_decoding:
            return decoding.prefill_padded(
                self._run, prompts, copies, self.device, self.spec.pad_id
            )
        cache = SharedCache()
        logits = decoding.enter_shared(self._run, cache, prompts, copies, self.device)
        if self.record_steps and self._recordable:
            cache.recorded = RecordedStep(self.device, self._not_recordable)
        return logits, cache

    def _not_recordable(self) -> None:
        self._recordable = False

    def rows_that_fit(self, tokens: int) -> int:
        """How many rows of so many tokens to decode at a time, by memory."""
        self.load()
        return decoding.rows_that_fit(self.model, tokens)

    @property
    def can_enter(self) -> bool:
        """Whether ``enter`` works; the weights must be loaded."""
        return self.shared_decoding

    def enter(
        self, state: Any, prompts: Sequence[Sequence[int]], copies: int
    ) -> tuple[Tensor, Any]:
        """Rows of further prompts, after those of a state; their next-token logits."""
        return decoding.enter_shared(self._run, state, prompts, copies, self.device), state

    def step(self, token_ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        if isinstance(state, SharedCache):
            return decoding.step_shared(self._run, state, token_ids), state
        return decoding.step(self._run, token_ids, state)

    def keep_rows(self, state: Any, rows: Tensor) -> Any:
        if isinstance(state, SharedCache):
            state.keep(rows.tolist())
            return state
        return decoding.keep_rows(state, rows)

    def _run(self, call: Callable[[Any], Any]) -> Any:
        return self(run=call)

    # ------------------------------------------------------------------ the rest

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden state; the model must be loaded."""
        return int(self.model.config.get_text_config().hidden_size)

    def frozen_copy(self, *, adapters: bool = False, on_disk: bool = False) -> HFPolicy:
        """A copy without gradients, in eval mode; of a model with LoRA it shares the weights.

        Args:
            adapters: keep (a copy of) the adapters; otherwise it is the model without them.
            on_disk: its weights are never written: those that are still as in the model's file
                are read from there when they are used, and need no memory in between.
        """
        self.load()
        twin = HFPolicy(self.spec, path=self.path, lora=self.lora)
        twin.plain_head, twin.shared_decoding = self.plain_head, self.shared_decoding
        frozen = () if self.lora is None else self.model.parameters()
        shared: dict[int, Any] = {id(p): p for p in frozen if not p.requires_grad}
        if on_disk and self.lora is None:
            twin.mapped = MappedWeights(self.spec.weight_files())
            shared = twin.mapped.replacements(self.model)
        twin.model = copy.deepcopy(self.model, shared)
        if self.lora is not None and not adapters:
            adapters_off(twin.model)
        return twin.requires_grad_(False).eval()

    def in_precision(self, dtype: torch.dtype) -> HFPolicy:
        """A copy to sample from, its weights rounded as they are now; made once, then refreshed."""
        self.load()
        own = list(self.model.parameters())
        held = self._rounded[0] if self._rounded else None
        kind = None if held is None else next(held.model.parameters())
        if held is None or kind is None or (kind.dtype, kind.device) != (dtype, self.device):
            held = HFPolicy(self.spec, path=self.path, lora=self.lora)
            held.plain_head, held.shared_decoding = self.plain_head, self.shared_decoding
            memo = {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in own}
            held.model = copy.deepcopy(self.model, memo)
            self._rounded = [held.eval()]
            return held
        with torch.no_grad():
            for rounded, p in zip(held.model.parameters(), own, strict=True):
                rounded.copy_(p)
        return held

    def base_digest(self) -> str:
        """A hash of the model without adapters: its weights by their plain names, its config.

        Of the same weights, other rotations, windows or caps make another model.

        Made once: ask only where these weights do not train (references, models with adapters).
        """
        if self._digest is None:
            self.load()
            state = self.model.state_dict()
            plain = {
                k.replace(".base_layer.", "."): v for k, v in state.items() if not is_adapter(k)
            }
            form = config_identity(self.model.config.to_dict())
            self._digest = digest(weights_digest(plain), form)
        return self._digest

    def whole_state(self) -> dict[str, Tensor]:
        """All weights by the names of the plain model, adapters merged, on the host if sharded."""
        if self.lora is not None:
            return merged_state(self.model)
        return {k.removeprefix("model."): v for k, v in full_state(self).items()}

    def load_whole_state(self, weights: dict[str, Tensor]) -> None:
        """Inverse of ``whole_state``: afterwards there are no adapters any more."""
        if self.lora is None:
            self.model.load_state_dict(weights)
            return
        plain = HFPolicy(self.spec, path=self.path).load()
        plain.model.load_state_dict(weights)
        self.model, self.lora = plain.model, None
        for hook in self._hooks:
            hook.remove()

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

        Of a sharded policy rank 0 writes, and all processes must call. With
        ``lora.export="adapter"`` it is a folder that ``peft`` loads.
        """
        if self.lora is not None and self.lora.export == "adapter":
            save_adapters(self.model, self.lora, folder, base=self.spec.name)
            if self.spec.tokenizer is not None:
                self.spec.tokenizer.save_pretrained(folder)
            return
        weights = self.whole_state()
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


def _adapters_alone(module: HFPolicy, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Leave weights that never change out of a state dict."""
    for name in [k for k in state if k.startswith(prefix) and not is_adapter(k)]:
        del state[name]


def _weights_are_there(module: HFPolicy, incompatible: Any) -> None:
    """What ``_adapters_alone`` left out is not missing."""
    held = {f"model.{n}" for n in module.model.state_dict() if not is_adapter(n)}

    def mine(key: str) -> bool:
        parts = key.split(".")
        return any(".".join(parts[i:]) in held for i in range(len(parts)))

    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if not mine(key)]
