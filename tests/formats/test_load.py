import json
import logging
import math

import pytest

from lit_pref.formats import TextEncoder, load_groups, load_prompts
from lit_pref.testing.tokenizer import byte_tokenizer
from lit_pref.types import Group, Refusal

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


def refusal(load, path, encoder, **kwargs):
    with pytest.raises(Refusal) as caught:
        load(path, encoder=encoder, **kwargs)
    return str(caught.value)


def test_prompts_keep_file_line_and_further_columns(write, chat_encoder):
    path = write({"prompt": "a", "answer": 4}, "", {"prompt": "b", "tags": ["x"]})
    loaded = load_prompts(path, encoder=chat_encoder, first_id=100)
    assert [(p.id, p.text, p.file, p.row, p.columns) for p in loaded.items] == [
        (101, "a", path, 1, {"answer": 4}),
        (103, "b", path, 3, {"tags": ["x"]}),
    ]
    assert loaded.items[0].ids == chat_encoder.encode_prompt("a")
    assert (loaded.drops.rows, loaded.drops.dropped) == (2, 0)


def test_pairs_become_groups_of_two(write, chat_encoder):
    message = [{"role": "user", "content": "p"}]
    chat = {
        "prompt": message,
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad", "name": None}],
        "margin": 2,
        "weight": 0.5,
        "topic": "t",
    }
    plain, chatted = load_groups(write(PAIR, chat), encoder=chat_encoder).items
    assert [r.rank for r in plain.responses] == [0, 1]
    assert [r.text for r in plain.responses] == ["good", "bad"]
    assert (plain.source, plain.margin, plain.weight) == ("offline", None, 1.0)
    assert (chatted.margin, chatted.weight, chatted.prompt.columns) == (2.0, 0.5, {"topic": "t"})
    assert chatted.prompt.text == message
    assert chatted.prompt.ids == plain.prompt.ids
    assert [r.ids for r in chatted.responses] == [r.ids for r in plain.responses]
    assert Group.from_state(json.loads(json.dumps(chatted.state()))) == chatted


def test_columns_map_our_names_to_the_users(write, chat_encoder):
    row = {"question": "p", "good": "a", "bad": "b", "gap": 1.5, "prompt": "kept as a column"}
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "margin": "gap"}
    group = load_groups(write(row), encoder=chat_encoder, columns=columns).items[0]
    assert (group.prompt.text, group.margin) == ("p", 1.5)
    assert group.prompt.columns == {"prompt": "kept as a column"}
    # The mapping of columns that prompts do not have does not matter to them.
    assert load_prompts(write(row), encoder=chat_encoder, columns=columns).items[0].text == "p"


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"prompt": 3}, "task.columns.prompt is a number"),
        ({"prompt": "question"}, "'question' (mapped from 'prompt' by task.columns) is missing"),
        ({"margin": "gap"}, "'gap' (mapped from 'margin' by task.columns) is missing"),
    ],
)
def test_wrong_mappings_are_refused(write, chat_encoder, columns, says):
    assert says in refusal(load_groups, write(PAIR), chat_encoder, columns=columns)


def test_a_missing_column_names_the_nearest_and_the_line(write, chat_encoder):
    path = write(PAIR, {"Promt": "p", "chosen": "a", "rejected": "b"})
    message = refusal(load_groups, path, chat_encoder)
    assert message.startswith(f"{path}, line 2: the column 'prompt' is missing.")
    assert "Did you mean 'Promt'?" in message
    assert "'task.columns={prompt: Promt}'" in message  # as a shell takes it
    assert "got 'Promt', 'chosen', 'rejected'" in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": 3}, "'prompt' is a number"),
        ({"prompt": None}, "'prompt' is null"),
        ({"chosen": {"content": "x"}}, "'chosen' is an object"),
        ({"prompt": ["hi"]}, "message 1 of 'prompt' is a string"),
        ({"prompt": [{"role": "user"}]}, "'content' is missing"),
        ({"prompt": [{"role": "user", "content": ["hi"]}]}, "'content' is a list"),
        ({"prompt": [{"role": "usr", "content": "a"}]}, "'usr' (did you mean 'user'?)"),
        ({"prompt": [{"role": "user", "content": "a", "calls": [1]}]}, "would be lost"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "ends with what is to be answered"),
        ({"chosen": [{"role": "user", "content": "a"}]}, "exactly one message, of the role"),
        ({"margin": "1.5"}, "'margin' is a string"),
        ({"weight": True}, "'weight' is true"),
    ],
)
def test_rows_that_are_not_what_they_claim_are_refused(write, chat_encoder, change, says):
    path = write(PAIR, {**PAIR, **change})
    message = refusal(load_groups, path, chat_encoder)
    assert message.startswith(f"{path}, line 2: ")
    assert says in message


def test_messages_without_a_template_name_the_row(write, plain_encoder):
    path = write(PAIR, {**PAIR, "prompt": [{"role": "user", "content": "p"}]})
    message = refusal(load_groups, path, plain_encoder)
    assert message.startswith(f"{path}, line 2: chat messages were given")


UNUSABLE = [
    ({"prompt": " "}, "empty prompt"),
    ({"prompt": []}, "empty prompt"),
    ({"chosen": ""}, "empty chosen response"),
    ({"rejected": []}, "empty rejected response"),
    ({"rejected": "good"}, "chosen equal to rejected"),
    ({"chosen": "bad<|im_end|>"}, "chosen equal to rejected"),
    ({"prompt": "x" * 200}, "prompt longer than 199 tokens"),
    ({"margin": math.nan}, "non-finite margin"),
    ({"margin": math.inf}, "non-finite margin"),
    ({"margin": 10**400}, "non-finite margin"),
    ({"weight": -math.inf}, "non-finite weight"),
    ({"weight": -1}, "negative weight"),
    ({"chosen": "a<|im_end|>b"}, "end-of-sequence token inside a response"),
    ({"chosen": "\ud800"}, "text is not valid Unicode"),
]


@pytest.mark.parametrize(("change", "reason"), UNUSABLE)
def test_a_row_that_cannot_be_used_is_dropped_counted_and_listed(
    write, chat_encoder, caplog, change, reason
):
    path = write(PAIR, {**PAIR, **change}, PAIR, PAIR, PAIR)
    with caplog.at_level(logging.WARNING):
        loaded = load_groups(path, encoder=chat_encoder)  # 1 of 5 is just the default of 0.2
    assert [g.prompt.row for g in loaded.items] == [1, 3, 4, 5]
    assert loaded.drops.counts == {reason: 1}
    assert f"1 of 5 rows cannot be used: 1 x {reason} (line 2)" in caplog.text


def test_too_many_unusable_rows_refuse_the_file(write, chat_encoder):
    path = write(PAIR, PAIR, {**PAIR, "chosen": "bad"}, {**PAIR, "prompt": ""})
    message = refusal(load_groups, path, chat_encoder)
    assert message.startswith(f"{path}, line 3: chosen equal to rejected. 2 of 4 rows")
    assert "Expected at most 20%" in message
    assert len(load_groups(path, encoder=chat_encoder, max_dropped=0.5).items) == 2
    with pytest.raises(Refusal, match="Expected a share of rows from 0 to 1"):
        load_groups(path, encoder=chat_encoder, max_dropped=20)


def test_a_file_with_nothing_usable_is_refused_whatever_the_share(write, chat_encoder):
    path = write({"prompt": ""}, {"prompt": " "})
    message = refusal(load_prompts, path, chat_encoder, max_dropped=1.0)
    assert message.startswith(f"{path}, line 1: empty prompt. 2 of 2 rows")
    assert "has no rows" in refusal(load_prompts, write(), chat_encoder)
    assert "has no rows" in refusal(load_prompts, write("", " "), chat_encoder)


def test_the_log_lists_the_first_lines_alone(write, chat_encoder, caplog):
    rows = [{"prompt": ""}] * 7 + [{"prompt": "a"}] * 3
    with caplog.at_level(logging.WARNING):
        load_prompts(write(*rows), encoder=chat_encoder, max_dropped=0.7)
    assert "7 x empty prompt (line 1, 2, 3, 4, 5, ...)" in caplog.text


def test_cut_responses_are_counted_and_not_finished(write, caplog):
    encoder = TextEncoder(
        byte_tokenizer(), eos_ids=[258], context_length=100, max_response_tokens=4
    )
    rows = [
        {"prompt": "p", "chosen": "abcdef", "rejected": "no"},
        # Equal once cut: nothing is left to prefer.
        {"prompt": "p", "chosen": "abcdef", "rejected": "abcdxy"},
    ]
    with caplog.at_level(logging.WARNING):
        loaded = load_groups(write(*rows), encoder=encoder, max_dropped=0.5)
    chosen, rejected = loaded.items[0].responses
    assert (chosen.ids, chosen.text, chosen.finished) == (list(b"abcd"), "abcd", False)
    assert rejected.finished
    assert loaded.drops.counts == {"chosen equal to rejected": 1, "response cut": 1}
    assert "1 x response cut" in caplog.text
