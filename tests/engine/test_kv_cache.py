"""Attention from a shared cache against attention over each row's whole sequence."""

import math

import pytest
import torch

from lit_pref.engine import kv_cache
from lit_pref.engine.kv_cache import SharedCache

HEADS, KEY_HEADS, SIZE, VALUE_SIZE = 4, 2, 8, 6


def plain(query, keys, values, *, window, softcap, sinks):
    """One query [n, d] over [m, T, .], the last position being its own."""
    out = []
    for h in range(HEADS):
        k, v = keys[h * KEY_HEADS // HEADS], values[h * KEY_HEADS // HEADS]
        scores = (k @ query[h]) / math.sqrt(SIZE)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if window:
            scores, v = scores[-window:], v[-window:]
        if sinks is not None:
            scores = torch.cat([scores, sinks[h : h + 1]])
        weights = scores.double().softmax(0)[: len(v)].to(v)
        out.append(weights @ v)
    return torch.stack(out)


class Rows:
    """Drives a cache of two layers and keeps every row's whole sequence beside it."""

    def __init__(self, seed, **options):
        self.draw = torch.Generator().manual_seed(seed)
        self.cache, self.options, self.past = SharedCache(), options, []

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.draw)

    def enter(self, lengths, copies):
        total = sum(lengths)
        self.cache.enter(lengths, copies)
        layers = [(self.randn(1, KEY_HEADS, total, SIZE), self.randn(1, KEY_HEADS, total, VALUE_SIZE))
                  for _ in range(2)]  # fmt: skip
        for k, v in layers:
            self.cache.store(k, v)
        for i, n in enumerate(lengths):
            at = sum(lengths[:i])
            row = [(k[0, :, at : at + n], v[0, :, at : at + n]) for k, v in layers]
            self.past += [list(row) for _ in range(copies)]

    def step(self):
        rows = len(self.past)
        positions = self.cache.begin(torch.device("cpu"))
        assert positions.tolist() == [row[0][0].shape[1] for row in self.past]
        for layer in range(2):
            q = self.randn(1, HEADS, rows, SIZE)
            k = self.randn(1, KEY_HEADS, rows, SIZE)
            v = self.randn(1, KEY_HEADS, rows, VALUE_SIZE)
            found = self.cache.attend(q, k, v, scaling=None, **self.options)
            assert found.shape == (1, rows, HEADS, VALUE_SIZE)
            for r, row in enumerate(self.past):
                keys = torch.cat([row[layer][0], k[0, :, r : r + 1]], 1)
                values = torch.cat([row[layer][1], v[0, :, r : r + 1]], 1)
                row[layer] = keys, values
                with torch.autocast("cpu", enabled=False):
                    expected = plain(q[0, :, r], keys, values, **self.options)
                torch.testing.assert_close(found[0, r], expected, atol=1e-5, rtol=1e-5)
        self.cache.end()

    def keep(self, rows):
        self.cache.keep(rows)
        self.past = [self.past[r] for r in rows]


OPTIONS = [
    {"window": 0, "softcap": None, "sinks": None},
    {"window": 5, "softcap": None, "sinks": None},
    {"window": 7, "softcap": 0.7, "sinks": None},
    {"window": 0, "softcap": None, "sinks": torch.tensor([0.3, -1.0, 2.0, 0.0])},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", [[3, 3], [1, 9, 4], [6]])
def test_rows_see_their_prompt_and_their_own_past(options, lengths):
    rows = Rows(0, **options)
    rows.enter(lengths, 3)
    for _ in range(5):
        rows.step()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", range(6))
def test_rows_leave_and_prompts_enter_in_any_order(options, seed, monkeypatch):
    monkeypatch.setattr(kv_cache, "ROOM", 2)
    draw = torch.Generator().manual_seed(100 + seed)

    def number(low, high):
        return int(torch.randint(low, high, (1,), generator=draw))

    rows = Rows(seed, **options)
    rows.enter([number(1, 9) for _ in range(number(1, 4))], number(1, 5))
    for _ in range(12):
        for _ in range(number(1, 4)):
            rows.step()
        count = len(rows.past)
        kept = [r for r in range(count) if number(0, 3)] or [0]
        rows.keep(kept)
        if number(0, 2):
            rows.enter([number(1, 9) for _ in range(number(1, 3))], number(1, 4))


def test_what_has_left_is_dropped_in_time():
    rows = Rows(0, **OPTIONS[0])
    rows.enter([4] * 8, 4)
    rows.step()
    rows.keep(list(range(30)))
    assert rows.cache.layers[0].keys.shape[0] == 32  # not worth moving yet
    rows.keep(list(range(8)))
    assert rows.cache.layers[0].keys.shape[0] == 8
    assert rows.cache.layers[0].prompt_keys.shape[0] == 2
    rows.step()


def test_an_unfilled_column_is_never_read(monkeypatch):
    """Not even times zero: memory that was never written may hold numbers that are none."""

    def anything(*shape, **options):
        return torch.zeros(*shape).fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda _, *shape, **options: anything(*shape))
    monkeypatch.setattr(torch, "empty", anything)
    rows = Rows(0, **OPTIONS[0])
    rows.enter([2], 2)
    rows.step()
    rows.step()
    rows.enter([3], 1)
    for layer in rows.cache.layers:
        assert torch.isfinite(layer.keys).all() and torch.isfinite(layer.values).all()
    rows.step()


def test_autocast_does_not_round_what_is_kept():
    rows = Rows(0, **OPTIONS[0])
    with torch.autocast("cpu", torch.bfloat16):
        rows.enter([4, 7], 2)
        rows.step()
        rows.step()
