"""Length tasks and gold_reward: true rewards, preference data, refusals."""

import json

import pytest
import torch

from lit_pref.functional.words import END, cut_length_probs, length_probs, overlap, response_ids
from lit_pref.policies import tiny
from lit_pref.policies.words import word_nano, word_tokenizer
from lit_pref.tasks import GoldReward, GoldRewardTask, LengthReward, LengthTask, WordStart
from lit_pref.tasks.words import word_prompts
from lit_pref.types import Group, Refusal, Response

TOKENIZER = word_tokenizer()


def responses(*lengths):
    return [Response(ids=[4 + i % 60 for i in range(n - 1)] + [END]) for n in lengths]


def write(path, groups):
    path.write_text("".join(json.dumps(g.to_json()) + "\n" for g in groups))
    return str(path)


def sampled(path, count=300):
    """Two corpus responses to each prompt, as a file."""
    prompts, answers = word_prompts(0, count), response_ids(list(range(10_000, 10_000 + 2 * count)))
    groups = [
        Group(prompt=p, responses=[Response(ids=a), Response(ids=b)])
        for p, a, b in zip(prompts, answers[::2], answers[1::2], strict=True)
    ]
    return write(path, groups)


def task(**settings):
    return LengthTask(name="min_length", tokenizer=TOKENIZER, **{"wanted": "shortest", **settings})


def test_rewards_in_tokens():
    group = Group(prompt=word_prompts(0, 1)[0], responses=responses(1, 20, 48))
    assert LengthReward(name="x", wanted="shortest").score([group]) == [-1, -20, -48]
    assert LengthReward(name="x", wanted="typical").score([group]) == [-19, 0, -28]
    assert LengthReward(name="x", wanted="typical", mode=2).score([group]) == [-1, -18, -46]


def test_pairs_are_ranked_and_ties_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    prompts = word_prompts(0, 4)
    groups = [
        Group(prompt=prompts[0], responses=responses(10, 12)),
        Group(prompt=prompts[1], responses=responses(30, 5)),
        Group(prompt=prompts[2], responses=responses(7, 7)),
        Group(prompt=word_prompts(2_000_000, 1)[0], responses=responses(1, 2)),  # validation
    ]
    own = task(pairs=write(tmp_path / "p.jsonl", groups))
    pairs = own.offline()
    assert own.counts() == {"data/dropped_pairs": 1}
    assert [[r.rank for r in g.responses] for g in pairs] == [[0, 1], [1, 0]]
    assert [[r.reward for r in g.responses] for g in pairs] == [[-10, -12], [-30, -5]]
    assert {g.reward_source for g in pairs} == {"min_length@1/shortest/0"}
    assert "1 of 3 pairs are ties" in caplog.text
    nearer = task(wanted="typical", pairs=str(tmp_path / "p.jsonl")).offline()
    assert [[r.rank for r in g.responses] for g in nearer] == [[1, 0], [0, 1]]


def test_skew_cuts_a_share_at_geometric_lengths(tmp_path):
    file = sampled(tmp_path / "s.jsonl", 1500)
    plain, skew = task(pairs=file).offline(), task(pairs=file, cut_share=0.8).offline()
    again = task(pairs=file, cut_share=0.8).offline()
    assert [r.ids for g in again for r in g.responses] == [r.ids for g in skew for r in g.responses]
    flat = [r for g in skew for r in g.responses]
    assert all(r.ids[-1] == END and r.finished for r in flat)
    cut = [r for r in flat if r.behaviour == "cut"]
    assert all(r.behaviour_logps is None for r in cut)
    seen = torch.bincount(torch.tensor([len(r.ids) for r in flat]), minlength=49)[1:].double()
    expected = cut_length_probs(length_probs(), share=0.8, mean=7.0)
    assert overlap(seen / seen.sum(), expected) > 0.93  # ties are gone, hence not quite
    assert not any(r.behaviour == "cut" for g in plain for r in g.responses)
    group = Group(prompt=word_prompts(0, 1)[0], responses=responses(9, 1))
    stumps = task(cut_share=1.0, cut_mean=1.0).edited(group)
    assert [r.ids for r in stumps.responses] == [[END], [END]]


def test_prompts_are_apart_and_the_same_for_every_run():
    first, start = task(), WordStart(tokenizer=TOKENIZER, train_prompts=50)
    train, valid = ({p.id for p in x} for x in (first.prompts(), first.validation()))
    corpus = {p.id for p in start.prompts()}
    assert not (train & valid or train & corpus or valid & corpus)
    assert {p.id for p in start.validation()} == valid
    assert [p.ids for p in first.prompts()[:5]] == [p.ids for p in task().prompts()[:5]]
    assert first.offline() is None
    groups = start.offline()
    assert len(groups) == 50 and all(len(g.responses) == 1 for g in groups)
    assert first.decode([4, 5, END]) == "ba be"


def test_the_gold_reward_is_fixed_and_in_units_of_the_corpus():
    prompts = word_prompts(40_000, 2000)
    answers = response_ids([p.id for p in prompts])
    groups = [
        Group(prompt=p, responses=[Response(ids=a)]) for p, a in zip(prompts, answers, strict=True)
    ]
    scores = torch.tensor(GoldReward(seed=0).score(groups), dtype=torch.float64)
    assert abs(scores.mean()) < 0.1 and 0.9 < scores.std() < 1.1
    assert GoldReward(seed=0).score(groups) == scores.tolist()
    alone = [GoldReward(seed=0).score([g])[0] for g in groups[:5]]
    assert alone == pytest.approx(scores[:5].tolist(), abs=1e-9)
    other = torch.tensor(GoldReward(seed=1).score(groups), dtype=torch.float64)
    assert abs(torch.corrcoef(torch.stack([scores, other]))[0, 1]) < 0.5
    lengths = torch.tensor([len(a) for a in answers], dtype=torch.float64)
    assert abs(torch.corrcoef(torch.stack([scores, lengths]))[0, 1]) < 0.25


def test_the_gold_reward_reads_words_order_and_topic():
    base = Group(prompt=word_prompts(0, 1)[0], responses=[Response(ids=[10, 20, 30, END])])
    turned = Group(prompt=base.prompt, responses=[Response(ids=[20, 10, 30, END])])
    topic = Group(prompt=next(p for p in word_prompts(0, 50) if p.ids[0] % 6 != base.prompt.ids[0] % 6),
                  responses=base.responses)  # fmt: skip
    scores = GoldReward().score([base, turned, topic])
    assert len({round(s, 9) for s in scores}) == 3


def test_gold_pairs_agree_with_the_gold_reward(tmp_path):
    gold = GoldRewardTask(
        name="gold_reward", tokenizer=TOKENIZER, pairs=sampled(tmp_path / "s.jsonl")
    )
    pairs = gold.offline()
    assert len(pairs) == 300
    for group in pairs:
        best = max(group.responses, key=lambda r: r.reward)
        assert best.rank == 0 and sorted(r.rank for r in group.responses) == [0, 1]


def test_rivals_give_the_second_response_of_each_pair(tmp_path):
    prompts = word_prompts(0, 3)
    own = [Group(prompt=p, responses=responses(10, 12 + k)) for k, p in enumerate(prompts)]
    theirs = [Group(prompt=p, responses=responses(20 + k)) for k, p in enumerate(prompts)]
    settings = {
        "name": "gold_rivals",
        "tokenizer": TOKENIZER,
        "pairs": write(tmp_path / "own.jsonl", own),
    }
    pairs = GoldRewardTask(rivals=write(tmp_path / "r.jsonl", theirs[::-1]), **settings).offline()
    assert [[len(r.ids) for r in g.responses] for g in pairs] == [[12, 20], [13, 21], [14, 22]]
    assert all((a.reward > b.reward) == (a.rank < b.rank) for a, b in (g.responses for g in pairs))
    with pytest.raises(Refusal, match="no response to prompt 2"):
        GoldRewardTask(rivals=write(tmp_path / "s.jsonl", theirs[:2]), **settings).offline()
    with pytest.raises(Refusal, match=r"task\.rivals"):
        GoldRewardTask(rivals=str(tmp_path / "none.jsonl"), **settings).offline()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: task(wanted="longest"), "shortest or typical"),
        (lambda: task(cut_share=1.5), "task.cut_share must be in"),
        (lambda: task(cut_mean=0.5), "task.cut_mean at least 1"),
        (lambda: task(wanted="typical", mode=0), "task.mode must be at least 1"),
        (lambda: task(train_prompts=0), "task.train_prompts must be a whole number"),
        (
            lambda: LengthTask(name="m", tokenizer=tiny().tokenizer, wanted="shortest"),
            "model=word_nano",
        ),
        (lambda: LengthTask(name="m", tokenizer=None, wanted="shortest"), "no tokenizer"),
        (lambda: GoldReward(seed="a"), "task.gold_seed must be a whole number"),
        (lambda: word_nano(width=65), "a width that heads divide"),
        (lambda: word_nano(context_length=20), "context of at least 52"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(Refusal, match=words):
        make()


def test_files_that_are_no_pairs_are_refused(tmp_path):
    with pytest.raises(Refusal, match="cannot be read"):
        task(pairs=str(tmp_path / "none.jsonl")).check()
    (tmp_path / "bad.jsonl").write_text('{"prompt": 1}\n')
    with pytest.raises(Refusal, match="not a file of sampled groups"):
        task(pairs=str(tmp_path / "bad.jsonl")).check()
    single = write(
        tmp_path / "one.jsonl", [Group(prompt=word_prompts(0, 1)[0], responses=responses(3))]
    )
    with pytest.raises(Refusal, match="two or more responses"):
        task(pairs=single).check()


def test_the_model_speaks_the_language_and_comes_back_from_a_folder(tmp_path):
    from lit_pref.policies import HFPolicy

    policy = HFPolicy(word_nano(seed=3)).load()
    assert sum(p.numel() for p in policy.parameters()) == 107_776
    assert policy.spec.eos_ids == (END,) and policy.spec.context_length == 56
    policy.save_pretrained(str(tmp_path / "m"))
    spec = word_nano(path=str(tmp_path / "m"))
    assert spec.name == "word_nano" and spec.eos_ids == (END,)
    assert spec.tokenizer("ba be :")["input_ids"] == [4, 5, 3]
    for name, value in HFPolicy(spec).load().state_dict().items():
        assert torch.equal(value, policy.state_dict()[name]), name
