"""Tokenised data on disk: the same groups, in little memory, and never wrong."""

import json
import logging
import os

import pytest

from lit_pref.formats import (
    TextEncoder,
    cache,
    facts_of,
    fingerprint,
    load_groups,
    load_prompts,
    store,
)
from lit_pref.testing.tokenizer import byte_tokenizer
from lit_pref.types import Refusal

pytest.importorskip("pyarrow")

END = 258
ROWS = [
    {
        "prompt": f"prompt {n}",
        "chosen": "good" * (n + 1),
        "rejected": "bad",
        "margin": n,
        "tag": [n],
    }
    for n in range(4)
]


def make_encoder(tokenizer=None, **options):
    options = {"eos_ids": [END], "context_length": 100, **options}
    return TextEncoder(tokenizer or byte_tokenizer(), **options)


@pytest.fixture
def reads(monkeypatch):
    """How often a file was really read."""
    count = []
    original = cache.write_groups

    def write_groups(groups, path):
        count.append(path)
        return original(groups, path)

    monkeypatch.setattr(cache, "write_groups", write_groups)
    return count


@pytest.fixture
def load(tmp_path):
    def load(path, encoder=None, **options):
        return load_groups(
            path, encoder=encoder or make_encoder(), cache_dir=tmp_path / "cache", **options
        )

    return load


def test_cached_groups_equal_listed_ones(write, load):
    chat = {"prompt": [{"role": "user", "content": "p"}], "chosen": "a", "rejected": "b"}
    path = write(*ROWS, chat, {**ROWS[0], "chosen": ""})
    listed = load_groups(path, encoder=make_encoder(), first_id=7)
    for _ in range(2):  # made now, then found
        stored = load(path, first_id=7)
        assert list(stored.items) == list(listed.items)
        assert stored.drops == listed.drops
        assert stored.items[1].prompt.id == 7 + 2
        assert list(stored.items.keys()) == list(listed.items.keys())


def test_a_store_is_a_sequence(write, load):
    items = load(write(*ROWS)).items
    every = list(items)
    assert len(items) == 4
    assert items[-1] == every[3]
    assert list(items[:-1]) == every[:3]
    assert list(items[1:][::2]) == every[1::2]
    assert list(items.select([3, 1])) == [every[3], every[1]]
    assert list(items.select([3, 1])[1:]) == [every[1]]
    assert list(items[1:].keys()) == list(items.keys())[1:]
    assert [g.prompt.row for g in items] == [1, 2, 3, 4]
    with pytest.raises(IndexError):
        items[4]


def test_more_rows_than_a_batch(write, load, monkeypatch):
    monkeypatch.setattr(store, "_BATCHES_KEPT", 2)
    path = write(*({"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(1100)))
    items = load(path).items
    assert len(items) == 1100
    assert [items[n].prompt.text for n in (0, 511, 512, 1099)] == ["p0", "p511", "p512", "p1099"]


def test_facts_without_going_through_the_groups(write, load):
    rows = [
        {"prompt": "p", "completions": ["a", "b", "c"], "rewards": [1, 2, 3]},
        {"prompt": "p", "completions": ["a", "b"], "rewards": [1, None]},
    ]
    for items in (
        load(write(*rows)).items,
        load_groups(write(*rows), encoder=make_encoder()).items,
    ):
        facts = facts_of(items)
        assert facts.least_responses == 2
        assert facts.unscored == items[1]  # the first with a response without reward
        assert facts.unknown == items[0]
        facts = facts_of(items[:1])
        assert (facts.least_responses, facts.unscored) == (3, None)
        assert facts_of(list(items)) == facts_of(items)
        assert facts_of(items.select([1, 0])) == facts_of([items[1], items[0]])


def test_a_second_time_the_file_is_not_read(write, load, reads, caplog):
    path = write(*ROWS)
    load(path)
    with caplog.at_level(logging.INFO):
        load(path)
    assert len(reads) == 1
    assert "tokenised before" in caplog.text


def test_prompts_and_responses_of_one_file_are_two_caches(write, load, reads, tmp_path):
    path = write(*ROWS)
    load(path)
    prompts = load_prompts(path, encoder=make_encoder(), cache_dir=tmp_path / "cache").items
    assert len(reads) == 2
    assert prompts[0].columns == {"chosen": "good", "rejected": "bad", "margin": 0, "tag": [0]}


# ------------------------------------------------------------------ each key must miss


def test_another_tokenizer_file_misses(write, load, reads, tmp_path):
    folder = tmp_path / "tokenizer"
    byte_tokenizer().save_pretrained(folder)
    path = write({"prompt": "p", "chosen": "a", "rejected": "b"})

    def from_folder():
        from transformers import PreTrainedTokenizerFast

        return make_encoder(PreTrainedTokenizerFast.from_pretrained(folder))

    first = load(path, from_folder()).items[0]
    load(path, from_folder())
    assert len(reads) == 1
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(data))
    second = load(path, from_folder()).items[0]
    assert len(reads) == 2
    assert [r.ids for r in second.responses] == [r.ids for r in first.responses][::-1]


def test_another_template_misses(write, load, reads):
    path = write(*ROWS)
    first = load(path).items[0]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("'\\n'", "': '")
    second = load(path, make_encoder(tokenizer)).items[0]
    assert len(reads) == 2
    assert first.prompt.ids != second.prompt.ids


def test_other_bytes_of_the_same_size_and_time_miss(write, load, reads):
    path = write(*ROWS)
    before = os.stat(path)
    load(path)
    with open(path, "r+b") as file:
        content = file.read().replace(b"bad", b"BAD")
        file.seek(0)
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert load(path).items[0].responses[1].text == "BAD"
    assert len(reads) == 2


@pytest.mark.parametrize(
    "option",
    [
        {"context_length": 101},
        {"max_prompt_tokens": 50},
        {"max_response_tokens": 3},
        {"long_prompts": "keep_end"},
        {"long_responses": "drop"},
        {"eos_ids": [END, 257]},
    ],
)
def test_another_option_misses(write, load, reads, option):
    path = write(*ROWS)
    load(path)
    load(path, make_encoder(**option))
    assert len(reads) == 2


def test_other_columns_miss(write, load, reads):
    path = write(*ROWS)
    load(path)
    swapped = load(path, columns={"chosen": "rejected", "rejected": "chosen"})
    assert len(reads) == 2
    assert swapped.items[0].responses[0].text == "bad"


@pytest.mark.parametrize(
    "library", ["lit_pref", "transformers", "tokenizers", "pyarrow", "formats"]
)
def test_another_library_version_misses(write, load, reads, monkeypatch, library):
    path = write(*ROWS)
    load(path)
    versions = fingerprint.library_versions()
    assert versions[library]
    monkeypatch.setattr(fingerprint, "library_versions", lambda: {**versions, library: "another"})
    load(path)
    assert len(reads) == 2


# ------------------------------------------------------------------ never wrong


def test_dropped_rows_are_said_and_judged_every_time(write, load, reads, caplog):
    path = write(*ROWS, {**ROWS[0], "chosen": ""})
    load(path)
    with caplog.at_level(logging.WARNING):
        assert load(path).drops.counts == {"empty chosen response": 1}
    assert "1 x empty chosen response (line 5)" in caplog.text
    with pytest.raises(Refusal, match="line 5: empty chosen response"):
        load(path, max_dropped=0.1)
    assert len(reads) == 1


@pytest.mark.parametrize("suffix", [".arrow", ".json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_cache_is_made_again(write, load, reads, tmp_path, suffix, damage):
    path = write(*ROWS)
    expected = list(load(path).items)
    (file,) = (tmp_path / "cache").glob(f"*{suffix}")
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        half = len(content) // 2
        tail = b"" if damage == "cut" else bytes([content[half] ^ 1]) + content[half + 1 :]
        file.unlink()  # the old file may be mapped still
        file.write_bytes(content[:half] + tail)
    assert list(load(path).items) == expected
    assert suffix == ".json" or len(reads) == 2
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_changed_count_is_seen(write, load, reads, tmp_path):
    path = write(*ROWS)
    load(path)
    (note,) = (tmp_path / "cache").glob("*.json")
    note.write_text(note.read_text().replace('"rows": 4', '"rows": 9'))
    assert load(path).drops.rows == 4
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_refused(write, load, tmp_path, monkeypatch):
    path = write(*ROWS)
    original = cache.write_groups

    def write_groups(groups, part):
        total = original(groups, part)
        with open(path, "a") as file:
            file.write("{}\n")
        return total

    monkeypatch.setattr(cache, "write_groups", write_groups)
    with pytest.raises(Refusal, match="was changed while it was read"):
        load(path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_refused_file_leaves_no_cache(write, load, tmp_path):
    with pytest.raises(Refusal, match="line 2: not JSON"):
        load(write(ROWS[0], "no json"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_written_keeps_the_data_in_memory(write, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        loaded = load_groups(
            write(*ROWS), encoder=make_encoder(), cache_dir=tmp_path / "file" / "cache"
        )
    assert len(loaded.items) == loaded.drops.rows == 4
    assert "is kept in memory" in caplog.text
