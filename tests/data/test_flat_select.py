"""Parts of flat tensors are the pieces that they name."""

import torch

from lit_pref.functional.rng import permutation, stream_position
from lit_pref.types import FlatTokens, View


def test_a_part_of_a_view_is_its_pieces():
    lengths = [2, 0, 3, 1]
    token = torch.tensor([10, 11, 20, 21, 22, 30])
    part = View(token={"x": token}).select([0, 2, 3], lengths).token["x"]
    assert part.tolist() == [10, 11, 20, 21, 22, 30]
    assert View(token={"x": token}).select([1, 3], lengths).token["x"].tolist() == [30]
    none = View(token={"x": token[:, None].float()}).select([], lengths).token["x"]
    assert none.shape == (0, 1) and none.dtype == torch.float32


def test_a_part_of_tokens_keeps_the_prompts_it_needs():
    tokens = FlatTokens(
        prompt_ids=torch.tensor([1, 2, 3, 4, 5]),
        prompt_lengths=[2, 1, 2],
        response_ids=torch.tensor([10, 20, 21, 30, 40, 41]),
        lengths=[1, 2, 1, 2],
        prompt_of=[0, 0, 1, 2],
    )
    part = tokens.select([1, 3])
    assert part.prompt_ids.tolist() == [1, 2, 4, 5] and part.prompt_lengths == [2, 2]
    assert part.response_ids.tolist() == [20, 21, 40, 41] and part.lengths == [2, 2]
    assert part.prompt_of == [0, 1]


def test_a_stream_is_its_permutations_one_after_the_other():
    stream = [stream_position(5, i, 3, "rows") for i in range(12)]
    whole = [
        *permutation(5, 3, "rows", 0),
        *permutation(5, 3, "rows", 1),
        *permutation(5, 3, "rows", 2),
    ]
    assert [item for item, _ in stream] == whole[:12]
    assert [number for _, number in stream] == [0] * 5 + [1] * 5 + [2] * 2
