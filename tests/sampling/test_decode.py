"""Decoding: the right distribution, recorded log-probs, endings, independence of the batch."""

import itertools
import math

import pytest
import torch
import transformers as tf

from lit_pref.engine.decode import decode, sample_tokens, truncated_log_probs
from lit_pref.functional.rng import uniforms
from lit_pref.policies import HFPolicy, gpt_nano, tiny
from lit_pref.policies.spec import ModelSpec
from lit_pref.sampling import NativeSampler
from lit_pref.types import FlatTokens, Prompt, Refusal


class TablePolicy:
    """Next-token logits as a table over the last token: exact to enumerate. 5 tokens."""

    def __init__(self, logits):
        self.logits = logits

    def prefill(self, prompts, copies):
        last = torch.tensor([p[-1] for p in prompts]).repeat_interleave(copies)
        return self.logits[last], last

    def step(self, token_ids, state):
        return self.logits[token_ids], token_ids

    def keep_rows(self, state, rows):
        return state[rows]


class WatchedPolicy:
    """Passes everything on and writes down how many rows each call had."""

    def __init__(self, inner):
        self.inner, self.rows, self.prefills = inner, [], []

    def prefill(self, prompts, copies):
        self.prefills.append(len(prompts) * copies)
        return self.inner.prefill(prompts, copies)

    def step(self, token_ids, state):
        self.rows.append(len(token_ids))
        return self.inner.step(token_ids, state)

    def keep_rows(self, state, rows):
        return self.inner.keep_rows(state, rows)


TABLE = torch.randn(5, 5, generator=torch.Generator().manual_seed(1)) * 1.5


def exact(first, length, end, *, temperature=1.0, top_p=1.0):
    """Probability of every response: all words of ``length`` cut at their first ending token."""
    probs = truncated_log_probs(TABLE, temperature=temperature, top_p=top_p).double().exp()
    out = {}
    for word in itertools.product(range(5), repeat=length):
        cut = next((i + 1 for i, t in enumerate(word) if t in end), length)
        word = word[:cut]
        p, last = 1.0, first
        for t in word:
            p *= float(probs[last, t])
            last = t
        out[word] = p
    return out


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_100000_samples_against_enumeration(temperature, top_p):
    count, length, end = 100_000, 3, {4}
    rows = decode(
        TablePolicy(TABLE), [[2]], copies=count, end_ids=end, max_new_tokens=length,
        uniforms=torch.rand(count, length, generator=torch.Generator().manual_seed(0),
                            dtype=torch.float64),
        temperature=temperature, top_p=top_p,
    )  # fmt: skip
    expected = exact(2, length, end, temperature=temperature, top_p=top_p)
    assert sum(expected.values()) == pytest.approx(1)
    seen = dict.fromkeys(expected, 0)
    for row in rows:
        seen[tuple(row.ids)] += 1
    chi = sum((seen[w] - count * p) ** 2 / (count * p) for w, p in expected.items() if p > 0)
    free = sum(p > 0 for p in expected.values()) - 1
    assert all(seen[w] == 0 for w, p in expected.items() if p == 0)
    # the statistic has mean `free` and variance 2 `free`: five standard deviations
    assert chi < free + 5 * math.sqrt(2 * free)
    for row in rows[:200]:
        logp = sum(row.behaviour_logps)
        assert logp == pytest.approx(math.log(expected[tuple(row.ids)]), abs=1e-5)
        assert row.finished == (row.ids[-1] == 4)


def test_policy_log_probs_are_at_temperature_one():
    rows = decode(
        TablePolicy(TABLE), [[1]], copies=50, end_ids=(), max_new_tokens=2, temperature=0.5,
        uniforms=uniforms([(0, k) for k in range(50)], 2), top_p=0.9,
    )  # fmt: skip
    plain = TABLE.double().log_softmax(-1)
    for row in rows:
        first, second = row.ids
        assert row.policy_logps == pytest.approx(
            [float(plain[1, first]), float(plain[first, second])], abs=1e-5
        )


def test_top_p_keeps_the_smallest_set():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in {0.49: 1, 0.51: 2, 0.79: 2, 0.81: 3, 0.99: 4, 1.0: 4}.items():
        found = truncated_log_probs(logits, top_p=top_p).exp()[0]
        assert int((found > 0).sum()) == kept, top_p
        assert found.sum().item() == pytest.approx(1)
    tied = truncated_log_probs(torch.zeros(1, 4), top_p=0.49).exp()[0]
    assert tied.tolist() == pytest.approx([0.5, 0.5, 0, 0])


def test_temperature_zero_is_greedy_with_log_prob_zero():
    found = truncated_log_probs(torch.tensor([[1.0, 3.0, 3.0]]), temperature=0)
    assert found.tolist() == [[-math.inf, 0.0, -math.inf]]
    assert sample_tokens(found.exp(), torch.tensor([0.999], dtype=torch.float64)).tolist() == [1]


def test_inverse_of_the_distribution_by_hand():
    probs = torch.tensor([[0.25, 0.0, 0.75]])
    for u, token in {0.0: 0, 0.2499: 0, 0.25: 2, 0.999999: 2}.items():
        assert sample_tokens(probs, torch.tensor([u], dtype=torch.float64)).tolist() == [token]


def test_an_excluded_last_token_is_never_drawn():
    """The largest uniform below 1, with totals that are not exactly 1."""
    largest = torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0))
    for scale in (0.5, 1 - 2**-24, 1.0, 1 + 2**-23, 1.9):
        probs = torch.tensor([[0.5, 0.5, 0.0]]) * scale
        assert sample_tokens(probs, largest[None]).tolist() == [1]


def test_an_excluded_first_token_is_never_drawn():
    probs = torch.tensor([[0.0, 0.5, 0.5]])
    assert sample_tokens(probs, torch.zeros(1, dtype=torch.float64)).tolist() == [1]


@pytest.mark.parametrize("size", [255, 256, 257, 1024, 1025, 50257])
def test_large_vocabularies_are_inverted_like_one_long_sum(size):
    """Against the float64 cumulative sum over everything; zeros in between are never drawn."""
    draw = torch.Generator().manual_seed(size)
    probs = (torch.randn(64, size, generator=draw) * 4).softmax(-1)
    probs[torch.rand(64, size, generator=draw) < 0.3] = 0.0
    u = torch.rand(64, generator=draw, dtype=torch.float64)
    u[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    cdf = probs.double().cumsum(-1)
    found = sample_tokens(probs, u)
    expected = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)[:, 0]
    assert (probs.gather(-1, found[:, None]) > 0).all()
    for row in (found != expected).nonzero()[:, 0].tolist():  # a sum rounds: only at an edge
        edges = cdf[row, min(found[row], expected[row])]
        assert abs(float(edges / cdf[row, -1]) - float(u[row])) < 1e-6
    assert (found == expected).float().mean() > 0.95
    for row in range(0, 64, 7):  # whatever other rows there are
        assert sample_tokens(probs[row : row + 1], u[row : row + 1]) == found[row]


def test_top_p_at_ties_keeps_the_lowest_ids_and_the_rest_is_renormalised():
    logits = torch.tensor([[0.1, 0.3, 0.3, 0.3]]).log()
    found = truncated_log_probs(logits, top_p=0.5).exp()[0]
    assert found.tolist() == pytest.approx([0, 0.5, 0.5, 0])
    # temperature 0.5 squares: 1 : 9 : 9 : 9, of which one alone holds 9/28 = 0.32
    sharp = truncated_log_probs(logits, temperature=0.5, top_p=0.3).exp()[0]
    assert sharp.tolist() == pytest.approx([0, 1, 0, 0])


def test_every_single_token_frequency_is_within_its_bound():
    """Hoeffding: P(|frequency - p| > e) <= 2 exp(-2 n e^2), 1e-9 in all for the 5 tokens."""
    count = 30_000
    keys = [(0, "sample", 0, k) for k in range(count)]
    rows = decode(
        TablePolicy(TABLE), [[3]], copies=count, max_new_tokens=1, uniforms=uniforms(keys, 1)
    )
    seen = torch.bincount(torch.tensor([r.ids[0] for r in rows]), minlength=5) / count
    bound = math.sqrt(math.log(2 * 5 / 1e-9) / (2 * count))
    assert bound < 0.02
    assert (seen - TABLE[3].softmax(-1)).abs().max() < bound


def test_rows_that_have_ended_leave_the_batch():
    watched = WatchedPolicy(TablePolicy(TABLE))
    rows = decode(
        watched, [[0], [2]], copies=30, end_ids={4}, max_new_tokens=8,
        uniforms=uniforms([(0, k) for k in range(60)], 8),
    )  # fmt: skip
    longer = [sum(len(r.ids) > t for r in rows) for t in range(1, 8)]
    assert watched.rows == [n for n in longer if n]
    assert watched.rows[-1] < watched.rows[0] < 60


def test_logits_that_are_not_numbers_stop_the_sampling():
    broken = TABLE.clone()
    broken[1, 3] = math.nan
    with pytest.raises(RuntimeError, match="not finite"):
        decode(
            TablePolicy(broken), [[1]], copies=2, max_new_tokens=1,
            uniforms=uniforms([(0,), (1,)], 1),
        )  # fmt: skip


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61,
         "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
GQA = {**SMALL, "num_key_value_heads": 2}
CONFIGS = {
    "mistral_window": lambda: tf.MistralConfig(**GQA, sliding_window=5),
    "gemma2": lambda: tf.Gemma2Config(
        **GQA, head_dim=8, sliding_window=6, attn_logit_softcapping=0.5
    ),
    "gpt_oss": lambda: tf.GptOssConfig(
        **GQA, head_dim=8, sliding_window=6, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen3": lambda: tf.Qwen3Config(**GQA, head_dim=8),
    "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**SMALL),
    "bloom": lambda: tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=61),
    "falcon": lambda: tf.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=61
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_decoding_is_the_plain_forward_on_other_architectures(name):
    """Prompts of several lengths, rows that leave, responses longer than the window."""

    def load(**options):
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(CONFIGS[name](), **options)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(3.0)
        return model.float()

    spec = ModelSpec(
        name=name, tokenizer=None, eos_ids=(), pad_id=0, context_length=64, vocab_size=61,
        load=load, fingerprint=name,
    )  # fmt: skip
    policy = HFPolicy(spec).load().eval()
    assert policy.shared_decoding == (name not in ("bloom", "falcon"))
    plain = load(attn_implementation="eager").eval()
    draw = torch.Generator().manual_seed(0)
    batch = [
        Prompt(id=i, text="", ids=torch.randint(1, 61, (n,), generator=draw).tolist())
        for i, n in enumerate((9, 1, 4))
    ]
    groups = sample(policy, batch, end=(7, 8, 9, 10, 11))
    lengths = [len(r.ids) for g in groups for r in g.responses]
    assert min(lengths) < 12 and max(lengths) > 6
    for group in groups:
        for response in group.responses:
            row = torch.tensor([group.prompt.ids + response.ids])
            with torch.no_grad():
                logps = plain(input_ids=row, use_cache=False).logits[0].log_softmax(-1)
            start = len(group.prompt.ids) - 1
            expected = [float(logps[start + t, i]) for t, i in enumerate(response.ids)]
            assert response.policy_logps == pytest.approx(expected, abs=1e-4)
            assert response.behaviour_logps == pytest.approx(expected, abs=1e-4)
    for rows, refill in ((1, True), (3, True), (3, False), (6, True)):
        again = sample(policy, batch, end=(7, 8, 9, 10, 11), max_rows=rows, refill=refill)
        assert answers(again) == answers(groups)
        assert torch.tensor(
            [p for g in again for r in g.responses for p in r.policy_logps]
        ).allclose(
            torch.tensor([p for g in groups for r in g.responses for p in r.policy_logps]),
            atol=1e-4,
        )  # fmt: skip


def prompts(count=10, *, spread=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, spread, (count,), generator=draw).tolist()
    return [
        Prompt(id=i, text=str(i), ids=torch.randint(1, 250, (n,), generator=draw).tolist())
        for i, n in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def model():
    return HFPolicy(tiny()).load().eval()


def sample(
    model, batch, *, max_rows=128, key=(0, "sample", 0), seen=None, end=(250, 251, 7), **how
):
    sampler = NativeSampler(max_new_tokens=12, max_rows=max_rows, **how)
    return sampler.sample(
        model, batch, key=key, occurrences=seen or [0] * len(batch), responses=3, end_ids=end
    )


def answers(groups):
    return {g.prompt.id: [r.ids for r in g.responses] for g in groups}


def test_samples_do_not_depend_on_batch_size_order_or_company(model):
    batch = prompts()
    whole = answers(sample(model, batch))
    for rows in (1, 3, 10):
        for refill in (False, True):
            assert answers(sample(model, batch, max_rows=rows, refill=refill)) == whole
    assert answers(sample(model, batch[::-1])) == whole
    for few in (batch[:1], batch[3:6]):
        assert answers(sample(model, few)) == {p.id: whole[p.id] for p in few}


def test_rows_by_memory():
    """tiny: keys and values of a token and logits of a row, counted by hand."""
    policy = HFPolicy(tiny()).load()
    config = policy.model.config
    size = config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * size * 4
    assert policy.rows_that_fit(10) == 512
    assert policy.rows_that_fit(2**30 // token // 64) == 63  # the logits take a little
    assert policy.rows_that_fit(2**30) == 32


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 10])
def test_never_more_rows_at_once_than_asked_for(rows):
    watched = WatchedPolicy(TablePolicy(TABLE))
    batch = [Prompt(id=i, text="", ids=[i]) for i in range(4)]
    arguments = {"key": (0,), "occurrences": [0] * 4, "responses": 5, "end_ids": {4}}
    sampler = NativeSampler(max_new_tokens=6, max_rows=rows)
    groups = sampler.sample(watched, batch, **arguments)
    assert max(watched.prefills) <= rows
    whole = NativeSampler(max_new_tokens=6).sample(watched, batch, **arguments)
    assert groups == whole
    assert all(len(g.responses) == 5 for g in groups)


def test_temperature_zero_takes_the_likeliest_token_each_time(model):
    for group in sample(model, prompts(4), temperature=0):
        assert len({tuple(r.ids) for r in group.responses}) == 1
        response = group.responses[0]
        row = torch.tensor([group.prompt.ids + response.ids])
        with torch.no_grad():
            logits = model.model(input_ids=row).logits[0, len(group.prompt.ids) - 1 : -1]
        assert logits.argmax(-1).tolist() == response.ids
        assert response.behaviour_logps == [0.0] * len(response.ids)
        expected = logits.log_softmax(-1).max(-1).values.tolist()
        assert response.policy_logps == pytest.approx(expected, abs=1e-4)


def test_no_prompts_give_no_groups(model):
    assert sample(model, []) == []


def test_text_leaves_ending_tokens_out(model):
    end = set(range(0, 250, 5))
    for group in sample(model, prompts(4), end=end):
        for r in group.responses:
            assert r.text == " ".join(str(i) for i in r.ids if i not in end)


def test_draws_depend_on_every_coordinate(model):
    batch = prompts(1) * 2
    one, two = sample(model, batch, seen=[0, 1])
    assert [r.ids for r in one.responses] != [r.ids for r in two.responses]
    assert len({tuple(r.ids) for r in one.responses}) == 3
    twin = Prompt(id=77, text="", ids=batch[0].ids)
    (other,) = sample(model, [twin])
    assert [r.ids for r in other.responses] != [r.ids for r in one.responses]
    base = answers(sample(model, batch[:1]))
    for key in ((1, "sample", 0), (0, "sample", 1), (0, "validation", 0)):
        assert answers(sample(model, batch[:1], key=key)) != base


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7}, {"top_p": 0.6}])
def test_recorded_log_probs_are_those_of_a_plain_forward(model, how):
    groups = sample(model, prompts(), **how)
    tokens = FlatTokens.from_groups(groups)
    with torch.no_grad():
        expected = model(tokens).logps
    found = torch.tensor([x for g in groups for r in g.responses for x in r.policy_logps])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    behaviour = torch.tensor([x for g in groups for r in g.responses for x in r.behaviour_logps])
    if how:
        assert (behaviour - expected).abs().max() > 1e-3
    else:
        torch.testing.assert_close(behaviour, expected, atol=1e-4, rtol=0)
    assert all(g.sampling["temperature"] == how.get("temperature", 1.0) for g in groups)
    assert all(g.sampling["top_p"] == how.get("top_p", 1.0) for g in groups)


def test_responses_end_at_their_first_ending_token(model):
    end = set(range(0, 250, 5))
    for group in sample(model, prompts(), end=end):
        for response in group.responses:
            hits = [t in end for t in response.ids]
            assert not any(hits[:-1])
            assert response.finished == hits[-1]
            assert response.finished or len(response.ids) == 12


def test_stop_tokens_end_a_response_like_the_end_of_sequence(model):
    stop = tuple(range(0, 250, 3))
    groups = sample(model, prompts(), end=(), stop_ids=stop)
    finished = [r for g in groups for r in g.responses if r.finished]
    assert finished
    assert all(r.ids[-1] in stop for r in finished)


def test_without_ending_tokens_the_limit_is_the_end():
    policy = HFPolicy(gpt_nano()).load().eval()
    sampler = NativeSampler(max_new_tokens=9)
    (group,) = sampler.sample(
        policy, [Prompt(id=0, text="3", ids=[3])], key=(0,), occurrences=[0], responses=4
    )
    assert all(len(r.ids) == 9 and r.finished for r in group.responses)


def test_groups_arrive_while_others_are_sampled(model):
    told = []
    NativeSampler(max_new_tokens=4, max_rows=6).sample(
        model, prompts(4), key=(0,), occurrences=[0] * 4, responses=3,
        on_group=lambda i, g: told.append((i, g.prompt.id)),
    )  # fmt: skip
    assert sorted(told) == [(i, i) for i in range(4)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 4, "temperature": -1}, "temperature"),
        ({"max_new_tokens": 4, "temperature": math.nan}, "temperature"),
        ({"max_new_tokens": 4, "temperature": math.inf}, "temperature"),
        ({"max_new_tokens": 4, "top_p": 0}, "top_p"),
        ({"max_new_tokens": 4, "top_p": 1.1}, "top_p"),
        ({"max_new_tokens": 4, "top_p": math.nan}, "top_p"),
        ({"max_new_tokens": 4, "max_rows": 0}, "max_rows"),
    ],
)
def test_settings_out_of_range_are_refused(options, words):
    with pytest.raises(Refusal, match=words):
        NativeSampler(**options)


def test_groups_are_told_of_as_soon_as_their_rows_have_ended():
    """Not at the end of the chunk: so that they are scored while others are still decoded."""
    policy = WatchedPolicy(TablePolicy(TABLE))
    sampler = NativeSampler(max_new_tokens=12, max_rows=64)
    prompts = [Prompt(id=n, text="", ids=[n % 5]) for n in range(16)]
    wanted = {"key": (0, "t"), "occurrences": [0] * 16, "responses": 3, "end_ids": (4,)}
    told = []
    groups = sampler.sample(
        policy,
        prompts,
        **wanted,
        on_group=lambda n, group: told.append((n, group, len(policy.rows))),
    )
    assert sorted(n for n, _, _ in told) == list(range(16))
    for n, group, steps in told:
        assert group is groups[n]
        longest = max(len(r.ids) for r in group.responses)
        if all(r.finished for r in group.responses):
            assert steps == longest - 1  # steps after the prefill: not one more was decoded
    assert len({steps for _, _, steps in told}) > 3
    plain = sampler.sample(TablePolicy(TABLE), prompts, **wanted)
    assert [[r.to_json() for r in g.responses] for g in groups] == [
        [r.to_json() for r in g.responses] for g in plain
    ]


def test_told_groups_of_prompts_with_more_responses_than_rows():
    sampler = NativeSampler(max_new_tokens=6, max_rows=4)
    prompts = [Prompt(id=n, text="", ids=[n]) for n in range(3)]
    wanted = {"key": (1, "t"), "occurrences": [0] * 3, "responses": 7, "end_ids": (4,)}
    told = {}
    groups = sampler.sample(TablePolicy(TABLE), prompts, **wanted, on_group=told.__setitem__)
    assert [told[n] for n in range(3)] == groups
    assert all(len(g.responses) == 7 for g in groups)
    plain = NativeSampler(max_new_tokens=6).sample(TablePolicy(TABLE), prompts, **wanted)
    assert [[r.ids for r in g.responses] for g in groups] == [
        [r.ids for r in g.responses] for g in plain
    ]


def test_waiting_prompts_enter_while_others_are_decoded(model):
    """Never more rows than allowed, fewer steps than by whole batches, the same samples."""
    end = set(range(0, 250, 6))
    steps = {}

    def run(refill):
        sampler = NativeSampler(max_new_tokens=12, max_rows=6, refill=refill)
        widths, told, step = [], [], model.step

        def watched(token_ids, state):
            widths.append(len(token_ids))
            return step(token_ids, state)

        model.step = watched
        try:
            groups = sampler.sample(
                model,
                prompts(12),
                key=(3, "t"),
                occurrences=[0] * 12,
                responses=2,
                end_ids=end,
                on_group=lambda i, g: told.append(i),
            )
        finally:
            del model.step
        assert sorted(told) == list(range(12)) and max(widths) <= 6
        steps[refill] = len(widths)
        return answers(groups)

    assert run(True) == run(False)
    assert steps[True] < steps[False]
