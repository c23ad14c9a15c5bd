"""The decode loop: rows of token sequences, sampled from any ``Policy`` until they end.

Shapes: ``R`` rows (prompts x copies), ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_pref.types import Policy

__all__ = ["DecodedRow", "decode", "sample_tokens", "truncated_log_probs"]


@dataclass(slots=True)
class DecodedRow:
    """One sampled response.

    Attributes:
        ids: sampled tokens, the ending token included.
        behaviour_logps: log-prob of each under the distribution that was sampled from.
        policy_logps: log-prob of each at temperature 1 without truncation.
        finished: it ended by an ending token (not by the length limit).
    """

    ids: list[int]
    behaviour_logps: list[float]
    policy_logps: list[float]
    finished: bool


def truncated_log_probs(logits: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Log-probs of the sampling distribution.

    Args:
        logits: [R, V].
        temperature: divides the logits; 0 puts all mass on the largest logit (lowest id on ties).
        top_p: keeps the smallest set of likeliest tokens with at least this mass, renormalised.

    Returns:
        [R, V] float32 log-probs; ``-inf`` for excluded tokens.
    """
    logits = logits.float()
    if temperature == 0:
        out = torch.full_like(logits, float("-inf"))
        return out.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    log_probs = (logits / temperature).log_softmax(-1)
    if top_p >= 1:
        return log_probs
    ordered, order = log_probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    kept = torch.empty_like(log_probs).scatter_(-1, order, ordered)
    return kept.log_softmax(-1)


def sample_tokens(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution.

    The same uniform gives the same token whatever other rows are in the batch.

    Args:
        log_probs: [R, V] log-probs.
        uniforms: [R] float64 in [0, 1).

    Returns:
        [R] token ids.
    """
    cdf = log_probs.double().exp().cumsum(-1)
    # A float64 below 1 times the total is below the total, so an excluded last token is safe.
    target = uniforms.to(cdf.device)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True)[:, 0].clamp(max=log_probs.shape[-1] - 1)


@torch.no_grad()
def decode(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    copies: int,
    uniforms: Tensor,
    max_new_tokens: int,
    end_ids: Collection[int] = (),
    temperature: float = 1.0,
    top_p: float = 1.0,
    on_row: Callable[[int, DecodedRow], None] | None = None,
) -> list[DecodedRow]:
    """Sample ``copies`` responses to each prompt.

    A prompt is computed once and its state repeated; rows that have ended leave the batch.

    Args:
        policy: the model.
        prompts: token ids of each prompt.
        copies: responses per prompt.
        uniforms: [len(prompts) * copies, max_new_tokens] float64 in [0, 1).
        max_new_tokens: length limit; a row that meets it has ``finished=False``, unless there
            are no ending tokens at all, where the limit is the natural end.
        end_ids: end-of-sequence and stop tokens; the token itself is part of the response.
        temperature: see ``truncated_log_probs``.
        top_p: see ``truncated_log_probs``.
        on_row: called with (row, its response) as soon as a row ends by an ending token, while
            others go on.

    Returns:
        One ``DecodedRow`` per prompt and copy, prompt-major.

    Raises:
        RuntimeError: the model's logits are not numbers.
    """
    plain = temperature == 1 and top_p >= 1
    logits, state = policy.prefill(prompts, copies)
    total = logits.shape[0]
    device = logits.device
    uniforms = uniforms.to(device)
    ends = torch.tensor(sorted(end_ids), device=device, dtype=torch.long)
    rows = torch.arange(total, device=device)
    drawn: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    width = 0 if on_row is None else max_new_tokens
    kept = torch.zeros(3, total, width, device=device, dtype=torch.float64)
    lengths = torch.full((total,), max_new_tokens, dtype=torch.long)
    finished = torch.full((total,), len(end_ids) == 0)
    for t in range(max_new_tokens):
        log_probs = truncated_log_probs(logits, temperature=temperature, top_p=top_p)
        tokens = sample_tokens(log_probs, uniforms[rows, t])
        behaviour = log_probs.gather(-1, tokens[:, None])[:, 0]
        raw = behaviour
        if not plain:
            raw = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        drawn.append((rows, tokens, behaviour, raw))
        if on_row is not None:
            kept[:, rows, t] = torch.stack([tokens.double(), behaviour.double(), raw.double()])
        done = torch.isin(tokens, ends)
        if done.any():
            over = rows[done].cpu()
            lengths[over] = t + 1
            finished[over] = True
            if on_row is not None:
                _report(kept[:, :, : t + 1], over, on_row)
            alive = torch.nonzero(~done)[:, 0]
            rows, tokens = rows[alive], tokens[alive]
            if len(rows) and t + 1 < max_new_tokens:
                state = policy.keep_rows(state, alive)
        if len(rows) == 0 or t + 1 == max_new_tokens:
            break
        logits, state = policy.step(tokens, state)
    return _collect(drawn, total, lengths, finished)


def _report(kept: Tensor, over: Tensor, on_row: Callable[[int, DecodedRow], None]) -> None:
    """Tell of rows that have just ended; ``kept`` [3, R, t] are their tokens and log-probs."""
    ids, behaviour, raw = kept[:, over.to(kept.device)].cpu()
    for n, row in enumerate(over.tolist()):
        logps = behaviour[n].tolist()
        if all(math.isfinite(p) for p in logps):  # else _collect stops the sampling
            on_row(row, DecodedRow(ids[n].long().tolist(), logps, raw[n].tolist(), True))


def _collect(
    drawn: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    total: int,
    lengths: Tensor,
    finished: Tensor,
) -> list[DecodedRow]:
    """Turn the steps into rows; one transfer to the host for all of them."""
    out = [DecodedRow([], [], [], bool(f)) for f in finished.tolist()]
    index, ids, behaviour, raw = (torch.cat(parts).tolist() for parts in zip(*drawn, strict=True))
    if not all(math.isfinite(p) for p in behaviour):
        raise RuntimeError(
            "sampling met logits that are not finite numbers: the policy's weights have diverged "
            "or its precision is too low; lower optimizer.lr, or use float32 weights"
        )
    for row, token, b, p in zip(index, ids, behaviour, raw, strict=True):
        out[row].ids.append(token)
        out[row].behaviour_logps.append(b)
        out[row].policy_logps.append(p)
    for decoded, length in zip(out, lengths.tolist(), strict=True):
        assert len(decoded.ids) == length
    return out
