"""``lit-pref inspect``: the page, its colours, what it refuses."""

import json

import pytest

from lit_pref.app.inspect import main
from lit_pref.formats.survey import histogram

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def inspect(tmp_path, capsys, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def inspect(rows, *arguments, name="data.jsonl"):
        path = tmp_path / name
        lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
        path.write_text("".join(line + "\n" for line in lines))
        main([str(path), *arguments])
        return capsys.readouterr().out

    return inspect


def refused(call, *arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_tokens_roles_and_what_carries_loss(inspect):
    page = inspect([{**PAIR, "margin": 2, "topic": "t"}])
    assert "\x1b" not in page  # not a terminal
    assert "read as    pairs (prompt, chosen, rejected, margin)" in page
    assert "line 1, margin 2, further columns: 'topic'" in page
    # ChatML around one byte: 20 tokens; the ends of turns are shown.
    assert "prompt   20 tokens, no loss\n  <|im_start|>|u|s|e|r|\\n|p|<|im_end|>|\\n" in page
    assert "chosen   5 tokens, all carry loss, rank 0\n  g|o|o|d|<|im_end|>" in page
    assert "rejected 4 tokens, all carry loss, rank 1\n  b|a|d|<|im_end|>" in page
    assert "Training would use 1 of 1 rows." in page


def test_colours_on_request(inspect, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    page = inspect([PAIR])
    assert "\x1b[32;4mg\x1b[0m\x1b[92;4mo\x1b[0m" in page  # chosen, underlined, shades in turn
    assert "\x1b[31;4mb\x1b[0m" in page
    assert "\x1b[36m<|im_start|>\x1b[0m" in page  # a prompt carries no loss
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in inspect([PAIR])


def test_nothing_in_a_file_steers_the_terminal(inspect):
    page = inspect([{**PAIR, "chosen": "\x1b[31mred\u202e\r"}])
    assert "\x1b" not in page and "\u202e" not in page and "\r" not in page
    assert "\\x1b|[|3|1|m" in page


def test_duplicates_contradictions_and_ties(inspect):
    swapped = {"prompt": "p", "chosen": "bad", "rejected": "good"}
    tied = {"prompt": "t", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 1}
    page = inspect([PAIR, PAIR, swapped, tied])
    assert "different prompts  2 in 4 usable rows" in page
    assert "duplicates         1: line 2 (as 1)" in page
    assert "contradictions     1: line 3 (as 1)" in page
    assert "ties               1: line 4" in page


def test_every_dropped_row_is_listed_with_its_reason(inspect):
    bad = [{**PAIR, "chosen": ""}] * 30 + [{**PAIR, "chosen": "bad"}]
    page = inspect([*bad, PAIR])
    assert "31 of 32 rows would be dropped: 30 x empty chosen response, 1 x chosen equal" in page
    assert all(f"  line {n}: empty chosen response" in page for n in range(1, 31))
    assert '  line 31: chosen equal to rejected  {"prompt": "p", "chosen": "bad"' in page
    assert "Training would refuse the file: 96.9% of its rows" in page
    assert "more than task.max_dropped=0.2 allows" in page


def test_cuts_are_said(inspect):
    page = inspect([PAIR], "task.max_response_tokens=4")
    assert "used, but changed  1 x response cut" in page
    assert "chosen   4 tokens, all carry loss, cut: no end of sequence, rank 0\n  g|o|o|d\n" in page


def test_prompts_columns_and_keys_of_its_own(inspect):
    assert "read as    prompts (prompt from 'question')" in inspect(
        [{"question": "q", "answer": 4}]
    )
    assert "read as    prompts (prompt)" in inspect([PAIR], "read_as=prompts")
    page = inspect([{"q": "p", "good": "a", "bad": "b"}] * 3,
                   "task.columns={prompt: q, chosen: good, rejected: bad}", "rows=1", "tokens=2")  # fmt: skip
    assert page.count("chosen   2 tokens") == 1
    assert "<|im_start|>|u ... 18 more" in page


def test_other_formats(inspect):
    page = inspect(["prompt,chosen,rejected", "p,a,b"], name="d.csv")
    assert "d.csv: CSV\n" in page
    assert "\nline 2\n" in page


def test_refusals(inspect, tmp_path, capsys):
    assert "expected one FILE, got none" in refused(main, [], capsys=capsys)
    assert "does not exist" in refused(main, [str(tmp_path / "none.jsonl")], capsys=capsys)
    error = refused(inspect, [PAIR, "no json"], capsys=capsys)
    assert "line 2: not JSON" in error and "Traceback" not in error
    assert "rows=-1: expected a whole number" in refused(inspect, [PAIR], "rows=-1", capsys=capsys)
    assert "read_as=x: expected" in refused(inspect, [PAIR], "read_as=x", capsys=capsys)
    assert "Did you mean" in refused(inspect, [PAIR], "task.colums=null", capsys=capsys)
    assert "reads no files" in refused(inspect, [PAIR], "task=token_bandit", capsys=capsys)
    assert "has no rows" in refused(inspect, [], capsys=capsys)


def test_help_has_examples(capsys):
    main(["--help"])
    assert "lit-pref inspect docs/examples/pairs.jsonl" in capsys.readouterr().out


def test_histograms_count_every_length_once():
    shape = histogram([5, 5, 6, 9, 12, 30], bins=4)
    assert shape.edges == [5, 12, 19, 26, 33]
    assert shape.counts == [4, 1, 0, 1]
    assert (shape.median, shape.p95, shape.largest) == (6, 30, 30)
    assert histogram([7]).counts == [1]


@pytest.mark.parametrize("task", ["sentiment", "instructions"])
def test_files_of_tasks_with_shipped_prompts(inspect, task, capsys):
    page = inspect([PAIR], f"task={task}", "model=tiny", "task.max_prompt_tokens=30")
    assert "Training would use 1 of 1 rows." in page
    page = inspect([{"prompt": "x" * 40}, {"prompt": "y"}], f"task={task}", "model=tiny",
                   "task.max_prompt_tokens=30")  # fmt: skip
    assert "prompt longer than 30 tokens" in page
    message = refused(inspect, [PAIR], "task=min_length", capsys=capsys)
    assert "task=min_length reads no files of yours" in message
