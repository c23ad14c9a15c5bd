"""How flat prompts and responses are laid out for one forward pass.

Two layouts of the same tokens. *Packed*: one row without any padding, in which a prompt is stored
once and followed by its responses. *Padded*: one row per response, prompt repeated, padded on the
right. In both, the last token of a response is left out unless it is asked for: nothing is
predicted from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_pref.transfer import sent
from lit_pref.types import FlatTokens

__all__ = ["PackedLayout", "PaddedLayout", "pack", "pad", "prefer_packed"]


@dataclass(slots=True)
class PackedLayout:
    """One row of tokens, prompts shared.

    Attributes:
        input_ids: [1, L].
        position_ids: [1, L] position of each token in its own sequence.
        segments: for each prompt its length and the stored lengths of its responses.
        rows: [T] position in the row from which each response token is predicted.
        final: [B] position of each response's last token, if it was kept.
        masks: dense masks by (prompt length, response length), made once for all layers.
        fused: block masks of the whole row by window, where one kernel takes it.
        calls: how often the attention function read this layout; 0 after a forward means that the
            model ignored it.
        windows: the sliding windows that its layers asked for.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: list[tuple[int, list[int]]]
    rows: Tensor
    final: Tensor | None = None
    masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    fused: dict[int, Any] = field(default_factory=dict)
    calls: int = 0
    windows: set[int] = field(default_factory=set)

    def mask(self, prompt: int, response: int, window: int, device: torch.device) -> Tensor:
        """[response, prompt + response]: a response sees its prompt and its own past.

        ``window`` counts positions within the sequence; 0 means no window.
        """
        key = (prompt, response, window)
        if key not in self.masks:
            query = torch.arange(prompt, prompt + response, device=device)[:, None]
            past = torch.arange(prompt + response, device=device)[None]
            allowed = past <= query
            if window:
                allowed &= past > query - window
            self.masks[key] = allowed
        return self.masks[key]


@dataclass(slots=True)
class PaddedLayout:
    """One row per response, padded on the right.

    Attributes:
        input_ids: [B, L]; padding is never seen by a real token, since attention is causal.
        rows: [T] index into the flattened [B * L] positions that predict each response token.
        final: [B] flattened position of each response's last token, if it was kept.
    """

    input_ids: Tensor
    rows: Tensor
    final: Tensor | None = None


def pack(tokens: FlatTokens, *, final: bool = False) -> PackedLayout:
    """Lay out without padding, each prompt once.

    Args:
        tokens: the prompts and responses.
        final: keep the last token of each response, to read the state after it.
    """
    device = tokens.response_ids.device
    drop = 0 if final else 1
    prompts = tokens.prompt_ids.split(tokens.prompt_lengths)
    responses = tokens.response_ids.split(tokens.lengths)
    children: list[list[int]] = [[] for _ in prompts]
    for i, p in enumerate(tokens.prompt_of):
        children[p].append(i)

    ids: list[Tensor] = []
    positions: list[int] = []
    segments: list[tuple[int, list[int]]] = []
    rows: list[list[int]] = [[] for _ in responses]
    ends = [0] * len(responses)
    place = 0
    for p, kids in enumerate(children):
        size = tokens.prompt_lengths[p]
        ids.append(prompts[p])
        positions.extend(range(size))
        last = place + size - 1
        place += size
        stored = []
        for i in kids:
            length = max(tokens.lengths[i] - drop, 0)
            ids.append(responses[i][:length])
            positions.extend(range(size, size + length))
            stored.append(length)
            if tokens.lengths[i]:
                rows[i] = [last, *range(place, place + tokens.lengths[i] - 1)]
            ends[i] = place + length - 1 if length else last
            place += length
        segments.append((size, stored))
    flat_rows = [r for per_response in rows for r in per_response]
    return PackedLayout(
        input_ids=torch.cat(ids)[None],
        position_ids=sent(positions, device)[None],
        segments=segments,
        rows=sent(flat_rows, device, torch.long),
        final=sent(ends, device) if final else None,
    )


def pad(tokens: FlatTokens, *, pad_id: int = 0, final: bool = False) -> PaddedLayout:
    """Lay out one row per response: prompt, response, padding."""
    device = tokens.response_ids.device
    drop = 0 if final else 1
    prompts = tokens.prompt_ids.split(tokens.prompt_lengths)
    responses = tokens.response_ids.split(tokens.lengths)
    sequences, starts = [], []
    for response, p in zip(responses, tokens.prompt_of, strict=True):
        keep = max(len(response) - drop, 0)
        sequences.append(torch.cat([prompts[p], response[:keep]]))
        starts.append(tokens.prompt_lengths[p])
    input_ids = torch.nn.utils.rnn.pad_sequence(
        sequences, batch_first=True, padding_value=float(pad_id)
    )
    width = input_ids.shape[1]
    rows = [
        i * width + start - 1 + t
        for i, (start, length) in enumerate(zip(starts, tokens.lengths, strict=True))
        for t in range(length)
    ]
    ends = [i * width + len(s) - 1 for i, s in enumerate(sequences)]
    return PaddedLayout(
        input_ids=input_ids,
        rows=sent(rows, device, torch.long),
        final=sent(ends, device) if final else None,
    )


def prefer_packed(tokens: FlatTokens) -> bool:
    """Whether packing pays: it saves positions, but costs one attention call per response.

    Many short responses of equal length (the token bandit) go faster as one padded block.
    """
    if not tokens.lengths:
        return False
    width = max(
        tokens.prompt_lengths[p] + n for p, n in zip(tokens.prompt_of, tokens.lengths, strict=True)
    )
    padded = width * len(tokens.lengths)
    mean_length = sum(tokens.lengths) / len(tokens.lengths)
    return padded > 1.15 * tokens.num_tokens and mean_length >= 16
