"""Offline data that is mapped from disk trains exactly like a list of groups."""

import json

import lightning as L
import pytest
import torch

import lit_pref as lp
from lit_pref.formats.store import MappedGroups
from lit_pref.policies import tiny

pytest.importorskip("pyarrow")


@pytest.fixture
def parts(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{n}", "chosen": "a" * (n % 5 + 1), "rejected": "b"} for n in range(24)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    spec = tiny(context_length=256)

    def parts(*, cached, **sizes):
        task = lp.TextTask(
            spec.tokenizer,
            eos_ids=spec.eos_ids,
            context_length=spec.context_length,
            pairs=str(path),
            cache_dir=str(tmp_path / "cache") if cached else None,
        )
        sizes = {"prompts_per_round": 8, "batch_size": 4, "rounds": 2, **sizes}
        data = lp.OfflineDataModule(
            task,
            sampler=lp.NativeSampler(max_new_tokens=4),
            reward=None,
            responses_per_prompt=2,
            **sizes,
        )
        module = lp.DPO(
            lp.HFPolicy(tiny(context_length=256)), reference=lp.FrozenReference(), beta=0.1
        )
        return module, data

    return parts


def trained(module, data):
    trainer = L.Trainer(
        **data.trainer_kwargs(), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 4
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])


def test_the_weights_are_those_of_a_list(parts):
    module, data = parts(cached=True)
    assert isinstance(data.task.offline(), MappedGroups)
    other, listed = parts(cached=False)
    assert torch.equal(trained(module, data), trained(other, listed))
    saved, groups = data.state_dict(), data.round.groups
    assert "prompt_ids" not in repr(saved)  # row numbers stand for the groups
    data.load_state_dict(saved)
    assert data.round.groups == groups
    assert data.round.groups is not groups


def test_held_out_groups_are_the_last(parts):
    _, data = parts(cached=True, held_out=0.25)
    assert [g.prompt.text for g in data.held_out_groups] == [f"p{n}" for n in range(18, 24)]
    assert data.prompts_per_round == 8
