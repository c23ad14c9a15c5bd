import pytest
import torch

from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.heads import ScalarHead
from lit_pref.policies.models import gpt_nano, tiny
from lit_pref.policies.scorer import save_scorer
from lit_pref.rewards import LearnedReward
from lit_pref.types import FlatTokens, Group, Prompt, Refusal, Response


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Exports as two runs leave them, and what made them."""
    out = {}
    for name, make in (("bandit", gpt_nano), ("text", tiny)):
        folder = tmp_path_factory.mktemp(name)
        policy = HFPolicy(make()).load()
        head = ScalarHead(policy.hidden_size, init="normal")
        save_scorer(policy, head, folder / "export")
        out[name] = folder, policy, head
    return out


def groups():
    answers = [[5, 6, 7], [8], [9] * 9]
    return [
        Group(prompt=Prompt(id=n, text="", ids=[n]), responses=[Response(ids=a) for a in answers])
        for n in range(4)
    ]


def test_scores_are_those_of_training_in_order(runs):
    folder, policy, head = runs["bandit"]
    reward = LearnedReward(path=str(folder), batch_size=5)
    with torch.no_grad():
        tokens = FlatTokens.from_groups(groups())
        expected = head(policy(tokens, stats=("final_hidden",)).final_hidden).tolist()
    assert reward.score(groups()) == pytest.approx(expected, abs=1e-5)


def test_the_version_is_that_of_the_weights(runs, tmp_path):
    folder, policy, _ = runs["bandit"]
    first = LearnedReward(path=str(folder)).version
    assert first == LearnedReward(path=str(folder / "export")).version
    save_scorer(policy, ScalarHead(policy.hidden_size, init="normal", seed=1), tmp_path)
    assert first != LearnedReward(path=str(tmp_path)).version


def test_tokens_must_agree(runs):
    tokenizer = runs["text"][1].spec.tokenizer
    LearnedReward(path=str(runs["text"][0]), tokenizer=tokenizer)
    with pytest.raises(Refusal, match="no tokenizer"):
        LearnedReward(path=str(runs["bandit"][0]), tokenizer=tokenizer)


def test_refusals(runs, tmp_path):
    with pytest.raises(Refusal, match=r"neither .*export"):
        LearnedReward(path=str(tmp_path))
    with pytest.raises(Refusal, match=r"reward\.batch_size"):
        LearnedReward(path=str(runs["bandit"][0]), batch_size=0)
    runs["bandit"][1].save_pretrained(str(tmp_path / "export"))
    with pytest.raises(Refusal, match="GPT2LMHeadModel, which scores"):
        LearnedReward(path=str(tmp_path))
