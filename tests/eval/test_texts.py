"""Chunks of texts, and texts of data sets of the hub."""

import json
import sys

import pytest
from support.tiny_tokenizer import tiny_tokenizer

import msrnn
from msrnn.eval.texts import read_dataset, split_into_chunks

TEXT = "The boat was small, the sea was not; and on the third day the wind rose again. " * 12


def test_chunks_start_with_bos_and_count_their_bytes():
    tokenizer = tiny_tokenizer()
    found = split_into_chunks({"a": TEXT, "b": "the sea"}, tokenizer, 40, 3)
    assert [c.name for c in found] == ["a 0", "a 1", "a 2"]
    whole = tokenizer.encode(TEXT, add_special_tokens=False)
    for i, c in enumerate(found):
        assert c.ids.tolist() == [3, *whole.ids[39 * i : 39 * (i + 1)]]
        assert c.first == 1
        assert c.n_bytes == len(tokenizer.decode(whole.ids[39 * i : 39 * (i + 1)]).encode())
    unmarked = tiny_tokenizer()
    unmarked.post_processor = type(unmarked.post_processor)(single="$A", special_tokens=[])
    first = split_into_chunks({"a": TEXT}, unmarked, 40, 1)[0]
    assert first.ids.tolist() == unmarked.encode(TEXT).ids[:40]
    assert first.n_bytes == len(unmarked.decode(first.ids[1:].tolist()))  # the first token is not predicted


def test_reads_a_data_set_of_the_hub(tmp_path, monkeypatch):
    """Uses a local folder of the same name instead of the hub."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner" / "books").mkdir(parents=True)
    lines = (json.dumps({"text": TEXT + str(i), "year": i}) + "\n" for i in range(2))
    (tmp_path / "owner" / "books" / "test.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    assert read_dataset("owner/books", "test") == {f"owner/books {i}": TEXT + str(i) for i in range(2)}
    for name, split, message in (
        ("owner/books", "dev", "owner/books is no file or folder, and the hub has no split dev of a data set of this name"),
        ("owner/none", "test", "owner/none is no file or folder, and the hub has no split test"),
    ):
        with pytest.raises(msrnn.Error, match=message):
            read_dataset(name, split)
    (tmp_path / "owner" / "books" / "test.jsonl").write_text('{"words": "x"}\n')
    with pytest.raises(msrnn.Error, match="split test of owner/books has words; expected text"):
        read_dataset("owner/books", "test")


def test_a_path_that_does_not_exist_is_said_so_without_the_package_of_data_sets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = r"no/pe is no file or folder, and for a data set of the hub the package datasets is not installed; pip install"
    with pytest.raises(msrnn.Error, match=message):
        read_dataset("no/pe", "test")
