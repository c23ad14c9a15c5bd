"""How a batch is shared between processes, and which part of a round cannot be cut."""

import logging
from types import SimpleNamespace

import pytest

from lit_pref.data.collate import RoundTensors
from lit_pref.data.datamodule import RoundDataModule
from lit_pref.types import Group, Prompt, Response, Round


def round_of(*groups):
    """Groups as (prompt length, response lengths)."""
    return Round(
        index=0,
        groups=[
            Group(
                prompt=Prompt(id=i, text="", ids=[1] * p),
                responses=[Response(ids=[1] * n, text="") for n in lengths],
                source="offline",
            )
            for i, (p, lengths) in enumerate(groups)
        ],
    )


def test_processes_get_nearly_the_same_tokens():
    # 16, 4, 10 and 9 tokens: 16 + 4 and 10 + 9, where every second one would be 26 and 13
    tensors = RoundTensors(round_of((4, [6, 6]), (2, [1, 1]), (2, [4, 4]), (1, [4, 4])))
    assert [tensors.share([0, 1, 2, 3], r, 2) for r in range(2)] == [[0, 1], [2, 3]]
    assert tensors.share([0, 1, 2, 3], 0, 1) == [0, 1, 2, 3]
    assert sorted(tensors.share([1, 3], 0, 2) + tensors.share([1, 3], 1, 2)) == [1, 3]


def test_the_largest_part():
    tensors = RoundTensors(round_of((4, [6, 5]), (9, [4])))
    assert tensors.largest(whole_prompts=True) == 15
    assert tensors.largest(whole_prompts=False) == 13


@pytest.mark.parametrize(("budget", "said"), [(None, 0), (15, 0), (14, 1)])
def test_a_group_above_the_budget_is_said_once(budget, said, caplog):
    tensors = RoundTensors(round_of((4, [6, 5])))
    data = SimpleNamespace(micro_batch_tokens=budget, _largest_said=0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            RoundDataModule._compare_with_budget(data, tensors, SimpleNamespace())
    assert caplog.text.count("has 15 tokens") == said
