"""Where the rows of a decoding batch are in their cache, as tensors on its device.

Shapes: ``R`` rows, ``S`` slots, ``G`` prompts, ``C`` places of each prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_pref.transfer import sent

__all__ = ["Places", "places_of_rows", "places_of_slots"]


@dataclass(slots=True)
class Places:
    """Made anew when rows come, go or move.

    Attributes:
        copies: places that each prompt has.
        grid: [R] place of each row among the ``G * copies``; None where row r has place r.
        slots: [R] slot of each row; None where row r has slot r.
        lengths: [R] tokens of each row's prompt.
        columns: [R] tokens that each row has kept: the column of its next one.
        common: the same as a number, where all rows have kept as many.
        width: columns of the rows that are looked at; 0 before the first step.
        biases: what is added to scores so that unseen tokens get no weight, by window.
    """

    copies: int
    grid: Tensor | None
    slots: Tensor | None
    lengths: Tensor
    columns: Tensor
    common: int | None
    width: int = 0
    biases: dict[int, Tensor | None] = field(default_factory=dict)


def places_of_rows(
    prompt_of: Sequence[int],
    slot_of: Sequence[int],
    ages: Sequence[int],
    prompt_lengths: Sequence[int],
    slots: int,
    device: torch.device,
) -> Places:
    """Places of the rows alone.

    Args:
        prompt_of: [R] prompt of each row.
        slot_of: [R] its slot.
        ages: [R] tokens that it has kept.
        prompt_lengths: [G] tokens of each prompt.
        slots: S.
        device: of the cache.
    """
    taken = [0] * len(prompt_lengths)
    ranks = []
    for prompt in prompt_of:
        ranks.append(taken[prompt])
        taken[prompt] += 1
    copies = max(taken)
    grid = [p * copies + k for p, k in zip(prompt_of, ranks, strict=True)]

    def place(values: Sequence[int], count: int) -> Tensor | None:
        values = list(values)
        return None if values == list(range(count)) else tensor(values)

    def tensor(values: Sequence[int]) -> Tensor:
        return sent(list(values), device, torch.long)

    return Places(
        copies=copies,
        grid=place(grid, copies * len(taken)),
        slots=place(slot_of, slots),
        lengths=tensor([prompt_lengths[p] for p in prompt_of]),
        columns=tensor(ages),
        common=ages[0] if len(set(ages)) == 1 else None,
    )


def places_of_slots(
    prompt_of: Sequence[int],
    slot_of: Sequence[int],
    ages: Sequence[int],
    prompt_lengths: Sequence[int],
    slots: int,
    device: torch.device,
) -> Places:
    """Places of all slots, as of S rows: shapes and addresses stay when rows leave.

    A slot without a row computes something that nobody reads, at a place that nobody else has.
    Columns are their own, on the device. Arguments as of ``places_of_rows``.
    """
    owner, kept = [-1] * slots, [0] * slots
    for prompt, slot, age in zip(prompt_of, slot_of, ages, strict=True):
        owner[slot], kept[slot] = prompt, age
    count = [owner.count(p) for p in range(len(prompt_lengths))]
    for slot, prompt in enumerate(owner):
        if prompt < 0:  # any prompt will do: the one with the fewest
            owner[slot] = min(range(len(count)), key=count.__getitem__)
            count[owner[slot]] += 1
    found = places_of_rows(owner, range(slots), kept, prompt_lengths, slots, device)
    found.common = None  # columns are read on the device
    return found
