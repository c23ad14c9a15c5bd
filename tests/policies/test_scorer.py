import json
import logging

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.heads import ScalarHead
from lit_pref.policies.models import gpt_nano, tiny
from lit_pref.policies.scorer import HEAD_FILE, load_scorer, save_scorer
from lit_pref.types import FlatTokens, Group, Prompt, Refusal, Response


def groups(vocab, eos=None):
    tail = [] if eos is None else [eos]
    rows = [([1, 2], [[3, 4, 5, *tail], [6, 0]]), ([7], [[0], [8, 9, 1, 1, *tail], []])]
    return [
        Group(
            prompt=Prompt(id=n, text="", ids=[i % vocab for i in prompt]),
            responses=[Response(ids=[i % vocab for i in ids]) for ids in responses],
        )
        for n, (prompt, responses) in enumerate(rows)
    ]


def training_scores(policy, head, data):
    with torch.no_grad():
        stats = policy(FlatTokens.from_groups(data), stats=("final_hidden",))
        return head(stats.final_hidden)


def sequences(data):
    return [[*g.prompt.ids, *r.ids] for g in data for r in g.responses]


@pytest.mark.parametrize("make", [gpt_nano, tiny])
def test_the_folder_scores_as_training_did(make, tmp_path):
    policy = HFPolicy(make()).load()
    head = ScalarHead(policy.hidden_size, init="normal")
    eos = policy.spec.eos_ids[0] if policy.spec.eos_ids else None
    data = groups(policy.spec.vocab_size, eos)
    expected = training_scores(policy, head, data)
    save_scorer(policy, head, tmp_path)
    assert not (tmp_path / HEAD_FILE).exists()
    torch.testing.assert_close(load_scorer(tmp_path)(sequences(data)), expected, rtol=0, atol=1e-5)
    # transformers' own class, one row at a time, needs no padding token
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([s])).logits.item() for s in sequences(data)]
    torch.testing.assert_close(torch.tensor(alone), expected, rtol=0, atol=1e-5)


def test_a_padding_token_that_ends_responses_is_left_out(tmp_path):
    policy = HFPolicy(tiny()).load()
    head = ScalarHead(policy.hidden_size, init="normal")
    save_scorer(policy, head, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    tokenizer = policy.spec.tokenizer
    assert (config["pad_token_id"] is None) == (tokenizer.pad_token_id in policy.spec.eos_ids)
    policy.spec.eos_ids = (tokenizer.pad_token_id,)
    save_scorer(policy, head, tmp_path / "shared")
    config = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert config["pad_token_id"] is None


def test_writing_draws_no_progress_bars(tmp_path, capfd):
    policy = HFPolicy(tiny()).load()
    save_scorer(policy, ScalarHead(policy.hidden_size), tmp_path)
    assert "shards" not in capfd.readouterr().err


def test_without_a_fitting_class_the_head_is_written_beside(tmp_path, caplog):
    policy = HFPolicy(gpt_nano()).load()
    head = ScalarHead(policy.hidden_size, init="normal", bias=True)  # GPT-2's has no bias
    with torch.no_grad():
        head.bias.fill_(0.75)
    data = groups(100)
    with caplog.at_level(logging.WARNING):
        save_scorer(policy, head, tmp_path)
    assert HEAD_FILE in caplog.text
    scores = load_scorer(tmp_path)(sequences(data))
    expected = training_scores(policy, head, data)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_refusals(tmp_path):
    with pytest.raises(Refusal, match="cannot be read"):
        load_scorer(tmp_path)
    policy = HFPolicy(gpt_nano()).load()
    save_scorer(policy, ScalarHead(policy.hidden_size), tmp_path)
    with pytest.raises(ValueError, match="context of 10"):
        load_scorer(tmp_path)([[0] * 11])
