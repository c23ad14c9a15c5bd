import gzip
import json
import pickle

import pytest

from lit_pref.formats import read_rows
from lit_pref.types import Refusal


def refusal(path, **kwargs):
    with pytest.raises(Refusal) as caught:
        list(read_rows(path, **kwargs))
    return str(caught.value)


def test_rows_carry_their_line_and_blank_lines_are_skipped(write):
    path = write({"prompt": "a"}, "", "   ", {"prompt": "b", "x": [1]})
    rows = list(read_rows(path))
    assert [(r.file, r.line, r.data) for r in rows] == [
        (path, 1, {"prompt": "a"}),
        (path, 4, {"prompt": "b", "x": [1]}),
    ]
    assert rows[1].place == f"{path}, line 4"


def test_byte_order_mark_and_windows_line_ends(write, tmp_path):
    assert [r.data for r in read_rows(write({"a": 1}, head=b"\xef\xbb\xbf"))] == [{"a": 1}]
    path = tmp_path / "dos.jsonl"
    path.write_bytes(b'{"a": 1}\r\n{"a": 2}')
    assert [r.data["a"] for r in read_rows(path)] == [1, 2]


def test_rows_are_streamed(write):
    rows = read_rows(write({"a": 1}, "no json"))
    assert next(rows).data == {"a": 1}
    with pytest.raises(Refusal):
        next(rows)


def test_unicode_line_separators_do_not_end_a_row(tmp_path):
    path = tmp_path / "u.jsonl"
    path.write_bytes('{"a": "x\u2028y\u0085z"}\n'.encode())
    assert [r.data for r in read_rows(path)] == [{"a": "x\u2028y\u0085z"}]


def test_the_name_replaces_the_path(write):
    assert next(read_rows(write({"a": 1}), name="shipped")).file == "shipped"
    assert refusal("/does/not/exist", name="shipped").startswith("shipped does not exist")


def test_missing_file_folder_and_impossible_path(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.jsonl")
    assert "is a folder" in refusal(tmp_path)
    assert "cannot be read" in refusal("a\0b")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a"', "not JSON"),
        ('{"prompt": "' + 20 * "a" + '",', "at column 3"),  # its end, not the next line's start
        ("hello", "not JSON"),
        ("[1, 2]", "not an object"),
        ('[{"prompt": "a"},', "JSON array"),
        ('"text"', "not an object"),
        ("null", "not an object"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_bad_line_is_named(write, line, says):
    path = write({"prompt": "fine"}, line)
    message = refusal(path)
    assert message.startswith(f"{path}, line 2: ")
    assert says in message
    assert len(message) < 800


def test_wrong_encodings(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"a": "x"}\n' + '{"a": "caf\u00e9"}\n'.encode("latin-1"))
    message = refusal(path)
    assert message.startswith(f"{path}, line 2: byte 0xe9 at position 10 is not UTF-8")
    path.write_bytes('{"a": 1}\n'.encode("utf-16"))
    assert "UTF-16" in refusal(path)


def test_files_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "data.jsonl"
    for content, kind in [
        (gzip.compress(b'{"a": 1}\n', mtime=0), "gzip"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"PAR1....", "Parquet"),
        (b"PK\x03\x04....", "zip"),
    ]:
        path.write_bytes(content)
        assert kind in refusal(path)


def test_half_a_surrogate_pair_is_a_fault_and_a_whole_one_is_not(write):
    half = json.dumps({"a": "\ud83d"})
    whole = json.dumps({"a": "\U0001f600"})  # written as two escapes
    assert [r.fault for r in read_rows(write(half, whole))] == [
        "text is not valid Unicode",
        None,
    ]
