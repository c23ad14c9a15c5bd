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


def test_the_default_device_does_not_matter():
    """Lightning sets one while models are configured; a way over it would not be waited for."""
    with torch.device("meta"):
        assert sent([1, 2], torch.device("cpu")).tolist() == [1, 2]


def test_to_the_host_is_waited_for(monkeypatch):
    asked = []
    move = torch.Tensor.to

    def noted(tensor, *args, **kwargs):
        asked.append(kwargs.get("non_blocking", False))
        return move(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    moved(torch.ones(3), "cpu")
    assert asked == [False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nobody_waits():
    device = torch.device("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        on = sent([1, 2], device), moved(torch.ones(3), device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert on[0].tolist() == [1, 2] and on[1].tolist() == [1, 1, 1]
