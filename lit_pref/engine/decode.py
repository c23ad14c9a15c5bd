"""The decode loop: rows of token sequences, sampled from any ``Policy`` until they end.

Shapes: ``R`` rows (prompts x copies), ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.transfer import moved, sent
from lit_pref.types import Policy

__all__ = ["DecodedRow", "decode", "sample_tokens", "truncated_log_probs"]

BLOCK = 256
"""Tokens of the vocabulary that are summed as one when a token is drawn."""

ENTER = 0.25
"""Share of the rows that has to be free before waiting prompts enter."""

LARGEST = 1 - 2**-53
"""The largest float64 below 1."""


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
    before = _cumulated(ordered.exp()) - ordered.exp()
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    kept = torch.empty_like(log_probs).scatter_(-1, order, ordered)
    return kept.log_softmax(-1)


def sample_tokens(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution.

    The same uniform gives the same token whatever other rows are in the batch. The sums over
    blocks of the vocabulary are in double precision, and inside the block of the drawn token the
    sum over its tokens: a float64 sum over the whole vocabulary costs more than a small model.

    Args:
        probs: [R, V] float32 probabilities, up to a factor per row.
        uniforms: [R] float64 in [0, 1).

    Returns:
        [R] token ids.
    """
    size = probs.shape[-1]
    if size <= BLOCK:
        return _inverted(probs, uniforms)[0]
    whole = size // BLOCK * BLOCK
    sums = probs[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    if whole < size:
        sums = torch.cat([sums, probs[:, whole:].sum(-1, keepdim=True)], -1)
    block, share = _inverted(sums, uniforms)
    inside = block[:, None] * BLOCK + torch.arange(BLOCK, device=probs.device)
    some = probs.gather(-1, inside.clamp(max=size - 1)).masked_fill_(inside >= size, 0.0)
    return (block * BLOCK + _inverted(some, share)[0]).clamp_(max=size - 1)


def _inverted(mass: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """[R] the place of each uniform on the cumulative [R, n] masses, and how far into that place.

    Both are right for masses of any total; a place without mass is never returned.
    """
    cdf = _cumulated(mass.double())
    # A float64 below 1 times the total is below the total, so an excluded last place is safe.
    target = uniforms.to(cdf.device)[:, None] * cdf[:, -1:]
    place = torch.searchsorted(cdf, target, right=True).clamp_(max=mass.shape[-1] - 1)
    top, width = cdf.gather(-1, place), mass.double().gather(-1, place)
    share = (1 - (top - target) / width).clamp_(0.0, LARGEST)
    return place[:, 0], share[:, 0]


def _cumulated(x: Tensor) -> Tensor:
    """[R, n] sums of each row up to each place, in a fixed order where torch is asked for one.

    torch refuses its own sums on a GPU then. A product with ones adds the same numbers in the same
    order for every place, so sums never fall, and stand where there is no mass.
    """
    if x.device.type != "cuda" or not torch.are_deterministic_algorithms_enabled():
        return x.cumsum(-1)
    size = x.shape[-1]
    if size <= 4 * BLOCK:
        return (x.double() @ _ones(size, x.device)).to(x.dtype)
    blocks = F.pad(x.double(), (0, -size % BLOCK)).unflatten(-1, (-1, BLOCK))
    inside = blocks @ _ones(BLOCK, x.device)
    totals = inside[..., -1]
    before = totals @ _ones(totals.shape[-1], x.device).triu(1)
    return (inside + before[..., None]).flatten(-2)[..., :size].to(x.dtype)


def _ones(size: int, device: torch.device) -> Tensor:
    """[size, size] ones on and above the diagonal."""
    return torch.ones(size, size, dtype=torch.float64, device=device).triu()


def _draw(
    logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """[R] tokens, their log-probs under what was sampled from, and under the policy itself."""
    logits = logits.float()
    if top_p < 1 or temperature == 0:
        log_probs = truncated_log_probs(logits, temperature=temperature, top_p=top_p)
        tokens = sample_tokens(log_probs.exp(), uniforms)
        behaviour = log_probs.gather(-1, tokens[:, None])[:, 0]
        return tokens, behaviour, _log_prob(logits, tokens)
    probs = (logits if temperature == 1 else logits / temperature).softmax(-1)
    tokens = sample_tokens(probs, uniforms)
    behaviour = probs.gather(-1, tokens[:, None])[:, 0].log()
    return tokens, behaviour, behaviour if temperature == 1 else _log_prob(logits, tokens)


def _log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


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
    width: int | None = None,
) -> list[DecodedRow]:
    """Sample ``copies`` responses to each prompt.

    A prompt is computed once and its state repeated; rows that have ended leave the batch. A device
    is asked once for each token which rows have ended, and not at all without ending tokens.

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
        width: most rows at the same time. Prompts that have to wait enter when there is room; the
            policy must have ``enter``. None: all at once.

    Returns:
        One ``DecodedRow`` per prompt and copy, prompt-major.

    Raises:
        RuntimeError: the model's logits are not numbers.
    """
    total = len(prompts) * copies
    first = len(prompts) if width is None else max(width // copies, 1)
    logits, state = policy.prefill(prompts[:first], copies)
    device = logits.device
    uniforms = moved(uniforms, device)
    ends = sent(sorted(end_ids), device, torch.long)
    begun = logits.shape[0]
    places, steps = list(range(begun)), [0] * begun  # of the rows, and on the device:
    rows = torch.arange(begun, device=device)
    ages = torch.zeros_like(rows)
    drawn: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    room = 0 if on_row is None else max_new_tokens
    kept = torch.zeros(3, total, room, device=device, dtype=torch.float64)
    lengths, finished = [max_new_tokens] * total, [len(end_ids) == 0] * total
    while True:
        tokens, behaviour, raw = _draw(
            logits, uniforms[rows, ages], temperature=temperature, top_p=top_p
        )
        drawn.append((rows, tokens, behaviour, raw))
        if on_row is not None:
            kept[:, rows, ages] = torch.stack([tokens.double(), behaviour.double(), raw.double()])
        ages, steps = ages + 1, [age + 1 for age in steps]
        ended = torch.isin(tokens, ends).tolist() if len(end_ids) else [False] * len(places)
        over = [n for n, end in enumerate(ended) if end]
        for n in over:
            lengths[places[n]], finished[places[n]] = steps[n], True
        if over and on_row is not None:
            _report(kept, [places[n] for n in over], lengths, on_row)
        alive = [n for n, end in enumerate(ended) if not end and steps[n] < max_new_tokens]
        if len(alive) < len(places):
            places, steps = [places[n] for n in alive], [steps[n] for n in alive]
            index = torch.tensor(alive, dtype=torch.long)
            there = moved(index, device)
            rows, tokens, ages = rows[there], tokens[there], ages[there]
            if places:
                state = policy.keep_rows(state, index)
        if places:
            logits, state = policy.step(tokens, state)
        count = _entering(len(places), begun, total, copies, width)
        if count:
            some = prompts[begun // copies :][:count]
            fresh = torch.arange(begun, begun + count * copies, device=device)
            others = bool(places)
            places += range(begun, begun + count * copies)
            steps += [0] * (count * copies)
            begun += count * copies
            if others:
                more, state = policy.enter(state, some, copies)  # type: ignore[attr-defined]
                logits = torch.cat([logits, more])
            else:
                logits, state = policy.prefill(some, copies)
            rows, ages = torch.cat([rows, fresh]), torch.cat([ages, torch.zeros_like(fresh)])
        if not places:
            break
    return _collect(drawn, total, lengths, finished)


def _entering(rows: int, begun: int, total: int, copies: int, width: int | None) -> int:
    """How many waiting prompts enter: none before there is room for a good part of a batch."""
    waiting = (total - begun) // copies
    if width is None or not waiting:
        return 0
    free = width - rows
    if rows and free < min(ENTER * width, waiting * copies):
        return 0
    return min(max(free // copies, 0 if rows else 1), waiting)


def _report(
    kept: Tensor, over: list[int], lengths: list[int], on_row: Callable[[int, DecodedRow], None]
) -> None:
    """Tell of rows that have just ended; ``kept`` [3, rows, .] are their tokens and log-probs."""
    longest = max(lengths[row] for row in over)
    ids, behaviour, raw = kept[:, sent(over, kept.device), :longest].cpu()
    for n, row in enumerate(over):
        length = lengths[row]
        logps = behaviour[n, :length].tolist()
        if all(math.isfinite(p) for p in logps):  # else _collect stops the sampling
            own = ids[n, :length].long().tolist(), logps, raw[n, :length].tolist()
            on_row(row, DecodedRow(*own, True))


def _collect(
    drawn: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    total: int,
    lengths: list[int],
    finished: list[bool],
) -> list[DecodedRow]:
    """Turn the steps into rows; one transfer to the host for all of them."""
    out = [DecodedRow([], [], [], f) for f in finished]
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
    for decoded, length in zip(out, lengths, strict=True):
        assert len(decoded.ids) == length
    return out
