"""Runs on stored responses compute the reference's log-probs once between them."""

import pytest
import torch

from lit_pref.objectives import ObjectiveModule

SIZES = ["data=offline", "task.offline_prompts=8", "data.batch_size=4", "data.reuse=1",
         "callbacks=minimal", "export=false", "+task.validation_prompts=4"]  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """Responses that were put through the reference for training, run by run."""
    seen, inner = [], ObjectiveModule.reference_logps

    def watched(self, round, tokens, forward):
        def counting(which, part, **rest):
            seen.append(part.num_responses)
            return forward(which, part, **rest)

        return inner(self, round, tokens, counting)

    monkeypatch.setattr(ObjectiveModule, "reference_logps", watched)
    return seen


def weights(run):
    return torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_the_second_run_reads_what_the_first_computed(job, asked, tmp_path):
    cache = f"reference.cache_dir={tmp_path}/cache"
    first = job("objective=dpo", *SIZES, cache)
    assert first.outcome.exit_code == 0
    computed = sum(asked)
    assert computed > 0
    asked.clear()
    again = job("objective=dpo", *SIZES, cache)
    other = job("objective=ipo", *SIZES, cache)
    assert other.outcome.exit_code == 0
    assert asked == []
    alone = job("objective=dpo", *SIZES, "reference.cache_dir=null")
    assert sum(asked) == computed
    for name, value in weights(first).items():
        assert torch.equal(value, weights(again)[name])
        assert torch.equal(value, weights(alone)[name])


def test_samples_of_the_policy_are_not_kept(job, asked, tmp_path):
    run = job(
        "objective=dpo", "data=onpolicy", "data.rounds=2", "data.prompts_per_round=2",
        "data.batch_size=2", "callbacks=minimal", "export=false", "+task.validation_prompts=4",
        f"reference.cache_dir={tmp_path}/cache",
    )  # fmt: skip
    assert run.outcome.exit_code == 0 and sum(asked) > 0
    assert not (tmp_path / "cache").exists()


def test_an_objective_without_reference_runs_without_one(job, asked):
    run = job("objective=simpo", *SIZES, "reference=none")
    assert run.outcome.exit_code == 0 and asked == []
    assert job("objective=dpo", *SIZES, "reference=none").outcome.exit_code == 2
