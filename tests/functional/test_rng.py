"""Draws are functions of coordinates."""

import itertools

import torch

from lit_pref.functional.rng import (
    coordinate_seed,
    generator,
    permutation,
    stream_position,
    uniforms,
)


def test_every_coordinate_and_its_place_and_type_count():
    seeds = [
        coordinate_seed(*c)
        for c in [(0,), (1,), (0, 0), (0, 1), (1, 0), ("0",), (0, "a"), ("a", 0), (1, 12), (11, 2)]
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)
    assert coordinate_seed(3, "sample", 7) == coordinate_seed(3, "sample", 7)


def test_seeds_are_fixed_for_ever():
    """A change here would change every run; this number was written down once."""
    assert coordinate_seed(0, "sample", 0, 0, 0, 0) == 1917156376697694526


def test_uniforms_belong_to_their_row_alone():
    keys = [(0, i) for i in range(5)]
    whole = uniforms(keys, 4)
    assert whole.dtype == torch.float64
    assert ((whole >= 0) & (whole < 1)).all()
    for i, key in enumerate(keys):
        assert torch.equal(uniforms([key], 4)[0], whole[i])
    assert torch.equal(uniforms(keys[::-1], 4), whole.flip(0))
    assert uniforms([], 4).shape == (0, 4)


def test_permutations():
    one = permutation(20, 0, "order", 1)
    assert sorted(one) == list(range(20))
    assert one != permutation(20, 0, "order", 2)
    assert one == permutation(20, 0, "order", 1)


def test_a_stream_wraps_into_other_permutations():
    found = [stream_position(7, i, 5, "prompts") for i in range(21)]
    epochs = [[item for item, e in found if e == n] for n in range(3)]
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert [e for _, e in found] == list(itertools.chain([0] * 7, [1] * 7, [2] * 7))


def test_a_generator_is_fresh_each_time():
    assert torch.equal(torch.rand(3, generator=generator(1)), torch.rand(3, generator=generator(1)))
