"""Two processes measure what one does, and instruments change no gradient there either."""

import csv
import multiprocessing

import process_runner as runner
import pytest
import torch

PREFIXES = ("val/", "probe/", "gradient/")


def measured(overrides):
    """The same job with every instrument, also with a judge."""
    rest = [o for o in overrides if not o.startswith("callbacks=")]
    judge = "callbacks.against_reference.comparer={_target_: lit_pref.testing.Shorter}"
    return [*rest, "callbacks=instruments", "callbacks.gradient_parts.every_n_steps=1", judge]


SHORT = ["data=onpolicy", "data.prompts_per_round=4", "data.reuse=1", "data.rounds=2"]
DPO = ["objective=dpo", *runner.COMMON, *SHORT]
CASES = {
    "dpo": measured(DPO),
    "dpo_minimal": DPO,
    "kto": measured(["objective=kto", "data=onpolicy", *runner.BANDIT]),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory, session_cache):
    folder = tmp_path_factory.mktemp("instruments")
    context = multiprocessing.get_context("spawn")
    port, cases = runner.free_port(), runner.composed(CASES)
    for some in ([(0, 1, 0)], [(0, 2, port), (1, 2, port)]):
        processes = [
            context.Process(target=runner.run_all, args=(cases, folder, *job)) for job in some
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
        assert [p.exitcode for p in processes] == [0] * len(processes)
    return folder


def rows(folder, world, case):
    with (folder / f"{world}_{case}" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("case", ["dpo", "kto"])
def test_the_same_numbers(done, case):
    one, two = (rows(done, n, case) for n in (1, 2))
    names = [n for n in one[0] if n.startswith(PREFIXES)]
    assert {"gradient/cosine", "probe/greedy_change", "val/judge_win_rate_lc"} <= set(names)
    assert set(names) == {n for n in two[0] if n.startswith(PREFIXES)}
    for a, b in zip(one, two, strict=True):
        for name in names:
            assert bool(a[name]) == bool(b[name]), (a["step"], name)
            if a[name]:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4, abs=1e-5), name


def test_the_same_gradients_with_and_without(done):
    for world, rank in ((1, 0), (2, 0), (2, 1)):
        found = torch.load(done / f"{world}_{rank}.pt", weights_only=True)
        with_all, without = found["dpo"]["gradients"], found["dpo_minimal"]["gradients"]
        assert len(with_all) == len(without) > 1
        assert all(torch.equal(a, b) for a, b in zip(with_all, without, strict=True))
