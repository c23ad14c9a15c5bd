"""Numbers and tensors that go to a device."""

import pytest
import torch

from lit_pref.transfer import moved, sent


@pytest.mark.parametrize("values", [[1, 2, 3], [[0.5], [1.5]], 2.0, []])
def test_as_torch_makes_them(values):
    assert torch.equal(sent(values, torch.device("cpu")), torch.tensor(values))
    half = sent(values, torch.device("cpu"), torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_nothing_is_copied_where_it_is():
    here = torch.ones(3)
    assert moved(here, "cpu") is here


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nobody_waits():
    device = torch.device("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        on = sent([1, 2], device), moved(torch.ones(3), device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert on[0].tolist() == [1, 2] and on[1].tolist() == [1, 1, 1]
