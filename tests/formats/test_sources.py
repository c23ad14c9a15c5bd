"""The same rows from every file format, and files that are not what they claim to be."""

import csv
import gzip
import io
import json
import sys

import pytest

from lit_pref.formats import load_groups, load_prompts, open_source, read_rows
from lit_pref.types import Refusal

ROWS = [
    {"prompt": "first, line\nsecond", "chosen": 'a "quoted" word', "rejected": "caf\u00e9"},
    {"prompt": "\U0001f600", "chosen": "x", "rejected": "y"},
]


def refusal(path, **options):
    with pytest.raises(Refusal) as caught:
        list(read_rows(path, **options))
    return str(caught.value)


def as_csv(rows, **options):
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def saved(kind, folder):
    """Path of ROWS in a file of this kind."""
    plain = "\n".join(json.dumps(r) for r in ROWS).encode()
    contents = {
        "data.jsonl": plain,
        "data.ndjson": plain,
        "data.json": json.dumps(ROWS).encode(),
        "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
        "lines.json": plain,
        "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
        "data.jsonl.gz": gzip.compress(plain, mtime=0),
        "data.json.gz": gzip.compress(json.dumps(ROWS).encode()),
        "data.csv": as_csv(ROWS),
        "semicolon.csv": as_csv(ROWS, delimiter=";"),
        "data.tsv": as_csv(ROWS, delimiter="\t"),
        "data.csv.gz": gzip.compress(as_csv(ROWS), mtime=0),
    }
    path = folder / kind
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "data.parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        datasets = pytest.importorskip("datasets")
        data = datasets.Dataset.from_list(ROWS)
        if kind == "splits:train":
            datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(
                str(folder / "splits")
            )
        else:
            data.save_to_disk(str(path))
    return str(path)


KINDS = [
    "data.jsonl", "data.ndjson", "data.json", "pretty.json", "lines.json", "bom.json",
    "data.jsonl.gz", "data.json.gz", "data.csv", "semicolon.csv", "data.tsv", "data.csv.gz",
    "data.parquet", "folder", "splits:train",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_groups(tmp_path, chat_encoder, kind):
    expected = [
        [chat_encoder.encode_prompt(r["prompt"])]
        + [chat_encoder.encode_response(r[c]) for c in ("chosen", "rejected")]
        for r in ROWS
    ]
    path = saved(kind, tmp_path)
    for cache in (None, tmp_path / "cache"):
        groups = load_groups(path, encoder=chat_encoder, cache_dir=cache).items
        assert [[g.prompt.ids, *(r.ids for r in g.responses)] for g in groups] == expected
        assert {g.prompt.file for g in groups} == {path}
    assert open_source(path).digest() is not None


def test_rows_are_named_by_line_or_by_number(tmp_path):
    places = {kind: [r.place for r in read_rows(saved(kind, tmp_path))] for kind in KINDS}
    assert [p.rsplit(", ")[1] for p in places["data.csv"]] == ["line 2", "line 4"]
    assert [p.rsplit(", ")[1] for p in places["pretty.json"]] == [
        "row 1 (line 2)",
        "row 2 (line 7)",
    ]
    assert [p.rsplit(", ")[1] for p in places["data.parquet"]] == ["row 1", "row 2"]


def test_csv_spells_numbers_truths_and_lists(tmp_path, chat_encoder):
    path = tmp_path / "k.csv"
    path.write_bytes(
        as_csv(
            [
                {"prompt": "p", "completions": '["a", "b"]', "rewards": "[1, 0.5]", "weight": "2"},
                {"prompt": '[{"role": "user", "content": "p"}]', "completions": '["a", "b"]',
                 "rewards": "", "weight": ""},
            ]
        )
    )  # fmt: skip
    first, second = load_groups(path, encoder=chat_encoder).items
    assert [r.reward for r in first.responses] == [1.0, 0.5]
    assert (first.weight, second.weight) == (2.0, 1.0)
    assert second.prompt.text == [{"role": "user", "content": "p"}]
    path.write_bytes(as_csv([{"prompt": "p", "completion": "a", "label": "TRUE"}]))
    assert load_groups(path, encoder=chat_encoder).items[0].responses[0].label is True
    half = '[{"role": "user", "content": "\\ud800"}]'
    path.write_bytes(
        as_csv([{"prompt": half, "completion": "a"}, {"prompt": "p", "completion": "a"}])
    )
    counts = load_groups(path, encoder=chat_encoder, max_dropped=0.5).drops.counts
    assert counts == {"text is not valid Unicode": 1}
    for column, cell in (("label", "maybe"), ("weight", "heavy")):
        path.write_bytes(as_csv([{"prompt": "p", "completion": "a", column: cell}]))
        with pytest.raises(Refusal, match=rf"line 2: '{column}' is '{cell}'"):
            load_groups(path, encoder=chat_encoder)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b'prompt,chosen\n"open', "line 2: not CSV"),
        ("a.csv", b"prompt,chosen\nx\n", "line 2: 1 cells, but the header has 2"),
        ("a.csv", b"prompt,prompt\nx,y\n", "line 1: the header names 'prompt' twice"),
        ("a.csv", b"prompt,\nx,y\n", "line 1: the header has a column without a name"),
        ("a.csv", b"prompt\nfine\ncaf\xe9\n", "line 3: byte 0xe9 at position 3 is not UTF-8"),
        ("a.csv", b'{"prompt": "p"}\n', "line 1: JSON, although its name ends in .csv"),
        ("a.json", b'[{"a": 1}, {"a": 2}', "line 1: not a JSON list (it ends)"),
        ("a.json", b'[{"a": 1}\n {"a": 2}]', "line 2: not a JSON list (expected ','"),
        ("a.json", b'[\n{"a": 1},\n{"a": }]', "line 3: not a JSON list (Expecting value)"),
        ("a.json", b'[{"a": 1}]\nmore', "line 2: not a JSON list (there is more"),
        ("a.json", b'[{"a": 1},\n 3]', "row 2 (line 2) is a number, not an object"),
        ("a.json", b'[\n{"a": "\xe9"}]', "line 2: byte 0xe9 at position 7 is not UTF-8"),
        ("a.json", b"[" * 50_000, "row 1 (line 1)"),
        ("a.json", b'{\n "prompt": "p"\n}', "line 1: not JSON"),
        ("a.jsonl", b'[{"a": 1}]', "JSON array: name it .json"),
        ("a.gz", b'{"a": 1}', "is not gzip data, although"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-12], "damaged gzip data"),
        ("a.jsonl.gz", gzip.compress(b"\x80\x04pickle", mtime=0), "a pickle"),
        ("a.parquet", b"no parquet", "is not a Parquet file, although"),
        ("a.parquet", b"PAR1 and then nothing", "not a readable Parquet file"),
        ("a.pkl", b"\x80\x04.", "a pickle"),
        ("a.arrow", b"ARROW1\0\0", "an Arrow file"),
        ("a.jsonl", b"PK\x03\x04", "a zip archive"),
    ],
)
def test_files_that_are_not_what_they_claim_to_be(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(str(path))
    assert says in message


def test_json_lists_are_streamed_in_pieces(tmp_path):
    path = tmp_path / "big.json"
    rows = [{"prompt": "x" * n, "n": n} for n in (10, 70_000, 3, 200_000, 0)]  # beyond one piece
    path.write_text("[" + ",\n".join(json.dumps(r) for r in rows) + "]")
    assert [r.data for r in read_rows(path)] == rows
    assert [r.data for r in read_rows(_write(tmp_path, "none.json", b"[ ]"))] == []


def test_a_row_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    from lit_pref.formats import text_readers

    monkeypatch.setattr(text_readers, "MAX_ROW_BYTES", 2**20)
    bomb = gzip.compress(b'{"prompt": "' + b"x" * 2**22, mtime=0)
    assert "line 1 is longer than 1 MiB" in refusal(_write(tmp_path, "b.jsonl.gz", bomb))
    assert "row 1 (line 1) is longer" in refusal(
        _write(tmp_path, "b.json.gz", gzip.compress(b'[{"prompt": "' + b"x" * 2**22, mtime=0))
    )


def _write(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def test_split_and_hub_names(tmp_path, monkeypatch, chat_encoder):
    datasets = pytest.importorskip("datasets")
    path = saved("splits:train", tmp_path)
    assert len(list(read_rows(path.replace(":train", ":test")))) == 1
    assert len(list(read_rows(path.replace(":train", "")))) == 2  # train is the default
    assert "no split 'dev'. Expected one of train, test" in refusal(path.replace(":train", ":dev"))
    asked = []

    def load_dataset(*names):
        asked.append(names)
        if names[0] == "none/such":
            raise ConnectionError("no network")
        return datasets.load_from_disk(path.replace(":train", ""))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    groups = load_groups("owner/name/easy:train", encoder=chat_encoder, cache_dir=tmp_path / "c")
    assert len(groups.items) == 2
    assert asked == [("owner/name", "easy")]
    assert "the hub gave no dataset of this name (no network)" in refusal("none/such")
    assert "does not exist" in refusal("folder/file.jsonl")  # a path, not an id


def test_without_the_extra_text_files_work_and_others_say_what_to_install(
    tmp_path, monkeypatch, chat_encoder
):
    paths = {kind: saved(kind, tmp_path) for kind in ("data.jsonl", "data.parquet", "folder")}
    for package in ("pyarrow", "pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    loaded = load_prompts(paths["data.jsonl"], encoder=chat_encoder, cache_dir=tmp_path / "cache")
    assert len(loaded.items) == 2
    assert not (tmp_path / "cache").exists()
    assert "does not exist" in refusal("owner/name")
    assert 'pip install "lit-pref[datasets]"' in refusal("owner/name")
    for kind in ("data.parquet", "folder"):
        assert 'pip install "lit-pref[datasets]"' in refusal(paths[kind])
