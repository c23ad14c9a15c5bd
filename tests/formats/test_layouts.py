"""Every kind of row that users have, recognised by its columns or mapped."""

import pytest

from lit_pref.formats import TextEncoder, load_groups, load_prompts
from lit_pref.types import Refusal

START, END = 257, 258


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def one(write, encoder, row, **options):
    (group,) = load_groups(write(row), encoder=encoder, **options).items
    return group


def texts(group):
    return [r.text for r in group.responses]


def ranks(group):
    return [r.rank for r in group.responses]


def reason(write, encoder, row):
    path = write(row, GOOD["list" if "completions" in row else "pairs"])
    loaded = load_groups(path, encoder=encoder, max_dropped=0.5)
    (found,) = loaded.drops.counts
    return found


GOOD = {
    "pairs": {"prompt": "p", "chosen": "a", "rejected": "b"},
    "implicit": {"chosen": "same start a", "rejected": "same start b"},
    "list": {"prompt": "p", "completions": ["a", "b"]},
    "single": {"prompt": "p", "completion": "a", "label": True},
    "ids": {"prompt_ids": [1], "chosen_ids": [2, END], "rejected_ids": [3, END]},
    "messages": {"messages": user("p") + assistant("a")},
}


# ------------------------------------------------------------------ pairs


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (GOOD["pairs"], "p"),
        ({"question": "p", "chosen": "a", "rejected": "b"}, "p"),
        ({"prompt": user("p"), "chosen": assistant("a"), "rejected": assistant("b")}, user("p")),
        # Orca: a system column
        (
            {"system": "be", "question": "p", "chosen": "a", "rejected": "b"},
            [{"role": "system", "content": "be"}, *user("p")],
        ),
        ({"system": "", "question": "p", "chosen": "a", "rejected": "b"}, "p"),
        # UltraFeedback: whole conversations beside the prompt
        (
            {
                "prompt": "p",
                "chosen": user("p") + assistant("a"),
                "rejected": user("p") + assistant("b"),
                "messages": user("p") + assistant("a"),
            },
            user("p"),
        ),
        # a common prompt of turns, without a prompt column
        (
            {
                "chosen": user("p") + assistant("x") + user("q") + assistant("a"),
                "rejected": user("p") + assistant("x") + user("q") + assistant("b"),
            },
            user("p") + assistant("x") + user("q"),
        ),
        # ShareGPT with a ranking
        (
            {
                "conversations": [{"from": "human", "value": "p"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            user("p"),
        ),
        # Alpaca with a ranking, both spellings
        ({"instruction": "p", "input": "i", "chosen": "a", "rejected": "b"}, "p\ni"),
        ({"instruction": "p", "input": "", "output": ["a", "b"]}, "p"),
        (
            {
                "instruction": "q", "system": "be", "history": [["p", "x"]], "chosen": "a",
                "rejected": "b",
            },
            [{"role": "system", "content": "be"}, *user("p"), *assistant("x"), *user("q")],
        ),
        # an old table of messages: an object of lists
        (
            {
                "prompt": {"role": ["user"], "content": ["p"]},
                "chosen": {"role": ["assistant"], "content": ["a"]},
                "rejected": {"role": ["assistant"], "content": ["b"]},
            },
            user("p"),
        ),
    ],
)  # fmt: skip
def test_pairs_of_every_spelling(write, chat_encoder, row, prompt):
    group = one(write, chat_encoder, row)
    assert group.prompt.text == prompt
    assert group.prompt.ids == chat_encoder.encode_prompt(prompt)
    assert (texts(group), ranks(group)) == (["a", "b"], [0, 1])
    assert group.responses[0].ids == [ord("a"), END]


def test_scores_margin_and_weight_of_a_pair(write, chat_encoder):
    row = {**GOOD["pairs"], "score_chosen": 8, "score_rejected": 2.5, "margin": 3, "weight": 0.5}
    group = one(write, chat_encoder, row)
    assert [r.reward for r in group.responses] == [8.0, 2.5]
    assert (group.margin, group.weight) == (3.0, 0.5)


def test_columns_that_only_later_rows_have_are_read(write, chat_encoder):
    later = {**GOOD["pairs"], "margin": 2, "chosen_score": 1, "rejected_score": 0, "topic": "t"}
    _, group = load_groups(write(GOOD["pairs"], later), encoder=chat_encoder).items
    assert (group.margin, group.responses[0].reward) == (2.0, 1.0)
    assert group.prompt.columns == {"topic": "t"}


def test_a_prompt_that_the_conversations_do_not_have(write, chat_encoder):
    row = {
        "prompt": "another",
        "chosen": user("p") + assistant("a"),
        "rejected": user("p") + assistant("b"),
    }
    assert reason(write, chat_encoder, row) == "chosen and rejected do not begin with the prompt"


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        (user("p") + assistant("a"), user("p") + assistant("a"), "chosen equal to rejected"),
        (user("p"), user("p") + assistant("a"), "empty chosen response"),
        (assistant("a"), assistant("b"), "empty prompt"),
        (
            user("p") + assistant("a") + user("q") + assistant("c"),
            user("p") + assistant("b") + user("q") + assistant("c"),
            "chosen and rejected differ before the last answer",
        ),
        (user("p"), user("q"), "chosen and rejected differ before the last answer"),
        ("same", "same", "chosen equal to rejected"),
        ("", "x", "empty chosen response"),
        ("abc", "xyz", "chosen and rejected have no common beginning"),
        ("same", "same and more", "empty chosen response"),
    ],
)
def test_implicit_prompts_that_cannot_be_found(write, chat_encoder, chosen, rejected, why):
    good = {"chosen": user("p") + assistant("a"), "rejected": user("p") + assistant("b")}
    if isinstance(chosen, str):
        good = GOOD["implicit"]
    path = write({"chosen": chosen, "rejected": rejected}, good)
    loaded = load_groups(path, encoder=chat_encoder, max_dropped=0.5)
    assert loaded.drops.counts == {why: 1}


# ------------------------------------------------------------------ rankings and scores


def test_ranked_lists(write, chat_encoder):
    row = {
        "context": user("p"),
        "completions": [
            {"rank": 2, "completion": assistant("c")},
            {"rank": 0, "completion": assistant("a")},
            {"rank": 1, "completion": assistant("b")},
        ],
    }
    group = one(write, chat_encoder, row)
    assert dict(zip(texts(group), ranks(group), strict=True)) == {"a": 0, "b": 1, "c": 2}


def test_ranks_may_begin_anywhere_and_tie_in_part(write, chat_encoder):
    row = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [3, 1, 3]}
    assert ranks(one(write, chat_encoder, row)) == [1, 0, 1]
    assert reason(write, chat_encoder, {**row, "ranks": [1, 1, 1]}) == "tie"
    assert reason(write, chat_encoder, {**row, "ranks": [1, None, 2]}) == "response without a rank"


def test_scored_completions(write, chat_encoder):
    rows = [
        {"prompt": "p", "completions": ["a", "b"], "rewards": [0.5, 2]},
        {"prompt": "p", "completions": [{"text": "c", "score": 1}, {"text": "d", "score": 1}]},
    ]
    first, second = load_groups(write(*rows), encoder=chat_encoder).items
    assert [r.reward for r in first.responses] == [0.5, 2.0]
    assert [r.reward for r in second.responses] == [1.0, 1.0]  # all alike still weighs, as in RWR
    assert ranks(first) == [None, None]
    path = write(rows[0], {**rows[0], "rewards": [1, float("nan")]})
    assert load_groups(path, encoder=chat_encoder, max_dropped=0.5).drops.counts == {
        "non-finite reward": 1
    }
    with pytest.raises(Refusal, match=r"line 1: 'rewards' has 1 entries\. Expected 2"):
        load_groups(write({**rows[0], "rewards": [1]}), encoder=chat_encoder)


@pytest.mark.parametrize(
    ("completions", "why"),
    [
        ([], "no responses"),
        (["a", ""], "empty response"),
        (["a", "a"], "all responses equal"),
        (["a", "b<|im_end|>c"], "end-of-sequence token inside a response"),
        (["a", "b<|im_end|>"], None),
    ],
)
def test_lists_that_cannot_be_used(write, chat_encoder, completions, why):
    path = write({"prompt": "p", "completions": completions}, GOOD["list"])
    counts = load_groups(path, encoder=chat_encoder, max_dropped=0.5).drops.counts
    assert counts == ({} if why is None else {why: 1})


def test_our_own_samples_are_read_with_their_ids_and_log_probs(write, chat_encoder):
    group = one(
        write,
        chat_encoder,
        {
            "prompt_id": 3, "prompt": "p", "prompt_ids": chat_encoder.encode_prompt("p"),
            "round": 1, "source": "onpolicy",
            "responses": [
                {
                    "text": "a", "ids": [97, END], "reward": 1.0, "label": None, "rank": None,
                    "behaviour": "policy", "behaviour_logps": [-1.0, -0.5], "finished": True,
                },
                {
                    "text": "bb", "ids": [98, 98], "reward": 0.0, "label": None, "rank": None,
                    "behaviour": "policy", "behaviour_logps": [-1.5, -2.0], "finished": False,
                },
            ],
        },
    )  # fmt: skip
    assert [r.behaviour_logps for r in group.responses] == [[-1.0, -0.5], [-1.5, -2.0]]
    assert [r.finished for r in group.responses] == [True, False]
    assert [r.reward for r in group.responses] == [1.0, 0.0]


def test_a_given_end_token_stays_what_it_is(make_plain_tokenizer):
    encoder = TextEncoder(make_plain_tokenizer(), eos_ids=[257, 258], context_length=60)
    assert encoder.eos_id == 257
    assert encoder.given_response([40, 258, 257]) == [40, 258]
    assert encoder.given_response([40]) == [40]


def test_ids_of_another_tokenizer_are_refused(write, chat_encoder):
    row = {"prompt": "p", "responses": [{"text": "a", "ids": [98, END]}]}
    with pytest.raises(Refusal, match="line 1: the ids of a response say 'b', but its text is 'a'"):
        load_groups(write(row), encoder=chat_encoder)


# ------------------------------------------------------------------ single responses


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "a", "label": True},
        {"prompt": "p", "completion": "a", "label": 1},
        {"prompt": user("p"), "completion": assistant("a"), "label": True},
        {"instruction": "p", "input": "", "output": "a", "kto_tag": True},
        {
            "conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "a"}],
            "kto_tag": True,
        },
        {"messages": user("p") + assistant("a"), "label": True},
    ],
)
def test_unpaired_rows_with_labels(write, chat_encoder, row):
    group = one(write, chat_encoder, row)
    assert (texts(group), group.responses[0].label) == (["a"], True)
    assert group.prompt.ids == chat_encoder.encode_prompt("p")
    with pytest.raises(Refusal, match=r"'label' is .*Expected true or false"):
        one(
            write,
            chat_encoder,
            {**{k: v for k, v in row.items() if v not in (True, 1)}, "label": "?"},
        )


def test_demonstrations_and_single_scores(write, chat_encoder):
    group = one(write, chat_encoder, {"messages": user("p") + assistant("a")})
    assert (texts(group), group.responses[0].label) == (["a"], None)
    scored = one(write, chat_encoder, {"prompt": "p", "response": "a", "score": 2})
    assert scored.responses[0].reward == 2.0


def test_a_conversation_without_an_answer_is_dropped(write, chat_encoder):
    path = write(GOOD["messages"], {"messages": user("p")})
    counts = load_groups(path, encoder=chat_encoder, max_dropped=0.5).drops.counts
    assert counts == {"conversation without a last answer": 1}


def test_prompts_alone_are_no_responses(write, chat_encoder):
    with pytest.raises(Refusal, match=r"line 1: there are prompts but no responses.*task.prompts"):
        load_groups(write({"prompt": "p", "answer": "4"}), encoder=chat_encoder)


# ------------------------------------------------------------------ already tokenised


def test_tokenised_pairs(write, chat_encoder):
    prompt = chat_encoder.encode_prompt("p")
    row = {"prompt_ids": prompt, "chosen_ids": [97, END], "rejected_ids": [98, END, END, END]}
    group = one(write, chat_encoder, row)
    assert group.prompt.ids == prompt
    assert [r.ids for r in group.responses] == [[97, END], [98, END]]  # padding by the end token
    assert texts(group) == ["a", "b"]
    assert "p" in group.prompt.text


def test_tokenised_pairs_that_repeat_the_prompt(write, chat_encoder):
    row = {
        "prompt_input_ids": [1, 2],
        "chosen_input_ids": [1, 2, 97, END],
        "rejected_input_ids": [1, 2, 98, END],
    }
    loaded = load_groups(write(row), encoder=chat_encoder)
    assert [r.ids for r in loaded.items[0].responses] == [[97, END], [98, END]]
    assert loaded.drops.counts == {"prompt repeated in tokenised responses removed": 1}


def test_tokenised_single_responses(write, chat_encoder):
    row = {"prompt_ids": [1, 2], "completion_ids": [97], "label": False}
    loaded = load_groups(write(row), encoder=chat_encoder)
    (response,) = loaded.items[0].responses
    assert (response.ids, response.finished, response.label) == ([97], False, False)
    assert loaded.drops.counts == {"response without an end": 1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen_ids": [97, 259]}, "the token id 259 is not one of the tokenizer's 259"),
        ({"chosen_ids": [-1]}, "the token id -1"),
        ({"chosen_ids": [True]}, "'chosen_ids' holds true"),
        ({"chosen_ids": "97"}, "'chosen_ids' is a string"),
        ({"prompt_ids": [1.5]}, "'prompt_ids' holds a number"),
    ],
)
def test_token_ids_that_are_none(write, chat_encoder, change, says):
    with pytest.raises(Refusal, match="line 1: ") as caught:
        load_groups(write({**GOOD["ids"], **change}), encoder=chat_encoder)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"prompt_ids": []}, "empty prompt"),
        ({"chosen_ids": [END]}, "empty chosen response"),
        ({"chosen_ids": [97, END, 97]}, "end-of-sequence token inside a response"),
        ({"chosen_ids": [3]}, None),
        ({"rejected_ids": [2, END]}, "chosen equal to rejected"),
        ({"prompt_ids": [5] * 200}, "prompt longer than 199 tokens"),
    ],
)
def test_token_ids_that_cannot_be_used(write, chat_encoder, change, why):
    path = write({**GOOD["ids"], **change}, GOOD["ids"])
    counts = load_groups(path, encoder=chat_encoder, max_dropped=0.5).drops.counts
    assert counts == ({why: 1} if why else {"response without an end": 1})


# ------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    ("row", "text", "columns"),
    [
        ({"prompt": "p", "answer": 4}, "p", {"answer": 4}),
        ({"question": "p", "answer": "#### 4"}, "p", {"answer": "#### 4"}),
        ({"problem": "p", "solution": "s", "level": 3}, "p", {"solution": "s", "level": 3}),
        ({"messages": user("p") + assistant("a")}, user("p"), {"completion": "a"}),
        ({"instruction": "p", "input": "i", "output": "o"}, "p\ni", {"output": "o"}),
        ({"prompt": "p", "input": "kept"}, "p", {"input": "kept"}),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "p", {"chosen": "a", "rejected": ""}),
        (
            {"chosen": user("p") + assistant("a"), "rejected": user("p") + assistant("b")},
            user("p"),
            {},
        ),
    ],
)
def test_prompts_with_verifier_columns(write, chat_encoder, row, text, columns):
    (prompt,) = load_prompts(write(row), encoder=chat_encoder).items
    assert (prompt.text, prompt.columns) == (text, columns)


def test_every_name_can_be_mapped(write, chat_encoder):
    row = {"q": "p", "as": ["a", "b"], "points": [1, 0], "good": [True, False], "w": 2}
    columns = {
        "prompt": "q", "completions": "as", "rewards": "points", "labels": "good", "weight": "w",
    }  # fmt: skip
    group = one(write, chat_encoder, row, columns=columns)
    assert [(r.text, r.reward, r.label) for r in group.responses] == [
        ("a", 1, True),
        ("b", 0, False),
    ]
    assert group.weight == 2.0
    mapped = {"prompt": "question", "chosen": "yes", "rejected": "no"}
    with pytest.raises(Refusal, match=r"line 2: the column 'yes'"):
        load_groups(
            write({"question": "p", "yes": "a", "no": "b"}, {"question": "p", "no": "b"}),
            encoder=chat_encoder,
            columns=mapped,
        )
