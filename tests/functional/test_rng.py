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


def test_each_coordinate_of_a_sample_changes_its_draws():
    base = (0, "sample", 3, 5, 1, 2)
    whole = uniforms([base], 6)
    for place in range(len(base)):
        other = list(base)
        other[place] = "validation" if place == 1 else base[place] + 1
        assert not torch.isclose(uniforms([tuple(other)], 6), whole).any()


def test_uniforms_are_uniform_and_neighbouring_rows_unrelated():
    count = 4000
    drawn = uniforms([(0, "sample", k) for k in range(count)], 3)
    # Dvoretzky-Kiefer-Wolfowitz with a chance of 1e-6 to be outside
    bound = (torch.tensor(2e6).log() / (2 * count)).sqrt()
    steps = torch.arange(1, count + 1) / count
    for column in drawn.T:
        assert (column.sort().values - steps).abs().max() < bound + 1 / count
    centred = (drawn - 0.5) * 12**0.5
    pairs = [(centred[:-1, 0], centred[1:, 0]), (centred[:, 0], centred[:, 1])]
    for a, b in pairs:  # a mean of products of variance 1: five standard deviations
        assert (a * b).mean().abs() < 5 / count**0.5


def test_a_longer_limit_keeps_the_first_draws():
    """So a response that ended early is the same under a larger ``max_new_tokens``."""
    assert torch.equal(uniforms([(0, 1)], 9)[:, :4], uniforms([(0, 1)], 4))


def test_a_permutation_draws_every_order_equally_often():
    seen = {}
    for k in range(2400):
        order = tuple(permutation(3, 0, "order", k))
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 6
    # standard deviation of a count: (2400 / 6 * 5 / 6) ** 0.5 = 18.3; five of them
    assert all(abs(n - 400) < 92 for n in seen.values())


def test_streams_of_one_item_and_of_other_coordinates():
    assert [stream_position(1, i, 0) for i in range(3)] == [(0, 0), (0, 1), (0, 2)]
    one = [stream_position(50, i, 0, "prompts")[0] for i in range(50)]
    other = [stream_position(50, i, 1, "prompts")[0] for i in range(50)]
    assert one != other
