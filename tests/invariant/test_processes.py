"""One process and two give the same gradients: every objective, three data sources.

In float64, where nothing but a wrong count or a lost part can differ. In float32 the same comparison
stays within 5e-6 on the two-layer Llama, since other micro-batches add in another order.
"""

import csv
import json
import multiprocessing
from pathlib import Path

import process_runner as runner
import pytest
import torch

CONFIGS = Path(__file__).parents[2] / "configs" / "objective"
EIGHT = {
    "dpo_onpolicy": ["objective=dpo", *runner.COMMON, *runner.ONPOLICY],
    "reinforce_onpolicy": ["objective=reinforce", *runner.COMMON, *runner.ONPOLICY],
    "ppo_onpolicy": ["objective=ppo", "objective.kl_coef=0.1", *runner.COMMON, *runner.ONPOLICY],
    "kto_onpolicy": ["objective=kto", *runner.COMMON, *runner.ONPOLICY],
    "dpo_offline": ["objective=dpo", *runner.COMMON, *runner.OFFLINE],
    "kto_offline": ["objective=kto", *runner.COMMON, *runner.OFFLINE],
    # Scored stored groups with behaviours: a bandit's. PPO refuses stored data.
    "reinforce_offline": ["objective=reinforce", "objective.importance=token",
                          "objective.baseline=running_mean", "objective.kl_coef=0.1",
                          "data=offline", "task.offline_prompts=8", *runner.BANDIT,
                          *runner.ROUNDS, "data.batch_size=2", "trainer.max_steps=-1"],
    "dpo_mixed": ["objective=dpo", "data=mixed", "task.offline_prompts=8", *runner.BANDIT,
                  *runner.ROUNDS, "data.batch_size=2", "trainer.max_steps=-1"],
    # The stored groups are too old after step 6: one of two processes has nothing to do then.
    "reinforce_mixed": ["objective=reinforce", "objective.importance=response", "data=mixed",
                        "data.max_age=6", "task.offline_prompts=8", *runner.BANDIT,
                        *runner.ROUNDS, "data.batch_size=2", "trainer.max_steps=-1"],
    "reinforce_refill": ["objective=reinforce", *runner.COMMON, *runner.ONPOLICY,
                         "data.no_signal=refill", "data.refill_limit=3"],
}  # fmt: skip
ONE = {
    name: [f"objective={name}", *runner.BANDIT, "data=" + source]
    for name in sorted(p.stem for p in CONFIGS.glob("*.yaml"))
    for source in ["offline" if name == "reward_model" else "onpolicy"]
}
CASES = {**EIGHT, **ONE}


@pytest.fixture(scope="module")
def gradients(tmp_path_factory, session_cache):
    """Gradients by world size and case; one launch of each serves all."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("spawn")
    port = runner.free_port()
    jobs = [(0, 1, 0), (0, 2, port), (1, 2, port)]
    found, cases = {}, runner.composed(CASES)
    for some in (jobs[:1], jobs[1:]):
        processes = [
            context.Process(target=runner.run_all, args=(cases, folder, *job)) for job in some
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(400)
        assert [p.exitcode for p in processes] == [0] * len(processes)
    for _, world, _ in jobs:
        for rank in range(world):
            found[world, rank] = torch.load(folder / f"{world}_{rank}.pt", weights_only=True)
    return found, folder


def distance(a, b):
    return float((a - b).norm() / a.norm().clamp(min=1e-30))


@pytest.mark.parametrize("case", EIGHT)
def test_eight_steps_with_unequal_and_empty_parts(gradients, case):
    found, _ = gradients
    one, two, other = (found[k][case]["gradients"] for k in ((1, 0), (2, 0), (2, 1)))
    assert len(one) == len(two) == 8
    assert sum(float(one[step - 1].norm()) > 0 for step in (1, 2, 8)) >= 2
    for step in (1, 2, 8):
        if one[step - 1].norm() == 0:  # a batch of ties: no gradient in either
            assert two[step - 1].norm() == 0
            continue
        assert distance(one[step - 1], two[step - 1]) < 1e-6, step
        assert torch.equal(two[step - 1], other[step - 1])


def test_one_process_had_nothing_to_do_in_some_step(gradients):
    found, _ = gradients
    parts = [found[2, r]["dpo_onpolicy"]["empty"] for r in range(2)]
    assert any(a != b for a, b in zip(*parts, strict=True))


@pytest.mark.parametrize("name", ONE)
def test_one_step_of_every_objective(gradients, name):
    found, _ = gradients
    one, two = (found[k][name]["gradients"][0] for k in ((1, 0), (2, 0)))
    assert one.norm() > 0
    assert distance(one, two) < 1e-6


@pytest.mark.parametrize("case", EIGHT)
def test_each_file_is_written_once(gradients, case):
    """The same files, with the same rows and the same samples in the same order."""
    _, folder = gradients
    one, two = (folder / f"{n}_{case}" for n in (1, 2))
    assert [p.name for p in sorted(one.iterdir())] == [p.name for p in sorted(two.iterdir())]
    for name in ("samples.jsonl", "validation.jsonl"):
        assert sampled(one / name) == sampled(two / name)
    assert steps(one) == steps(two)
    assert len(set(steps(one))) == len(steps(one)) > 0


@pytest.mark.parametrize("case", EIGHT)
def test_the_same_numbers_are_logged(gradients, case):
    """Also of steps in which one process had nothing to do."""
    _, folder = gradients
    for one, two in zip(*(rows(folder / f"{n}_{case}") for n in (1, 2)), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            if value != two[name]:  # importance/kl is in float32
                assert float(two[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


def sampled(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        (line.get("step"), line["round"], line["prompt_id"], [r["ids"] for r in line["responses"]])
        for line in lines
    ]


def steps(folder):
    return [row["step"] for row in rows(folder)]


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
