"""A policy small enough to differentiate by hand, in any float type.

Shapes: ``T`` response tokens, ``V`` vocabulary, ``H`` hidden, ``R`` rows while decoding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from lit_pref.functional.rng import generator
from lit_pref.transfer import moved, sent
from lit_pref.types import FlatTokens, Group, Prompt, Response, TokenStats

__all__ = ["TinyPolicy", "tiny_groups"]


class TinyPolicy(nn.Module):
    """A language model with an exponential memory: three tensors, no attention, float64 if asked.

    The state after token ``x_t`` is ``s_t = decay * s_(t-1) + embed[x_t]``; the next token has
    logits ``tanh(s_t) @ head + bias``. So every token depends on all before it, as in a real
    model, and a forward costs microseconds.

    Args:
        vocab_size: number of tokens.
        width: size of the state.
        decay: how much of the state is kept at each token, in [0, 1).
        seed: of the random weights.
        dtype: of the weights; log-probs are float32 or better.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 11,
        width: int = 8,
        decay: float = 0.5,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        draw = generator(seed, "tiny_policy")

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype))

        self.embed = weight(vocab_size, width)
        self.head = weight(width, vocab_size)
        self.bias = weight(vocab_size)
        self.decay = decay
        self.path = "padded"
        self.plain_head = True
        self.spec = SimpleNamespace(
            name="tiny_policy",
            fingerprint=f"tiny-{vocab_size}-{width}-{decay}-{seed}",
            vocab_size=vocab_size,
            hidden_size=width,
            context_length=10**6,
            tokenizer=None,
            pad_id=0,
        )

    def load(self) -> TinyPolicy:
        return self

    @property
    def hidden_size(self) -> int:
        return self.embed.shape[1]

    @property
    def device(self) -> torch.device:
        return self.embed.device

    def frozen_copy(self) -> TinyPolicy:
        """A copy without gradients, in eval mode."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def perturb(self, scale: float, *, seed: int) -> TinyPolicy:
        """Add normal noise to all weights, in place: other weights, as after some steps."""
        draw = generator(seed, "tiny_policy_noise")
        with torch.no_grad():
            for p in self.parameters():
                noise = torch.randn(p.shape, generator=draw, dtype=torch.float64)
                p.add_((noise * scale).to(p))
        return self

    # ------------------------------------------------------------------ scoring

    def forward(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        """Training forward at temperature 1; see ``lit_pref.types.Policy``."""
        wanted = set(stats)
        prompts = tokens.prompt_ids.split(tokens.prompt_lengths)
        before, after = [], []
        for p, ids in zip(tokens.prompt_of, tokens.response_ids.split(tokens.lengths), strict=True):
            hidden = torch.tanh(self._states(torch.cat([prompts[p], ids])))
            start = tokens.prompt_lengths[p] - 1
            before.append(hidden[start : start + len(ids)])
            after.append(hidden[-1])
        hidden = torch.cat(before) if before else self.embed.new_zeros(0, self.hidden_size)
        logits = hidden @ self.head + self.bias
        log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        probs = log_probs.exp()
        out = TokenStats(logps=log_probs.gather(-1, tokens.response_ids[:, None])[:, 0])
        if "entropy" in wanted:
            out.entropy = -(probs * log_probs).sum(-1)
        if "sum_squares" in wanted:
            out.sum_squares = probs.square().sum(-1)
        if "hidden" in wanted:
            out.hidden = hidden
        if "final_hidden" in wanted:
            out.final_hidden = torch.stack(after) if after else hidden
        return out

    def token_logps(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        return self(tokens, stats=stats)

    def _states(self, ids: Tensor) -> Tensor:
        """[L, H] state after each token of one sequence."""
        steps = torch.arange(len(ids), device=ids.device)
        lag = steps[:, None] - steps[None]
        decay = torch.where(lag >= 0, self.decay ** lag.clamp(min=0), 0.0)
        return decay.to(self.embed) @ self.embed[ids]

    # ------------------------------------------------------------------ decoding

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> tuple[Tensor, Tensor]:
        rows = [self._states(sent(list(p), self.device))[-1] for p in prompts]
        state = torch.stack(rows).repeat_interleave(copies, 0)
        return torch.tanh(state) @ self.head + self.bias, state

    def step(self, token_ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.decay * state + self.embed[token_ids]
        return torch.tanh(state) @ self.head + self.bias, state

    def keep_rows(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[moved(rows, state.device)]


def tiny_groups(
    *,
    groups: int = 8,
    responses: int = 4,
    max_length: int = 5,
    vocab_size: int = 11,
    seed: int = 0,
    ranked: bool = False,
) -> list[Group]:
    """Random groups of ragged responses with distinct rewards.

    Args:
        groups: their number.
        responses: responses of each.
        max_length: responses have 1 to so many tokens.
        vocab_size: of the token ids.
        seed: of everything.
        ranked: preference data: ranks and no rewards.
    """
    draw = generator(seed, "tiny_groups")

    def integers(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=draw).tolist()

    out = []
    for g in range(groups):
        prompt = Prompt(id=g, text=f"prompt {g}", ids=integers(0, vocab_size, 1 + g % 3))
        order = torch.randperm(responses, generator=draw).tolist()
        rewards = torch.randn(responses, generator=draw, dtype=torch.float64).tolist()
        members = [
            Response(
                ids=integers(0, vocab_size, integers(1, max_length + 1, 1)[0]),
                reward=None if ranked else rewards[k],
                rank=order[k] if ranked else None,
                behaviour="policy",
            )
            for k in range(responses)
        ]
        out.append(Group(prompt=prompt, responses=members, source="onpolicy"))
    return out
