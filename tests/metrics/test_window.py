"""The logging window: means over items, and totals that live on different devices."""

import pytest
import torch

from lit_pref.metrics.window import Window


def test_every_item_counts_once_whatever_its_batch():
    window = Window()
    window.add("x", torch.tensor([1.0, 2.0, 3.0]))
    window.add("x", torch.tensor([10.0]))
    window.add("y", torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 0.0]))
    assert window.flush() == {"x": 4.0, "y": 1.0}
    assert window.flush() == {}


def test_names_of_other_processes_have_no_weight_here():
    window = Window()
    window.add("a", torch.tensor([2.0]))
    assert window.flush(names=["a", "b"]) == {"a": 2.0}
    assert Window().flush(names=["b"]) == {}


def test_metrics_that_share_weights_are_added_as_if_one_by_one():
    together, alone = Window(), Window()
    for scale in (1.0, 2.0):
        items = {"a": torch.tensor([1.0, float("nan"), 3.0]), "b": torch.tensor([scale] * 3)}
        weights = torch.tensor([0.5, 0.0, scale])
        together.add_all({**items, "one": torch.tensor(4.0)}, weights)
        for name, values in items.items():
            alone.add(name, values, weights)
        together.add("c", items["b"])
    found = together.flush()
    assert {n: found[n] for n in "ab"} == alone.flush()
    assert found["a"] == pytest.approx((0.5 + 3.0 + 0.5 + 6.0) / 4)
    assert (found["one"], found["c"]) == (4.0, 1.5)


def test_numbers_of_the_host_go_on_exactly_after_a_checkpoint():
    whole, resumed = Window(), Window()
    values = [0.1, 0.2, 0.3, 0.7]
    for v in values:
        whole.add_number("age", v)
    for v in values[:2]:
        resumed.add_number("age", v)
    state = resumed.state()
    resumed = Window()
    resumed.load(state)
    for v in values[2:]:
        resumed.add_number("age", v)
    assert resumed.names() == ["age"]
    assert resumed.flush() == whole.flush() != {}
    assert resumed.state() == {}


def filled(device):
    """Losses on the device, facts about the batch on the host, in a mixed order of names."""
    window = Window()
    window.add_total("age", torch.tensor(3.0, dtype=torch.float64), 1.0)
    window.add("loss", torch.ones(4, device=device))
    window.add_total("rate", torch.tensor(0.5, dtype=torch.float64), 1.0)
    window.add_total("norm", torch.ones((), device=device), 1.0)
    return window


@pytest.mark.parametrize("names", [None, ["age", "loss", "missing", "norm", "rate"]])
def test_totals_of_two_devices_meet_on_the_accelerator(names):
    """A meta tensor stands for one on an accelerator: it cannot be stacked with the host's."""
    seen = []

    def read(values):
        seen.append(values)
        return torch.arange(2.0 * len(values)).view(-1, 2)

    means = filled("meta").flush(read, names)
    assert [v.device.type for v in seen] == ["meta"]  # all of them, in one tensor: one transfer
    wanted = names or ["age", "loss", "norm", "rate"]
    assert seen[0].shape == (len(wanted), 2)
    assert means == {n: 2 * i / (2 * i + 1) for i, n in enumerate(wanted)}


def test_values_keep_their_names_in_any_order():
    assert filled("cpu").flush(names=["rate", "age", "loss", "missing", "norm"]) == {
        "age": 3.0, "loss": 1.0, "norm": 1.0, "rate": 0.5,
    }  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_totals_of_host_and_gpu():
    means = filled("cuda").flush()
    assert means == {"age": 3.0, "loss": 1.0, "norm": 1.0, "rate": 0.5}


def test_a_window_from_a_checkpoint_goes_on():
    window = Window()
    window.add("x", torch.tensor([1.0]))
    other = Window()
    other.load({k: v.clone() for k, v in window.state().items()})
    other.add("x", torch.tensor([3.0]))
    assert other.flush() == {"x": 2.0}
