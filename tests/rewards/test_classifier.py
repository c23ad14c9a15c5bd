"""``reward=classifier`` on tiny models made here: templates, labels, padding, what is refused."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lit_pref.policies.models import tiny
from lit_pref.rewards import ClassifierReward, RewardError, checked_scores, classifier
from lit_pref.types import Group, Prompt, Refusal, Response

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A decoder with one output and a chat template of its own, not the policy's."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = tiny().tokenizer
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, num_labels=1,
        pad_token_id=None, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """An encoder with three classes that reads pairs."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "very"]
    tokenizer = _word_tokenizer(words)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, num_labels=3, initializer_range=0.5,
        id2label={0: "negative", 1: "neutral", 2: "positive"},
        label2id={"negative": 0, "neutral": 1, "positive": 2},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def _word_tokenizer(words):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    index = {word: n for n, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(index, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def group(prompt, *responses):
    return Group(
        prompt=Prompt(id=0, text=prompt, ids=[1]),
        responses=[Response(ids=[9], text=text) for text in responses],
    )


def test_a_decoder_reads_its_own_chat_template(llama):
    groups = [group("Hi", "no", "a longer answer"), group("Well", "x")]
    scores = ClassifierReward(path=str(llama)).score(groups)
    model = AutoModelForSequenceClassification.from_pretrained(llama)
    reward = ClassifierReward(path=str(llama))
    for text, score in zip(
        ("<user>Hi<assistant>no", "<user>Hi<assistant>a longer answer", "<user>Well<assistant>x"),
        scores,
        strict=True,
    ):
        ids = reward.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert score == pytest.approx(model(ids).logits.item(), abs=1e-5)
    assert len(set(scores)) == 3


def test_chat_messages_keep_their_roles(llama):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    reward = ClassifierReward(path=str(llama))
    plain = ClassifierReward(path=str(llama), template="<system>S<user>U<assistant>{response}")
    one = reward.score([group(messages, "yes")])
    ids = plain.tokenizer("<system>S<user>U<assistant>yes", add_special_tokens=False)["input_ids"]
    assert reward._encode(Prompt(id=0, text=messages, ids=[]), Response(ids=[], text="yes")) == {
        "input_ids": ids
    }
    assert len(one) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_an_encoder_reads_pairs_padded_and_in_order(bert, batch_size):
    reward = ClassifierReward(path=str(bert), label="positive", batch_size=batch_size)
    groups = [group("film", "good", "a very bad film a very bad"), group("a", "bad")]
    model = BertForSequenceClassification.from_pretrained(bert).eval()
    expected = []
    for prompt, response in (
        ("film", "good"),
        ("film", "a very bad film a very bad"),
        ("a", "bad"),
    ):
        row = reward.tokenizer(prompt, response, return_tensors="pt")
        assert row["token_type_ids"].sum() > 0
        with torch.no_grad():
            expected.append(model(**row).logits[0, 2].item())
    assert checked_scores(reward, groups) == pytest.approx(expected, abs=1e-5)


def test_labels_outputs_and_templates(bert):
    settings = {"path": str(bert), "template": "{response}"}
    groups = [group("film", "good", "very bad")]
    probs = [
        torch.tensor(ClassifierReward(**settings, label=k, output="prob").score(groups))
        for k in range(3)
    ]
    assert torch.allclose(sum(probs), torch.ones(2), atol=1e-6)
    by_name = ClassifierReward(**settings, label="neutral", output="log_prob")
    assert torch.allclose(torch.tensor(by_name.score(groups)).exp(), probs[1], atol=1e-6)
    other = [group("a very bad film", "good", "very bad")]  # the prompt is not in the template
    assert by_name.score(other) == by_name.score(groups)
    versions = {
        ClassifierReward(**{**settings, **x}).version
        for x in (
            {"label": 0},
            {"label": 1},
            {"label": 1, "output": "prob"},
            {"label": 1, "template": "pair"},
        )
    }
    assert len(versions) == 4


def test_braces_in_texts_are_text(bert):
    reward = ClassifierReward(path=str(bert), label=0, template="{prompt} film {response}")
    ids = reward._encode(Prompt(id=0, text="{response}", ids=[]), Response(ids=[], text="{prompt}"))
    assert ids["input_ids"] == reward.tokenizer("{response} film {prompt}")["input_ids"]


def test_texts_that_are_too_long(bert, llama):
    long = group("film", "good " * 40)
    with pytest.raises(RewardError, match="more than the classifier's context of 16"):
        checked_scores(ClassifierReward(path=str(bert), label=0), [long])
    cut = ClassifierReward(path=str(bert), label=0, too_long="cut")
    row = cut._ids(long.prompt, long.responses[0])
    assert len(row["input_ids"]) == 16
    assert row["input_ids"][0] == 2  # [CLS] is still there
    checked_scores(cut, [long])
    assert cut.counts() == {"reward/cut": 2}
    chat = ClassifierReward(path=str(llama), too_long="cut")
    text = "x" * 300
    row = chat._ids(Prompt(id=0, text="Hi", ids=[]), Response(ids=[], text=text))
    whole = chat.tokenizer(f"<user>Hi<assistant>{text}", add_special_tokens=False)["input_ids"]
    assert row["input_ids"] == whole[-64:]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"3 classes: 0 \(negative\), 1 \(neutral\), 2 \(positive\); name the one"),
        ({"label": "happy"}, "has the classes"),
        ({"label": 0, "output": "odds"}, r"reward\.output"),
        ({"label": 0, "template": "chat"}, "no chat template"),
        ({"label": 0, "template": "{prompt}"}, r"\{response\}"),
        ({"label": 0, "too_long": "drop"}, r"reward\.too_long"),
        ({"label": 0, "batch_size": 0}, r"reward\.batch_size"),
        ({"label": 0, "dtype": "float16"}, r"reward\.dtype"),
    ],
)
def test_refusals(bert, settings, words):
    with pytest.raises(Refusal, match=words):
        ClassifierReward(path=str(bert), **settings)


def test_what_is_no_classifier_is_refused(llama, tmp_path):
    with pytest.raises(Refusal, match="cannot be read"):
        ClassifierReward(path=str(tmp_path))
    with pytest.raises(Refusal, match="single output"):
        ClassifierReward(path=str(llama), label=1)
    import json
    import shutil

    folder = tmp_path / "lm"
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["LlamaForCausalLM"]})
    )
    with pytest.raises(Refusal, match="LlamaForCausalLM; expected a"):
        ClassifierReward(path=str(folder))


def test_the_gpu_is_the_one_that_training_has_by_then(llama, monkeypatch):
    """The reward is made before the trainer chooses a device."""
    reward = ClassifierReward(path=str(llama))
    asked = []
    monkeypatch.setattr(classifier, "own_device", lambda: asked.append(1) or "meta")
    assert reward._loaded().device.type == "meta"
    assert ClassifierReward(path=str(llama), device="cpu")._loaded().device.type == "cpu"
    assert asked == [1]
