"""The small files of a model: read from a folder, built once when they are used."""

import json

import pytest
from support.tiny_tokenizer import tiny_tokenizer

from converters import extra_files
from converters.extra_files import LazyFiles, read_folder


def test_lazy_files_are_made_once():
    calls = []
    files = LazyFiles(lambda: calls.append(1) or {"a": b"1", "b": b"2"})
    assert not calls
    assert (files["a"], sorted(files), len(files), "c" in files, files.get("c")) == (b"1", ["a", "b"], 2, False, None)
    assert dict(files) == {"a": b"1", "b": b"2"}
    assert len(calls) == 1


def test_an_existing_tokenizer_json_is_read_unchanged(tmp_path):
    text = tiny_tokenizer().to_str()
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "tokenizer.model").write_bytes(b"not read")
    (tmp_path / "other.txt").write_text("not read")
    files = read_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert dict(files) == {"tokenizer.json": text.encode()}


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("a", b"a"),
        ([{"name": "tool", "template": "b"}, {"name": "default", "template": "a"}], b"a"),
        ([{"name": "tool", "template": "b"}, 3], None),
        (None, None),
    ],
)
def test_chat_template_of_older_checkpoints(template, found, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert read_folder(tmp_path).get("chat_template.jinja") == found
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert read_folder(tmp_path)["chat_template.jinja"] == b"newer"


def test_a_damaged_tokenizer_model_warns_once_at_the_first_access(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")
    files = read_folder(tmp_path)
    with pytest.warns(UserWarning, match=r"the model has no tokenizer: .*tokenizer\.model is not a SentencePiece model"):
        assert len(files) == 0
    monkeypatch.setattr(extra_files.sentencepiece, "parse_tokenizer", lambda *_: pytest.fail("built twice"))
    assert dict(files) == {}
