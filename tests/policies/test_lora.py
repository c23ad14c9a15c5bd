"""Adapters: what trains, what is shared, what checkpoints and exports hold."""

import json

import pytest
import torch
import transformers as tf

from lit_pref.engine.forward import hf_token_stats
from lit_pref.policies import FrozenReference, HFPolicy, LoRA, MovingReference, gpt_nano, hf, tiny
from lit_pref.policies import lora as lora_module
from lit_pref.types import FlatTokens, Refusal

peft = pytest.importorskip("peft")


def some_tokens():
    ids = torch.arange(1, 60)
    return FlatTokens(ids[:20], [20], ids[20:], [20, 19], [0, 0])


def policy(spec=None, **options):
    return HFPolicy(spec or tiny(), lora=LoRA(rank=4, **options)).load()


def move(made, by=0.1):
    """Stands for training: adapters only."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.add_(by * torch.randn(p.shape, generator=draw))
    return made


@pytest.mark.parametrize("make", [tiny, gpt_nano])
def test_training_starts_at_the_model_and_moves_adapters_alone(make):
    plain, made = HFPolicy(make()).load(), policy(make())
    ids = torch.arange(1, 10)
    flat = FlatTokens(ids[:2], [2], ids[2:], [3, 4], [0, 0])
    assert torch.equal(made(flat).logps, plain(flat).logps)
    names = {n for n, p in made.named_parameters() if p.requires_grad}
    assert names and all("lora_" in n for n in names)
    linear = sum(
        isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"
        for n, m in plain.named_modules() if "lm_head" not in n
    )  # fmt: skip
    assert len(names) == 2 * linear
    made(flat).logps.sum().backward()
    grads = {n for n, p in made.named_parameters() if p.grad is not None}
    assert grads == names
    moved = [n for n in names if made.get_parameter(n).grad.abs().sum() > 0]
    assert {n.split("lora_")[1][0] for n in moved} == {"B"}  # B is 0, so A has no gradient yet


def test_adapters_depend_on_the_seed_alone():
    torch.manual_seed(3)
    first = policy(seed=1)
    state = torch.random.get_rng_state()
    torch.manual_seed(4)
    again, other = policy(seed=1), policy(seed=2)
    a, b, c = (
        torch.cat([p.flatten() for p in m.parameters() if p.requires_grad])
        for m in (first, again, other)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    torch.manual_seed(3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_packed_path_is_used_and_right_with_adapters_that_have_moved():
    made = move(policy())
    assert made.path == "auto"
    flat = some_tokens()
    packed, padded = (hf_token_stats(made.model, flat, path=p).logps for p in ("packed", "padded"))
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
    plain = HFPolicy(tiny()).load()
    plain.model.load_state_dict(made.whole_state())
    torch.testing.assert_close(plain(flat).logps, packed, atol=1e-5, rtol=1e-5)
    assert (packed - HFPolicy(tiny()).load()(flat).logps).abs().max() > 0.01


def test_the_reference_is_the_model_without_adapters_and_has_no_weights_of_its_own():
    made = policy()
    reference, moving = FrozenReference(), MovingReference(mix=1.0)
    reference.prepare(made)
    moving.prepare(made)
    start = made(some_tokens()).logps.detach()
    move(made)
    assert torch.equal(reference.token_logps(some_tokens()).logps, start)
    assert torch.equal(moving.token_logps(some_tokens()).logps, start)
    now = made(some_tokens()).logps.detach()
    assert (now - start).abs().max() > 0.01
    mine = {p.data_ptr() for p in made.parameters() if not p.requires_grad}
    for copy in (reference.copy, moving.copy):
        own = [p for n, p in copy.named_parameters() if p.data_ptr() not in mine]
        assert sum(p.numel() for p in own) == sum(
            p.numel() for p in made.parameters() if p.requires_grad
        )
    assert all("lora_" in name for name in moving.state())
    moving.advance(made, 1)
    assert torch.equal(moving.token_logps(some_tokens()).logps, now)
    assert torch.equal(reference.token_logps(some_tokens()).logps, start)


def test_sampling_goes_through_the_adapter():
    made = move(policy()).eval()
    plain = HFPolicy(tiny()).load().eval()
    plain.model.load_state_dict(made.whole_state())
    with torch.no_grad():
        found, state = made.prefill([[1, 2, 3]], 2)
        expected, other = plain.prefill([[1, 2, 3]], 2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        token = torch.tensor([4, 5])
        torch.testing.assert_close(
            made.step(token, state)[0], plain.step(token, other)[0], atol=1e-5, rtol=1e-5
        )


def test_state_dicts_hold_adapters_alone_and_load_into_a_larger_module():
    made = move(policy())
    outer = torch.nn.ModuleDict({"policy": made, "critic": torch.nn.Linear(2, 1)})
    state = outer.state_dict()
    kept = {n for n in state if n.startswith("policy.")}
    assert kept == {f"policy.{n}" for n, p in made.named_parameters() if p.requires_grad}
    assert {n for n in state if n.startswith("critic.")} == {"critic.weight", "critic.bias"}
    fresh = torch.nn.ModuleDict({"policy": policy(seed=9), "critic": torch.nn.Linear(2, 1)})
    fresh.load_state_dict(state)  # strict
    assert torch.equal(fresh["policy"](some_tokens()).logps, made(some_tokens()).logps)
    for lost in ("critic.bias", sorted(kept)[0]):
        with pytest.raises(RuntimeError, match="Missing key"):
            fresh.load_state_dict({k: v for k, v in state.items() if k != lost})


@pytest.mark.parametrize("make", [tiny, gpt_nano])
def test_a_merged_export_is_a_plain_model(make, tmp_path):
    made = move(policy(make()))
    made.save_pretrained(str(tmp_path))
    assert not (tmp_path / "adapter_config.json").exists()
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        expected = made.model(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert {n for n, _ in model.named_parameters()} == {
        n for n, _ in HFPolicy(make()).load().model.named_parameters()
    }


@pytest.mark.parametrize("make", [tiny, gpt_nano])
def test_an_adapter_export_loads_in_peft(make, tmp_path):
    made = move(policy(make(), export="adapter"))
    made.save_pretrained(str(tmp_path / "adapter"))
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == made.spec.name
    assert not (tmp_path / "adapter" / "config.json").exists()
    base = HFPolicy(make()).load().model
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, made.model(ids).logits)


def test_whole_weights_replace_the_adapters():
    trained, fresh = move(policy()), policy()
    fresh.load_whole_state(trained.whole_state())
    assert fresh.lora is None
    torch.testing.assert_close(
        fresh(some_tokens()).logps, trained(some_tokens()).logps, atol=1e-5, rtol=1e-5
    )
    assert set(fresh.state_dict()) == set(HFPolicy(tiny()).load().state_dict())


def test_the_digest_is_of_the_weights_below_the_adapters():
    made, other = policy(), policy(tiny(seed=1))
    before = made.base_digest()
    made._digest = None
    assert move(made).base_digest() == before == policy(seed=5).base_digest()
    assert other.base_digest() != before


def test_half_precision_models_have_float32_adapters(tmp_path):
    HFPolicy(tiny()).load().save_pretrained(str(tmp_path))
    made = policy(hf(tmp_path, dtype="bfloat16"))
    kinds = {(("lora_" in n), p.dtype) for n, p in made.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    move(made)(some_tokens()).logps.sum().backward()
    merged = made.whole_state()
    assert {v.dtype for v in merged.values()} == {torch.bfloat16}


def test_chosen_layers():
    made = policy(targets=("q_proj", "v_proj"))
    adapted = {n.split(".lora_")[0].rsplit(".", 1)[1] for n, p in made.named_parameters()
               if p.requires_grad}  # fmt: skip
    assert adapted == {"q_proj", "v_proj"}


def test_an_adapted_output_layer_is_not_overlooked():
    made = move(policy(targets=("lm_head",)))
    assert not made.plain_head
    flat = some_tokens()
    plain = HFPolicy(tiny()).load()
    plain.model.load_state_dict(made.whole_state())
    torch.testing.assert_close(made(flat).logps, plain(flat).logps, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank must be a whole number from 1"),
        ({"alpha": -1.0}, "alpha must be larger than 0"),
        ({"targets": ()}, "all-linear"),
        ({"export": "both"}, "merged or adapter"),
    ],
)
def test_settings_out_of_range_are_refused(options, words):
    with pytest.raises(Refusal, match=words):
        LoRA(**options)


def test_without_peft_the_install_command_is_named(monkeypatch):
    monkeypatch.setattr(lora_module, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"\[peft\]"):
        LoRA(rank=4)


def test_layers_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(Refusal, match="q_proj"):
        policy(targets=("query",))


def test_a_tied_output_layer_is_refused():
    spec = gpt_nano()
    load = spec.load

    def tied():
        model = load()
        model.config.tie_word_embeddings = True
        model.tie_weights()
        return model

    spec.load = tied
    with pytest.raises(Refusal, match="one matrix"):
        policy(spec, targets=("lm_head",))
