"""The language of the length tasks: section 5.7 of the project's notes on arXiv 2404.14367."""

import itertools
import math

import pytest
import torch

from lit_pref.functional.words import (
    COLON,
    END,
    LONGEST,
    PROMPT_TOKENS,
    SPREAD,
    TOPICS,
    TYPICAL,
    VOCABULARY,
    cut_length_probs,
    length_probs,
    overlap,
    prompt_ids,
    response_ids,
    text_of,
    topic_of,
    transition_probs,
)
from lit_pref.types import Refusal

LENGTHS = torch.arange(1, LONGEST + 1, dtype=torch.float64)


def normal_cdf(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


def test_sizes_of_the_specification():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 64
    assert (TYPICAL, LONGEST) == (20, 48)
    assert VOCABULARY[END] == "<eos>" and VOCABULARY[COLON] == ":"


def test_lengths_are_a_log_normal_in_whole_tokens():
    """By scipy-free arithmetic: mass between l - 1/2 and l + 1/2, renormalised to 1 .. 48."""
    mu = math.log(20) + SPREAD**2
    edges = [(math.log(x + 0.5) - mu) / SPREAD if x + 0.5 > 0 else -math.inf for x in range(49)]
    mass = [normal_cdf(b) - normal_cdf(a) for a, b in itertools.pairwise(edges)]
    expected = torch.tensor(mass, dtype=torch.float64) / sum(mass)
    assert torch.allclose(length_probs(), expected, atol=1e-12)
    assert int(length_probs().argmax()) + 1 == 20
    assert float((length_probs() * LENGTHS).sum()) == pytest.approx(24.27, abs=0.01)
    assert sum(mass) == pytest.approx(0.965, abs=0.005)  # what lies below the maximum of 48


def test_impossible_lengths_are_refused():
    for wrong in ({"mode": 0}, {"mode": 49}, {"sigma": 0.0}):
        with pytest.raises(Refusal, match="lengths need"):
            length_probs(**wrong)


def test_cut_lengths_by_enumeration():
    """min(l, C) over all l and all C up to where the geometric tail is below 1e-12."""
    probs, mean, share = length_probs(), 7.0, 0.8
    cut = torch.zeros(LONGEST, dtype=torch.float64)
    for c in range(1, 400):
        chance = (1 / mean) * (1 - 1 / mean) ** (c - 1)
        for length in range(1, LONGEST + 1):
            cut[min(length, c) - 1] += chance * probs[length - 1]
    expected = share * cut + (1 - share) * probs
    assert torch.allclose(cut_length_probs(probs, share=share, mean=mean), expected, atol=1e-9)


def test_coverage_table_of_the_paper():
    """Table 2: Skew's data overlaps little with the start, Mode's peak is likely, Min's is not."""
    start = length_probs()
    skew = cut_length_probs(start, share=0.8, mean=7.0)
    assert overlap(start, start) == pytest.approx(1)
    assert overlap(skew, start) <= 0.5 * overlap(start, start)
    shortest, typical = -LENGTHS, -(LENGTHS - TYPICAL).abs()

    def near_the_peak(reward):
        top = reward.max() - 0.1 * (reward.max() - reward.min())
        return float(start[reward >= top].sum())

    assert near_the_peak(typical) >= 5 * near_the_peak(shortest)
    assert near_the_peak(shortest) < 1e-3


def test_transitions_are_distributions_over_words():
    table = transition_probs()
    assert table.shape == (TOPICS, 64, 64)
    assert torch.allclose(table.sum(-1), torch.ones(TOPICS, 64, dtype=torch.float64))
    assert not table[..., :4].any()


def test_prompts_and_responses_are_functions_of_their_number():
    numbers = list(range(500, 540))
    answers = response_ids(numbers)
    assert response_ids(numbers[7:9]) == answers[7:9]
    for number, ids in zip(numbers, answers, strict=True):
        prompt = prompt_ids(number)
        assert len(prompt) == PROMPT_TOKENS and prompt[-1] == COLON and min(prompt[:3]) > COLON
        assert 0 <= topic_of(prompt) < TOPICS
        assert ids[-1] == END and 1 <= len(ids) <= LONGEST and min(ids[:-1], default=9) > COLON
        assert len(text_of(ids).split()) == len(ids) - 1
    assert response_ids([]) == []


def test_the_corpus_has_the_lengths_and_words_it_says():
    answers = response_ids(list(range(4000)))
    lengths = torch.tensor([len(a) for a in answers])
    seen = torch.bincount(lengths, minlength=LONGEST + 1)[1:] / len(answers)
    assert 1 - overlap(seen.double(), length_probs()) < 0.05
    # First words follow the colon: compare their frequencies with the chain's, topic by topic.
    topics = torch.tensor([topic_of(prompt_ids(n)) for n in range(4000)])
    first = torch.tensor([a[0] for a in answers])
    for topic in range(TOPICS):
        mine = first[topics == topic]
        counts = torch.bincount(mine[mine > COLON], minlength=64) / len(mine)
        assert 1 - overlap(counts.double(), transition_probs()[topic, COLON]) < 0.15
