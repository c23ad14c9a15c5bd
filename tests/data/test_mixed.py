"""Fresh and stored groups in one batch: shares, orders, counters, resume."""

import pytest
from source_runs import dpo, lines, same, source, train

from lit_pref.data import MixedDataModule
from lit_pref.data.checks import fresh_per_batch
from lit_pref.objectives import REINFORCE
from lit_pref.policies import HFPolicy, gpt_nano
from lit_pref.sampling import NativeSampler
from lit_pref.tasks import TokenBandit
from lit_pref.types import Refusal


@pytest.mark.parametrize(("fraction", "pure"), [(1.0, "onpolicy"), (0.0, "offline")])
def test_the_ends_are_bitwise_the_pure_sources(tmp_path, fraction, pure):
    mixed = source("mixed", onpolicy_fraction=fraction)
    alone = source(pure)
    ours, watch, _ = train(mixed, tmp_path / "mixed")
    theirs, other, _ = train(alone, tmp_path / "pure")
    assert same(ours, theirs)
    assert mixed.counters == alone.counters
    assert lines(tmp_path / "mixed") == lines(tmp_path / "pure")
    assert [b.info for b in watch.batches] == [b.info for b in other.batches]
    start, _, _ = train(source(pure, rounds=1, reuse=1, batch_size=4), tmp_path / "one")
    assert not same(ours, start)


def test_every_batch_has_its_share_and_every_group_is_used_once_a_pass(tmp_path):
    data = source("mixed", onpolicy_fraction=0.25, prompts_per_round=8, batch_size=4, rounds=3)
    _, watch, _ = train(data, tmp_path)
    assert data.fresh_groups == 2
    for info in watch.infos:
        assert info["onpolicy_share"] == 0.25
    for round in watch.rounds:
        assert [g.source for g in round.groups] == ["onpolicy"] * 2 + ["offline"] * 6
    seen = {}
    for batch in watch.batches:
        seen.setdefault(batch.index[:2], []).append(batch.tokens.num_responses)
    assert all(sum(counts) == 8 * 3 for counts in seen.values())  # no ties in these rewards
    # the initial policy made the 6 stored groups, each round 2 more, 3 responses each
    assert data.counters["samples"] == data.counters["reward_queries"] == 3 * (6 + 3 * 2)
    written = lines(tmp_path)
    assert [w["source"] for w in written] == ["offline"] * 6 + ["onpolicy"] * 6
    assert [w["policy_version"] for w in written] == [0] * 6 + [0, 0, 4, 4, 8, 8]


def test_stored_groups_age_and_are_used_as_the_run_goes_on(tmp_path):
    # 2 of 4 groups of a round are rows of a set of 6: the third round begins with the fifth row
    _, watch, _ = train(source("mixed", rounds=4), tmp_path)
    assert [r.uses for r in watch.rounds] == [[0] * 4, [0] * 4, [0] * 4, [0, 0, 2, 2]]
    # one fresh and one stored group a batch: the fresh one is as old as its round
    ages = [(i["age/mean"], i["age/max"]) for i in watch.infos]
    assert ages == [((step % 4 + step) / 2, step) for step in range(16)]
    assert [i["uses"] for i in watch.infos] == [*[0, 0, 1, 1] * 3, 1, 1, 2, 2]


def test_the_fraction_must_give_whole_groups():
    assert [fresh_per_batch(f, 10) for f in (0.0, 0.3, 0.7, 1.0)] == [0, 3, 7, 10]
    assert fresh_per_batch(0.333, 3) == 1
    with pytest.raises(Refusal, match=r"nearest values: 0\.25 and 0\.5"):
        source("mixed", onpolicy_fraction=0.3, prompts_per_round=4, batch_size=4)
    with pytest.raises(Refusal, match=r"share in \[0, 1\], got 1\.5"):
        source("mixed", onpolicy_fraction=1.5)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(Refusal, match="fewer than the 8 stored groups"):
        source("mixed", onpolicy_fraction=0.2, prompts_per_round=10, batch_size=10)
    bare = TokenBandit(seed=0, offline_prompts=0)
    with pytest.raises(Refusal, match="no offline data, which data=mixed needs"):
        source("mixed", task=bare)
    assert source("mixed", task=bare, onpolicy_fraction=1.0).stored is None

    def unscored(fraction):
        return MixedDataModule(
            TokenBandit(seed=0), sampler=NativeSampler(max_new_tokens=9), reward=None,
            prompts_per_round=4, batch_size=2, responses_per_prompt=2, onpolicy_fraction=fraction,
        )  # fmt: skip

    with pytest.raises(Refusal, match="data=mixed needs a reward"):
        unscored(0.5)
    assert unscored(0.0).fresh_groups == 0


def test_reinforce_wants_importance_weights_or_the_pure_source():
    def module(**options):
        return REINFORCE(HFPolicy(gpt_nano()), **options)

    with pytest.raises(Refusal, match=r"data=onpolicy, or set objective\.importance=token"):
        source("mixed").check(module())
    source("mixed").check(module(importance="token"))
    source("mixed", onpolicy_fraction=1.0).check(module())


@pytest.mark.parametrize("stop", [3, 6])
def test_resumed_within_a_round_it_is_bitwise_the_same(tmp_path, stop):
    """Steps 3 and 6 of 8 are within a pass; the offline set is in the checkpoint."""
    whole, watch, _ = train(source("mixed"), tmp_path / "whole")
    train(source("mixed"), tmp_path / "run", stop=stop)
    data = source("mixed")
    again, later, _ = train(data, tmp_path / "run", ckpt_path=tmp_path / "run" / "stopped.ckpt")
    assert same(whole, again)
    assert [b.index for b in later.batches] == [b.index for b in watch.batches[stop:]]
    for name in ("samples.jsonl", "metrics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert data.counters["samples"] == 3 * (6 + 2 * 2)


def test_a_checkpoint_holds_row_ids_of_the_stored_part(tmp_path):
    data = source("mixed", task=Filed(seed=0))
    train(data, tmp_path)
    saved = data.state_dict()["round"]
    assert len(saved["groups"]) == 2  # the sampled ones
    assert set(saved["stored"]) == {"rows", "digest"}
    assert saved["stored"]["rows"] == data.stored_rows(1)


class Filed(TokenBandit):
    """A bandit with stored groups, as a file would give them; the second row has three ranks."""

    def offline(self):
        from lit_pref.types import Group, Response

        def group(n, prompt):
            answers = [[n + 1] * 9, [n + 20] * 9, [n + 40] * 9][: 3 if n == 1 else 2]
            responses = [Response(ids=ids, rank=k) for k, ids in enumerate(answers)]
            return Group(prompt=prompt, responses=responses)

        return [group(n, p) for n, p in enumerate(self.prompts())]


@pytest.mark.parametrize("kind", ["offline", "mixed"])
def test_ranked_lists_give_pairs_like_any_group(tmp_path, kind):
    data = source(kind, task=Filed(seed=0, train_prompts=2), batch_size=2, prompts_per_round=2,
                  rounds=2, reuse=1)  # fmt: skip
    _, watch, _ = train(data, tmp_path, dpo(pairs="all"))
    for round in watch.rounds:
        ranked = [g for g in round.groups if g.source == "offline"]
        # all pairs of three ranks are 3, of two ranks 1; all pairs of three scored samples are 3
        expected = sum(3 if len(g.responses) == 3 else 1 for g in ranked)
        expected += 3 * (2 - len(ranked))
        assert round.counts["data/pairs"] == len(round.view.pairs) == expected
