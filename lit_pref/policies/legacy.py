"""The log-probability of the paper's reference code, kept to show what depends on it.

That code scores token t with the logits that have already seen token t, the prompt's token
included, and so never scores the last sampled token by the distribution that it came from.
Sampling is right there and here. For measurements of that defect only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.models import gpt_nano
from lit_pref.policies.spec import ModelSpec
from lit_pref.transfer import sent
from lit_pref.types import FlatTokens, Refusal, TokenStats

__all__ = ["UnshiftedPolicy", "gpt_nano_legacy"]


def gpt_nano_legacy(*, vocab_size: int = 100, context_length: int = 10, seed: int = 0) -> ModelSpec:
    """GPT-nano whose training forward is that of the code of arXiv 2404.14367.

    Args:
        vocab_size: number of actions.
        context_length: most tokens, the prompt's included.
        seed: of the random weights.
    """
    spec = gpt_nano(vocab_size=vocab_size, context_length=context_length, seed=seed)
    return replace(
        spec,
        name="gpt_nano_legacy",
        fingerprint=f"unshifted/{spec.fingerprint}",
        policy=UnshiftedPolicy,
    )


class UnshiftedPolicy(nn.Module):
    r"""A causal LM that scores token t by the logits at t instead of those at t - 1.

    The sum over a response is :math:`\sum_{t=0}^{L-1} \log \mathrm{softmax}(z_t)_{y_t}` over the
    whole sequence, as in the reference code: the prompt's share is on the first response token.

    Args:
        spec: what to load.
        initialise: called once with the freshly loaded model.
    """

    path = "padded"
    """Its only forward: a row for each response."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        initialise: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.inner = HFPolicy(spec, initialise=initialise, path="padded")

    @property
    def model(self) -> Any:
        return self.inner.model

    @property
    def plain_head(self) -> bool:
        return self.inner.plain_head

    def load(self) -> UnshiftedPolicy:
        """Load the weights; does nothing the second time."""
        self.inner.load()
        return self

    def forward(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        """Unshifted log-probs of the response tokens."""
        if set(stats):
            raise Refusal(
                "model=gpt_nano_legacy gives log-probs alone, like the code that it stands for; "
                "use model=gpt_nano with this objective"
            )
        widths = {tokens.prompt_lengths[p] for p in tokens.prompt_of}, set(tokens.lengths)
        if any(len(w) > 1 for w in widths):
            raise Refusal(
                "model=gpt_nano_legacy needs prompts and responses of one length; use it with "
                "task=token_bandit"
            )
        self.load()
        if not tokens.lengths:
            return TokenStats(logps=torch.zeros(0, device=self.device))
        device = tokens.response_ids.device
        rows = sent(tokens.prompt_of, device, torch.long)
        prompts = tokens.prompt_ids.view(len(tokens.prompt_lengths), -1)[rows]
        ids = torch.cat([prompts, tokens.response_ids.view(len(tokens.lengths), -1)], 1)
        logps = self.model(input_ids=ids).logits.float().log_softmax(-1)
        own = logps.gather(-1, ids[..., None])[..., 0]
        width = prompts.shape[1]
        first = own[:, : width + 1].sum(1, keepdim=True)
        return TokenStats(logps=torch.cat([first, own[:, width + 1 :]], 1).flatten())

    def token_logps(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        return self(tokens, stats=stats)

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> tuple[Tensor, Any]:
        return self.inner.prefill(prompts, copies)

    def step(self, token_ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.inner.step(token_ids, state)

    def keep_rows(self, state: Any, rows: Tensor) -> Any:
        return self.inner.keep_rows(state, rows)

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def hidden_size(self) -> int:
        return self.inner.hidden_size

    def frozen_copy(self) -> UnshiftedPolicy:
        """A copy without gradients, in eval mode."""
        twin = UnshiftedPolicy(self.spec)
        twin.inner = self.inner.frozen_copy()
        return twin.requires_grad_(False).eval()

    def save_pretrained(self, folder: str) -> None:
        """Write the language model itself; its log-probs are then the right ones."""
        self.inner.save_pretrained(folder)
