"""What is logged of a round."""

from types import SimpleNamespace

from lit_pref.callbacks import RunFiles
from lit_pref.types import Group, Prompt, Response, Round


def group(number, *rewards, ranked=False):
    responses = [
        Response(ids=[1], reward=reward, rank=k if ranked else None)
        for k, reward in enumerate(rewards)
    ]
    return Group(prompt=Prompt(id=number, text="", ids=[1]), responses=responses)


def logged(groups, folder):
    found = {}
    logger = SimpleNamespace(log_metrics=lambda values, step: found.update(values))
    files = RunFiles(folder)
    files._trainer = SimpleNamespace(
        is_global_zero=True, global_step=0, loggers=[logger],
        datamodule=SimpleNamespace(progress=dict, newly_sampled=[]),
    )  # fmt: skip
    files.on_round(Round(index=0, groups=groups))
    return found


def test_groups_without_rewards_are_not_without_signal(tmp_path):
    """Stored pairs with ranks alone, beside scored samples (data=mixed)."""
    pairs = [group(n, None, None, ranked=True) for n in range(2)]
    scored = [group(2, 0.5, 0.5), group(3, 0.0, 1.0), group(4, 1.0, 0.0), group(5, 2.0, 1.0)]
    found = logged([*pairs, *scored], tmp_path)
    assert found["round/no_signal"] == 1 / 4
    assert found["round/reward"] == 6.0 / 8
    assert "round/no_signal" not in logged(pairs, tmp_path)
