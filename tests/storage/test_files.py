"""Tests of small files and of strict JSON."""

import pytest

import msrnn
from msrnn.storage import files
from msrnn.storage.files import check_file, parse_json, read_bytes, read_json, write_json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": {"b": 1, "b": 2}}', "key 'b' occurs twice"),
        (b"[1]", "holds a list; expected a JSON object"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_text_that_is_not_a_strict_json_object_is_refused(content, message):
    with pytest.raises(msrnn.Error, match=f"here {message}|here is not JSON .{message}"):
        parse_json(content, "here")


def test_json_survives_a_file(tmp_path):
    fields = {"a": [1, 2.5, None], "é": {"b": "\n"}}
    write_json(tmp_path / "x.json", fields)
    assert read_json(tmp_path / "x.json") == fields


def test_paths_that_are_not_small_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_text("12345")
    for path, message in {
        "empty": "it is empty",
        ".": "expected a file",
        "none": "No such file",
        "a\0b": "cannot read",
    }.items():
        with pytest.raises(msrnn.Error, match=message):
            check_file(tmp_path / path)
    monkeypatch.setattr(files, "MAX_SMALL_FILE_BYTES", 4)
    with pytest.raises(msrnn.Error, match="has 5 bytes; expected a small file, of at most 4"):
        read_bytes(tmp_path / "file")
