"""Keys and values while decoding: each prompt's once for all its rows, each row's own in place.

The model sees one packed row: the next token of every sequence. Its attention function hands the
queries to ``SharedCache``, which attends to the prompt (one matrix product for all rows of a
prompt) and to the row's own past, under one softmax. Nothing is copied from step to step.

Shapes: ``G`` prompts, ``C`` places of each, ``R`` rows, ``S`` slots of rows, ``n`` heads, ``m`` key
heads, ``r = n / m``, ``d`` head size, ``L`` tokens of the longest prompt, ``W`` of the longest row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_pref.engine.places import Places, places_of_rows, places_of_slots
from lit_pref.transfer import sent

if TYPE_CHECKING:
    from lit_pref.engine.recorded import RecordedStep

__all__ = ["SharedCache"]

ROOM = 64
"""Tokens that a row gets room for at first; half as much again whenever that is used up."""

WORTH_MOVING = 0.75
"""Rows and prompts are moved together once fewer than this share of their places is in use."""


@dataclass(slots=True)
class _Layer:
    """What one layer keeps.

    Attributes:
        prompt_keys: [G, m, L, d].
        prompt_values: [G, m, L, d].
        keys: [S, m, d, room]; transposed, the way the product with a single query reads them.
        values: [S, m, room, d].
    """

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor


class SharedCache:
    """Keys and values of rows that share prompts.

    Each forward of the model is announced: by ``enter`` one over prompts, whose attention calls
    ``store``; by ``begin`` one over the next token of every row, whose attention calls ``attend``.
    """

    def __init__(self) -> None:
        self.layers: list[_Layer] = []
        self.prompt_lengths: list[int] = []
        self.prompt_of: list[int] = []
        self.ages: list[int] = []
        """Tokens that each row has kept."""
        self._slot_of: list[int] = []
        self._slots, self._room = 0, ROOM
        self._calls = 0
        self._entering: list[int] = []
        self._places: Places | None = None
        self.changes = 0
        """How often anything got another place or size: a recorded step is then of no use."""
        self.recorded: RecordedStep | None = None
        """What replays the steps of this cache; None: they are made one by one."""

    # ------------------------------------------------------------------ rows come and go

    def enter(self, lengths: Sequence[int], copies: int) -> None:
        """Rows of new prompts follow the present ones; the next forward is over these prompts.

        Args:
            lengths: tokens of each prompt.
            copies: rows of each.
        """
        first, count = len(self.prompt_lengths), len(lengths) * copies
        used = set(self._slot_of)
        free = [n for n in range(self._slots) if n not in used][:count]
        fresh = range(self._slots, self._slots + count - len(free))
        self.prompt_lengths += lengths
        self.prompt_of += [first + i for i in range(len(lengths)) for _ in range(copies)]
        self._slot_of += [*free, *fresh]
        self.ages += [0] * count
        self._grow(self._slots + len(fresh), self._room)
        self.changes += 1
        self._entering, self._calls, self._places = list(lengths), 0, None

    def store(self, key: Tensor, value: Tensor) -> None:
        """Take the keys and values of the entering prompts in the layer that is at work.

        Args:
            key: [1, m, tokens, d], one prompt after the other.
            value: the same of values.
        """
        work = _work_type(value)
        keys, values = (_padded(x[0].to(work), self._entering) for x in (key, value))
        if self._calls == len(self.layers):
            m, d, e = keys.shape[1], keys.shape[3], values.shape[3]
            own = keys.new_zeros(self._slots, m, d, self._room)
            self.layers.append(
                _Layer(keys, values, own, values.new_zeros(*own.shape[:2], self._room, e))
            )
        else:
            layer = self.layers[self._calls]
            layer.prompt_keys = _joined(layer.prompt_keys, keys)
            layer.prompt_values = _joined(layer.prompt_values, values)
        self._calls += 1

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        for held in (self.prompt_of, self._slot_of, self.ages):
            held[:] = [held[r] for r in rows]
        live = sorted(set(self.prompt_of))
        if len(live) < WORTH_MOVING * len(self.prompt_lengths):
            self._move_prompts(live)
        if len(rows) < WORTH_MOVING * self._slots:
            self._move_rows()
        self._places = None

    def _move_prompts(self, live: list[int]) -> None:
        self.changes += 1
        place = {p: n for n, p in enumerate(live)}
        self.prompt_of = [place[p] for p in self.prompt_of]
        self.prompt_lengths = [self.prompt_lengths[p] for p in live]
        longest = max(self.prompt_lengths, default=0)
        for layer in self.layers:
            index = sent(live, layer.keys.device, torch.long)
            layer.prompt_keys = layer.prompt_keys[:, :, :longest].index_select(0, index)
            layer.prompt_values = layer.prompt_values[:, :, :longest].index_select(0, index)

    def _move_rows(self) -> None:
        self.changes += 1
        for layer in self.layers:
            index = sent(self._slot_of, layer.keys.device, torch.long)
            layer.keys = layer.keys.index_select(0, index)
            layer.values = layer.values.index_select(0, index)
        self._slots = len(self._slot_of)
        self._slot_of = list(range(self._slots))

    def _grow(self, slots: int, room: int) -> None:
        if (slots, room) == (self._slots, self._room):
            return
        self.changes += 1
        width = max(self.ages, default=0)
        for layer in self.layers:
            m, d, e = layer.keys.shape[1], layer.keys.shape[2], layer.values.shape[3]
            # Zeros: a column that a row has not filled yet has no weight, but 0 * nan is nan.
            keys = layer.keys.new_zeros(slots, m, d, room)
            values = layer.values.new_zeros(slots, m, room, e)
            keys[: self._slots, :, :, :width] = layer.keys[..., :width]
            values[: self._slots, :, :width] = layer.values[:, :, :width]
            layer.keys, layer.values = keys, values
        self._slots, self._room = slots, room

    # ------------------------------------------------------------------ one step

    def begin(self, device: torch.device) -> Tensor:
        """The next forward is over one token of each row; their positions, [R]."""
        self.make_room()
        if self._places is None:
            self._places = places_of_rows(*self._whereabouts(), device)
        self._places.width = max(self.ages) + 1
        return self.begin_at(self._places)

    def begin_at(self, places: Places) -> Tensor:
        """The next forward is over one token at each of these places; their positions."""
        self._calls, self._places = 0, places
        places.biases.clear()
        return places.lengths + places.columns

    def end(self) -> None:
        """The forward is done: every row has one more token."""
        places = self._places
        assert places is not None and self._calls == len(self.layers)
        self.ages = [age + 1 for age in self.ages]
        places.columns = places.columns + 1
        if places.common is not None:
            places.common += 1

    def make_room(self) -> None:
        """For one more token of each row."""
        width = max(self.ages) + 1
        if width > self._room:
            self._grow(self._slots, max(width, self._room + self._room // 2))

    def _whereabouts(self) -> tuple[list[int], list[int], list[int], list[int], int]:
        return self.prompt_of, self._slot_of, self.ages, self.prompt_lengths, self._slots

    # ------------------------------------------------------------------ recorded steps

    def fixed_places(self, device: torch.device) -> Places:
        """All slots with all their room, for a step whose shapes stay while nothing ``changes``."""
        places = places_of_slots(*self._whereabouts(), device)
        places.width = self._room
        return places

    def slots(self, device: torch.device) -> Tensor | None:
        """[R] slot of each row; None where row r has slot r."""
        if self._slot_of == list(range(self._slots)):
            return None
        return sent(self._slot_of, device, torch.long)

    def forget_places(self) -> None:
        """The next step is over rows again."""
        self._places = None

    def end_fixed(self, places: Places) -> None:
        """A recorded step over ``fixed_places`` is done: every row has one more token.

        Slots without a row stay within the room; a row that needs more gets it by ``make_room``.
        """
        self.ages = [age + 1 for age in self.ages]
        places.columns.add_(1).clamp_(max=places.width - 1)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window: int,
        scaling: float | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attention of every row's newest token in the layer that is at work.

        Args:
            query: [1, n, R, d].
            key: [1, m, R, d] of the same tokens; kept.
            value: the same of values.
            window: most positions that are seen, the newest included; 0 for all.
            scaling: of the scores; None for the usual one.
            softcap: bound of the scores.
            sinks: [n] scores of nothing, one per head.

        Returns:
            [1, R, n, d].
        """
        layer, places = self.layers[self._calls], self._places
        assert places is not None
        width = places.width
        self._calls += 1
        work, kind = layer.values.dtype, value.dtype
        heads, rows, size = query.shape[1:]
        own = key.shape[1], heads // key.shape[1]
        scale = size**-0.5 if scaling is None else scaling
        with _exactly(query.device, work):
            q = (query[0].transpose(0, 1).to(work) * scale).reshape(rows, *own, size)
            self._write(layer, key[0].transpose(0, 1).to(work), value[0].transpose(0, 1).to(work))
            scores = torch.cat(
                [
                    self._of_prompts(q, layer.prompt_keys.transpose(2, 3), places),
                    self._of_rows(q, layer.keys[..., :width], places),
                ],
                -1,
            ).float()
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            bias = self._bias(window, width, places)
            if bias is not None:
                scores += bias
            weights = _softmax(scores, sinks, own).to(work)
            past, recent = weights.split([weights.shape[-1] - width, width], -1)
            out = self._of_prompts(past, layer.prompt_values, places)
            out = out + self._of_rows(recent, layer.values[:, :, :width], places)
        return out.reshape(1, rows, heads, -1).to(kind)

    def _write(self, layer: _Layer, key: Tensor, value: Tensor) -> None:
        places = self._places
        assert places is not None
        if places.slots is None and places.common is not None:
            layer.keys[..., places.common] = key
            layer.values[:, :, places.common] = value
            return
        slots = places.slots
        if slots is None:
            slots = torch.arange(len(key), device=key.device)
        layer.keys[slots, :, :, places.columns] = key
        layer.values[slots, :, places.columns] = value

    def _of_prompts(self, x: Tensor, matrix: Tensor, places: Places) -> Tensor:
        """[R, m, r, .] times each row's prompt's [G, m, ., .]: all rows of a prompt at once."""
        groups, copies = matrix.shape[0], places.copies
        grid = _spread(x, places.grid, groups * copies)
        grid = grid.view(groups, copies, *x.shape[1:]).transpose(1, 2)
        out = grid.reshape(groups, x.shape[1], copies * x.shape[2], -1) @ matrix
        out = out.view(groups, x.shape[1], copies, x.shape[2], -1).transpose(1, 2)
        return _taken(out.reshape(groups * copies, *x.shape[1:3], -1), places.grid)

    def _of_rows(self, x: Tensor, matrix: Tensor, places: Places) -> Tensor:
        """[R, m, r, .] times each row's own [S, m, ., .]."""
        return _taken(_spread(x, places.slots, matrix.shape[0]) @ matrix, places.slots)

    def _bias(self, window: int, width: int, places: Places) -> Tensor | None:
        """[R, 1, 1, L + W] 0 for what a row sees and ``-inf`` for the rest; None if it sees all."""
        if window not in places.biases:
            longest = max(self.prompt_lengths)
            narrow = bool(window) and longest + width > window
            ragged = places.common is None or any(n < longest for n in self.prompt_lengths)
            places.biases[window] = None
            if narrow or ragged:
                device = places.lengths.device
                at = torch.arange(longest + width, device=device)[None]
                lengths, columns = places.lengths[:, None], places.columns[:, None]
                recent = at >= longest
                seen = torch.where(recent, at - longest <= columns, at < lengths)
                if narrow:
                    position = torch.where(recent, at - longest + lengths, at)
                    seen &= position > lengths + columns - window
                zero = torch.zeros(seen.shape, device=device)
                bias = zero.masked_fill_(~seen, float("-inf"))
                places.biases[window] = bias[:, None, None]
        return places.biases[window]


def _softmax(scores: Tensor, sinks: Tensor | None, own: tuple[int, int]) -> Tensor:
    if sinks is None:
        return scores.softmax(-1)
    extra = sinks.to(scores).view(1, *own, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, extra], -1).softmax(-1)[..., :-1]


def _work_type(value: Tensor) -> torch.dtype:
    """What attention computes in; products of half precision round scores on a processor."""
    return torch.float32 if value.device.type == "cpu" else value.dtype


def _exactly(device: torch.device, work: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Autocast off where it is on and would round what is kept in single precision."""
    if work == torch.float32 and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _spread(x: Tensor, index: Tensor | None, count: int) -> Tensor:
    if index is None:
        return x
    out = x.new_zeros(count, *x.shape[1:])
    out[index] = x
    return out


def _taken(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else x[index]


def _padded(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """[m, tokens, d] of one prompt after the other as [G, m, L, d]."""
    out = x.new_zeros(len(lengths), x.shape[0], max(lengths), x.shape[2])
    for n, part in enumerate(x.split(list(lengths), 1)):
        out[n, :, : part.shape[1]] = part
    return out


def _joined(old: Tensor, new: Tensor) -> Tensor:
    longest = max(old.shape[2], new.shape[2])
    out = old.new_zeros(old.shape[0] + new.shape[0], old.shape[1], longest, old.shape[3])
    out[: old.shape[0], :, : old.shape[2]] = old
    out[old.shape[0] :, :, : new.shape[2]] = new
    return out
