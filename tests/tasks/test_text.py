import json
import logging

import pytest

from lit_pref.tasks.text import SHIPPED_PROMPTS, TextTask, split_validation
from lit_pref.testing.tokenizer import byte_tokenizer
from lit_pref.types import Prompt, Refusal


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def make(**changes):
    options = {"eos_ids": [258], "context_length": 300, **changes}
    return TextTask(byte_tokenizer(), **options)


def pairs_for(names):
    return [{"prompt": n, "chosen": "good", "rejected": "bad"} for n in names]


def test_shipped_prompts_are_many_and_different():
    rows = [json.loads(line) for line in SHIPPED_PROMPTS.read_text("ascii").splitlines()]
    texts = [row["prompt"] for row in rows]
    assert all(set(row) == {"prompt"} for row in rows)
    assert len(texts) >= 240
    assert len({t.lower() for t in texts}) == len(texts)
    assert all(5 <= len(t.split()) <= 30 for t in texts)


def test_shipped_prompts_are_the_default():
    task = make()
    train, validation = task.prompts(), task.validation()
    assert len(validation) == 16
    assert len(train) + len(validation) == len(SHIPPED_PROMPTS.read_text().splitlines())
    assert not {p.text for p in train} & {p.text for p in validation}
    assert {p.file for p in train} == {"lit_pref/tasks/files/prompts.jsonl"}
    assert task.offline() is None
    assert task.true_reward() is None
    assert (task.offline_prompts, task.fingerprint(), task.eos_ids) == (0, "text", (258,))
    assert task.decode([*b"hi", 258]) == "hi"


def test_files_are_read_by_check_and_only_once(write, tmp_path):
    path = write("p.jsonl", [{"prompt": f"prompt {n}"} for n in range(4)])
    make(prompts=str(tmp_path / "missing.jsonl"))  # nothing is read yet
    with pytest.raises(Refusal, match="does not exist"):
        make(prompts=str(tmp_path / "missing.jsonl")).check()
    task = make(prompts=path, validation_prompts=2)
    task.check()
    (tmp_path / "p.jsonl").unlink()
    assert len(task.prompts()) == len(task.validation()) == 2


@pytest.mark.parametrize("which", ["prompts", "pairs", "validation"])
def test_check_validates_every_file(write, which):
    path = write("bad.jsonl", [{"text": "no such column"}])
    with pytest.raises(Refusal, match=r"bad.jsonl, line 1: the column 'prompt' is missing"):
        make(**{which: path}).check()


def test_pairs_are_offline_groups_with_ids_of_their_own(write):
    path = write("pairs.jsonl", pairs_for(["x", "y"]))
    task = make(pairs=path)
    groups = task.offline()
    assert [[r.rank for r in g.responses] for g in groups] == [[0, 1], [0, 1]]
    assert task.offline()[0] is groups[0]
    ids = [p.id for p in task.prompts() + task.validation()] + [g.prompt.id for g in groups]
    assert len(set(ids)) == len(ids)


def test_pairs_with_a_held_out_prompt_are_held_out(write, caplog):
    names = [f"prompt {n}" for n in range(10)]
    files = {
        "prompts": write("p.jsonl", [{"prompt": n} for n in names]),
        # The same prompts as messages: what they say counts, not how they are written.
        "pairs": write("q.jsonl", pairs_for([[{"role": "user", "content": n}] for n in names])),
    }
    with caplog.at_level(logging.WARNING):
        task = make(**files, validation_prompts=3)
        held = {p.text for p in task.validation()}
    assert len(held) == 3
    assert {g.prompt.text[0]["content"] for g in task.offline()} == set(names) - held
    assert "3 of 10 pairs are left out" in caplog.text
    only_held = write("q.jsonl", pairs_for(sorted(held)))
    with pytest.raises(Refusal, match="All 3 pairs"):
        make(prompts=files["prompts"], pairs=only_held, validation_prompts=3).check()


def test_a_validation_file_leaves_all_prompts_for_training(write, caplog):
    prompts = write("p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    validation = write("v.jsonl", [{"prompt": "b"}, {"prompt": "c"}])
    with caplog.at_level(logging.WARNING):
        task = make(prompts=prompts, validation=validation)
        assert [p.text for p in task.prompts()] == ["a", "b"]
        assert [p.text for p in task.validation()] == ["b", "c"]
    assert "1 of 2 validation prompts are also trained on" in caplog.text


def test_columns_are_for_the_users_files_alone(write):
    rows = [{"question": "q", "good": "a", "bad": "b"}]
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    task = make(pairs=write("pairs.jsonl", rows), columns=columns)
    assert task.offline()[0].prompt.text == "q"
    assert len(task.prompts()) > 200  # the shipped file, whose column is prompt
    with pytest.raises(Refusal, match="did you mean 'chosen'"):
        make(columns={"choosen": "x"})


def test_a_cache_changes_nothing(write, tmp_path):
    pytest.importorskip("pyarrow")
    names = [f"prompt {n}" for n in range(10)]
    files = {
        "prompts": write("p.jsonl", [{"prompt": n} for n in names]),
        "pairs": write("q.jsonl", pairs_for(names)),
        "validation_prompts": 3,
    }
    plain = make(**files)
    for _ in range(2):  # tokenised, then found
        cached = make(**files, cache_dir=str(tmp_path / "cache"))
        assert cached.prompts() == plain.prompts()
        assert cached.validation() == plain.validation()
        assert len(cached.offline()) == 7
        assert list(cached.offline()) == list(plain.offline())
    assert {p.suffix for p in (tmp_path / "cache" / "data").iterdir()} == {".arrow", ".json"}
    own = make(**{**files, "validation": files["prompts"]}, cache_dir=str(tmp_path / "cache"))
    assert len(own.offline()) == 10


def test_everything_left_out_or_changed_is_counted_by_name(write):
    rows = [{"prompt": "", "chosen": "a", "rejected": "b"}, *pairs_for("abcdef")]
    rows += [{"prompt": "g", "chosen": "much too long", "rejected": "b"}]
    prompts = write("p.jsonl", [{"prompt": name} for name in "abcd"])
    task = make(
        prompts=prompts, pairs=write("q.jsonl", rows), validation_prompts=2, max_response_tokens=9
    )
    assert task.counts() == {
        "data/dropped_prompts": 0, "data/dropped_pairs": 1, "data/pairs_held_out": 2,
        "data/cut_prompts": 0, "data/cut_responses": 1, "data/unended_responses": 0,
        "data/repeated_prompts": 0,
    }  # fmt: skip
    assert len(task.offline()) == 5
    assert all(type(value) is float for value in task.counts().values())
    own = make(
        prompts=prompts, validation=write("v.jsonl", [{"prompt": "x"}] * 9 + [{"prompt": ""}])
    )
    assert own.counts()["data/dropped_validation"] == 1


def test_length_policies_reach_the_encoder(write):
    pairs = write("q.jsonl", [{"prompt": "p", "chosen": "abcd", "rejected": "x"}] * 2)
    task = make(pairs=pairs, max_response_tokens=3)
    assert task.offline()[0].responses[0].text == "abc"
    assert task.drops["pairs"].counts == {"response cut": 2}
    with pytest.raises(Refusal, match="response longer than 3 tokens"):
        make(pairs=pairs, max_response_tokens=3, long_responses="drop").check()
    with pytest.raises(Refusal, match=r"long_prompts is 'cut'\. Expected drop or keep_end"):
        make(long_prompts="cut")


def test_prompts_leave_room_for_a_response(write):
    # ChatML around n bytes is n + 19 tokens; 300 of context less 64 leave 236.
    rows = [{"prompt": "x" * 217}, {"prompt": "y" * 218}, {"prompt": "z"}, {"prompt": "w"}]
    task = make(prompts=write("p.jsonl", rows), max_dropped=0.25)
    task.check()
    assert task.drops["prompts"].counts == {"prompt longer than 236 tokens": 1}
    assert max(len(p.ids) for p in task.prompts() + task.validation()) == 236


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_new_tokens": 0}, "Expected 1 to 299"),
        ({"max_new_tokens": 300}, "Expected 1 to 299"),
        ({"max_prompt_tokens": 237}, "at most 236"),
        ({"validation_prompts": 0}, "at least 1"),
        ({"eos_ids": []}, "end-of-sequence"),
    ],
)
def test_numbers_without_room_are_refused(changes, says):
    with pytest.raises(Refusal, match=says):
        make(**changes)


def prompts_of(texts):
    return [Prompt(id=n, text=t, ids=[1]) for n, t in enumerate(texts)]


def test_the_split_depends_on_the_texts_alone():
    texts = [f"t{n}" for n in range(20)]
    _, held = split_validation(prompts_of(texts), 5)
    _, again = split_validation(prompts_of(texts[::-1]), 5)
    assert {p.text for p in held} == {p.text for p in again}


def test_every_copy_of_a_held_out_prompt_is_held_out():
    train, held = split_validation(prompts_of(["a", "b", "c", "d"] * 3), 2)
    assert len(held) == 2
    assert len(train) == 6
    assert not {p.text for p in train} & {p.text for p in held}


def test_at_most_half_is_held_out(caplog):
    train, held = split_validation(prompts_of(["a", "b", "c"]), 16)
    assert (len(train), len(held)) == (2, 1)
    with caplog.at_level(logging.WARNING):
        one = split_validation(prompts_of(["a"]), 16)
    assert [len(part) for part in one] == [1, 1]
    assert "trained on and validated on" in caplog.text
