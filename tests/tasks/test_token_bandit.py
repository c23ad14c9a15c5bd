"""The token bandit: prompts, rewards by hand, and the supervised start with its cache."""

import logging
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lit_pref.functional.bandit import reference_probs
from lit_pref.tasks import bandit_start
from lit_pref.tasks.bandit_start import closed_form_kl
from lit_pref.tasks.token_bandit import TokenBandit
from lit_pref.types import Group, Refusal, Response


def gpt_nano(*, seed: int = 0, **changes) -> GPT2LMHeadModel:
    settings = dict(vocab_size=100, n_positions=10, n_embd=48, n_layer=3, n_head=3)
    settings |= dict(tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(**settings | changes)).eval()


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def initial(cache):
    model = gpt_nano(seed=5)
    TokenBandit(seed=0).initialise(model, cache_dir=cache)
    return model


# ------------------------------------------------------------------------------- prompts


def test_prompts_are_fixed_by_the_seed():
    prompts = TokenBandit(seed=3).prompts()
    assert len(prompts) == len({p.id for p in prompts}) == 10
    assert all(p.ids == [p.id] and p.text == str(p.id) and 0 <= p.id < 100 for p in prompts)
    assert prompts == TokenBandit(seed=3, reward="r2", validation_prompts=5).prompts()
    assert prompts != TokenBandit(seed=4).prompts()
    # more prompts extend the list; the second hundred is another permutation
    many = TokenBandit(seed=3, train_prompts=200).prompts()
    assert many[:10] == prompts
    assert sorted(p.id for p in many[:100]) == sorted(p.id for p in many[100:]) == list(range(100))
    assert many[:100] != many[100:]


def test_validation_prompts_do_not_depend_on_the_seed():
    assert [p.id for p in TokenBandit(seed=1).validation()] == list(range(100))
    some = [p.id for p in TokenBandit(seed=1, validation_prompts=3).validation()]
    assert some == [0, 33, 66]


def test_what_the_data_side_reads():
    task = TokenBandit(seed=0, offline_prompts=7)
    assert task.offline() is None
    assert (task.offline_prompts, task.max_new_tokens, task.eos_ids) == (7, 9, ())
    assert task.decode([3, 17, 99]) == "3 17 99"
    assert task.fingerprint() == TokenBandit(seed=9, reward="r2").fingerprint()
    assert task.fingerprint() != TokenBandit(seed=0, init_seed=1).fingerprint()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_prompts": 0}, "task.train_prompts must be at least 1; got 0"),
        ({"validation_prompts": 101}, "task.validation_prompts must be from 1 to 100; got 101"),
        ({"offline_prompts": -1}, "task.offline_prompts must be at least 0; got -1"),
        ({"reward": "r3"}, "r1_wider; got 'r3'"),
        ({"reward_positions": "all"}, "response, prompt_and_response; got 'all'"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(Refusal, match=message):
        TokenBandit(seed=0, **settings)


# ------------------------------------------------------------------------------- reward


def group(task, *responses, prompt: int = 0) -> Group:
    given = next(p for p in task.validation() if p.id == prompt)
    return Group(prompt=given, responses=[Response(ids=ids) for ids in responses])


def test_true_reward_by_hand():
    task = TokenBandit(seed=0)
    at_peak, half = [70] * 9, [70, 80, 60] + [70] * 6
    expected = [1.0, (7 + 2 * math.exp(-1)) / 9]
    assert task.true_reward().score([group(task, at_peak, half, prompt=70)]) == pytest.approx(
        expected
    )
    wide = TokenBandit(seed=0, reward="r1_wide").true_reward()
    assert wide.score([group(task, [50] * 9)]) == pytest.approx([math.exp(-1)])


def test_reward_with_the_prompt_token_by_hand():
    task = TokenBandit(seed=0, reward="r2", reward_positions="prompt_and_response")
    # prompt 30 is one width from the peak at 20
    scores = task.true_reward().score([group(task, [20] * 9, prompt=30)])
    assert scores == pytest.approx([(9 + math.exp(-1)) / 10])


def test_reward_versions():
    sources = [
        TokenBandit(seed=0, reward=reward, reward_positions=positions).true_reward()
        for reward in ("r1", "r2")
        for positions in ("response", "prompt_and_response")
    ]
    assert len({(s.name, s.version) for s in sources}) == 4


@pytest.mark.parametrize("ids", [[], [70] * 8, [70] * 10, [70] * 8 + [100], [70] * 8 + [-1]])
def test_responses_that_are_none(ids):
    task = TokenBandit(seed=0)
    with pytest.raises(ValueError, match=r"expected 9 tokens in 0\.\.99"):
        task.true_reward().score([group(task, ids)])


# ------------------------------------------------------------------------------- start


def test_closed_form_kl_by_hand():
    probs = reference_probs()
    assert closed_form_kl(probs.log()).item() == pytest.approx(0.0, abs=1e-6)
    # all mass on action 70: -log p_70
    certain = torch.full((2, 100), -1e9)
    certain[:, 70] = 0.0
    assert closed_form_kl(certain).tolist() == pytest.approx([-math.log(probs[70].item())] * 2)


def test_closed_form_kl_gradient():
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0)).requires_grad_()
    closed_form_kl(logits).backward()
    # dKL/dlogit_a = pi_a (log(pi_a / p_a) - KL)
    logps = logits.detach().log_softmax(-1)
    ratio = logps - reference_probs().log().float()
    expected = logps.exp() * (ratio - (logps.exp() * ratio).sum())
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-4)


def test_initial_policy_is_the_closed_form(initial):
    draw = torch.Generator().manual_seed(123)
    uniform = torch.randint(100, (100, 9), generator=draw)
    own = uniform[:, :1]
    with torch.no_grad():
        for _ in range(8):
            probs = initial(input_ids=own).logits[:, -1].softmax(-1)
            own = torch.cat([own, torch.multinomial(probs, 1, generator=draw)], 1)
        for ids in (uniform, own):
            kl = closed_form_kl(initial(input_ids=ids).logits)
            assert kl.shape == (100, 9)
            assert kl.mean().item() < 0.01
            assert kl.mean(0).max().item() < 0.05  # at each position


def test_start_does_not_depend_on_the_run(initial, cache):
    before = torch.random.get_rng_state()
    model = gpt_nano(seed=6)
    TokenBandit(seed=8, reward="r2").initialise(model)  # no cache: trained again
    assert same(weights(model), weights(initial))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_cache_hit_and_keys(initial, cache, monkeypatch):
    model = gpt_nano(seed=7)
    assert len(list(cache.iterdir())) == 1  # no temporary file is left

    def fail(*args):
        raise AssertionError("trained")

    monkeypatch.setattr(bandit_start, "_supervised_start", fail)
    TokenBandit(seed=1).initialise(model, cache_dir=cache)
    assert same(weights(model), weights(initial))
    for task, other in [
        (TokenBandit(seed=1, init_seed=1), model),
        (TokenBandit(seed=1), gpt_nano(n_layer=2)),
        (TokenBandit(seed=1), gpt_nano(activation_function="relu")),
    ]:
        with pytest.raises(AssertionError, match="trained"):
            task.initialise(other, cache_dir=cache)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "folder"])
def test_damaged_cache_is_made_again(initial, cache, tmp_path, monkeypatch, caplog, damage):
    (source,) = cache.iterdir()
    data = bytearray(source.read_bytes())
    path = tmp_path / source.name
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.mkdir()
    good = weights(initial)
    monkeypatch.setattr(bandit_start, "_supervised_start", lambda *args: good)
    model = gpt_nano(seed=7)
    with caplog.at_level(logging.WARNING):
        TokenBandit(seed=0).initialise(model, cache_dir=tmp_path)
    assert same(weights(model), good)
    assert "is damaged" in caplog.text
    if damage == "folder":  # cannot be replaced: said, and no reason to stop
        assert "cannot keep the initial policy" in caplog.text
        assert [p.name for p in tmp_path.iterdir()] == [source.name]
    else:
        assert path.read_bytes() == source.read_bytes()


def test_half_precision_model_gets_the_same_weights(initial, cache):
    model = gpt_nano().to(torch.bfloat16)
    TokenBandit(seed=0).initialise(model, cache_dir=cache)
    expected = {name: w.bfloat16() for name, w in weights(initial).items()}
    assert same(weights(model), expected)


def test_start_that_misses_its_target(monkeypatch):
    monkeypatch.setattr(bandit_start, "_STEPS", 0)
    with pytest.raises(RuntimeError, match=r"nats a token from the closed form.*gpt_nano"):
        TokenBandit(seed=0).initialise(gpt_nano())


@pytest.mark.parametrize("changes", [{"vocab_size": 101}, {"n_positions": 9}])
def test_model_that_does_not_fit(changes):
    with pytest.raises(Refusal, match="vocabulary of 100 and a context of at least 10"):
        TokenBandit(seed=0).initialise(gpt_nano(**changes))


def test_wrapped_model_is_refused(initial, cache):
    model = gpt_nano()
    model.extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(Refusal, match="plain causal LM"):
        TokenBandit(seed=0).initialise(model)
