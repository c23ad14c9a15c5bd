"""Alarms: one line per cause, with the remedy, and none while all is well."""

import logging
from types import SimpleNamespace

import pytest
import torch

from lit_pref.callbacks import Alarms
from lit_pref.types import Group, Prompt, Refusal, Response, Round


def attached(alarms, *, fresh=False, rounds=100):
    data = SimpleNamespace(listeners=[], fresh=fresh, rounds=rounds)
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True, global_step=7)
    alarms.setup(trainer, None, "fit")
    assert data.listeners == [alarms]
    return trainer


def say(alarms, trainer, caplog, **columns):
    """Messages of a run whose evaluations have these columns."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for row in zip(*columns.values(), strict=True):
            names = (n.replace("__", "/") for n in columns)
            alarms.on_evaluation(trainer, dict(zip(names, row, strict=True)), [])
    return [r.getMessage() for r in caplog.records]


def test_a_falling_chosen_log_prob_is_said_once(caplog):
    alarms = Alarms(patience=3)
    trainer = attached(alarms)
    said = say(alarms, trainer, caplog, probe__chosen_change=[0, -1, -2, -3, -4, -5])
    assert len(said) == 1
    assert said[0].startswith("ALARM at step 7: the log-prob of the chosen responses fell at 3")
    assert "3 nats below the reference" in said[0]
    assert "data=onpolicy" in said[0] and "\n" not in said[0]


def test_a_fall_that_stops_is_no_alarm(caplog):
    alarms = Alarms(patience=3)
    trainer = attached(alarms)
    assert say(alarms, trainer, caplog, probe__chosen_change=[0, -1, -2, -1.5, -1.6, -1.7]) == []


def test_leaving_old_responses_for_better_ones_is_no_alarm(caplog):
    falling = [0.0, -1.0, -2.0, -3.0, -4.0]
    rising, flat = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    for fresh, reward, alarm in ((True, rising, 0), (True, flat, 1), (False, rising, 1)):
        alarms = Alarms(patience=3)
        trainer = attached(alarms, fresh=fresh)
        said = say(alarms, trainer, caplog, probe__chosen_change=falling, val__reward=reward)
        assert len(said) == alarm, (fresh, reward)
        assert all(("optimizer.lr" in s) == fresh for s in said)


def test_entropy_collapse(caplog):
    alarms = Alarms(entropy_share=0.1)
    trainer = attached(alarms)
    said = say(alarms, trainer, caplog, val__entropy=[4.0, 1.0, 0.41, 0.39, 0.1])
    assert len(said) == 1 and "0.39 nats per token" in said[0] and "10%" in said[0]
    off = Alarms(entropy_share=0)
    assert say(off, attached(off), caplog, val__entropy=[4.0, 1e-9]) == []


def test_kl_over_the_limit(caplog):
    alarms = Alarms(kl_per_token=2.0)
    trainer = attached(alarms)
    said = say(alarms, trainer, caplog, val__kl=[0.0, 19.0, 21.0], val__mean_length=[10.0] * 3)
    assert len(said) == 1 and "21 nats per response, 2.1 per token" in said[0]
    off = Alarms(kl_per_token=None)
    assert say(off, attached(off), caplog, val__kl=[1e9], val__mean_length=[1.0]) == []


def a_round(index, silent, groups=4):
    made = []
    for g in range(groups):
        rewards = [1.0, 1.0] if g < silent else [0.0, 1.0]
        made.append(
            Group(
                prompt=Prompt(id=g, text="", ids=[0]),
                responses=[Response(ids=[1], reward=r) for r in rewards],
            )
        )
    return Round(index=index, groups=made)


def rounds_say(alarms, caplog, silent):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for n, s in enumerate(silent):
            alarms.on_round(a_round(n, s))
    return [r.getMessage() for r in caplog.records]


def test_no_signal_in_most_groups(caplog):
    alarms = Alarms(patience=2)
    attached(alarms)
    assert rounds_say(alarms, caplog, [3, 2, 3, 1]) == []  # never two in a row
    said = rounds_say(alarms, caplog, [3, 4, 4])
    assert len(said) == 1 and "in 100% of the groups of the last 2 round(s)" in said[0]
    assert "finer reward" in said[0]


def test_a_run_of_one_round_does_not_wait(caplog):
    alarms = Alarms(patience=3)
    attached(alarms, rounds=1)
    assert len(rounds_say(alarms, caplog, [4])) == 1


def test_data_without_rewards_has_no_alarm(caplog):
    alarms = Alarms(patience=1)
    attached(alarms)
    round = a_round(0, 4)
    for group in round.groups:
        for response in group.responses:
            response.reward = None
    with caplog.at_level(logging.WARNING):
        alarms.on_round(round)
    assert not caplog.records


def test_a_resumed_run_goes_on_counting_and_repeats_nothing(caplog, tmp_path):
    whole, cut = Alarms(patience=4), Alarms(patience=4)
    falls = [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]
    assert say(cut, attached(cut), caplog, probe__chosen_change=falls[:3]) == []
    torch.save(cut.state_dict(), tmp_path / "state")
    again = Alarms(patience=4)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    late = say(again, attached(again), caplog, probe__chosen_change=falls[3:])
    assert late == say(whole, attached(whole), caplog, probe__chosen_change=falls)
    third = Alarms(patience=4)
    third.load_state_dict(again.state_dict())
    assert say(third, attached(third), caplog, probe__chosen_change=[-6.0, -7.0]) == []


def test_other_processes_are_silent(caplog):
    alarms = Alarms(patience=1)
    trainer = attached(alarms)
    trainer.is_global_zero = False
    assert say(alarms, trainer, caplog, probe__chosen_change=[-1.0, -2.0]) == []


@pytest.mark.parametrize("options", [{"patience": 0}, {"entropy_share": 2}, {"no_signal": -1}])
def test_mistakes_are_refused(options):
    with pytest.raises(Refusal, match=r"callbacks\.alarms"):
        Alarms(**options)
