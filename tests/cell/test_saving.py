"""``save_pretrained`` and ``push_to_hub``, against a copy of the API of the hub that keeps repositories in folders."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from support.tiny_models import random_tokens, tiny_cell
from support.tiny_tokenizer import chat_cell

import converters
import msrnn

CELL = tiny_cell()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return the folder of the repositories of the user ``me``, and the calls."""
    calls = []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append(("create", repo_id, private, self.token))
            name = repo_id if "/" in repo_id else f"me/{repo_id}"
            (tmp_path / "hub" / name).mkdir(parents=True, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, commit_message, self.token))
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/0")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda id, **_: str(tmp_path / "hub" / id))
    return tmp_path / "hub", calls


def test_a_pushed_cell_is_loaded_by_its_id(hub):
    cell, (folder, calls) = chat_cell(), hub
    assert cell.push_to_hub("me/tiny", private=True, token="secret") == "https://huggingface.co/me/tiny/commit/0"
    assert calls == [("create", "me/tiny", True, "secret"), ("upload", "me/tiny", "Upload a cell of msrnn", "secret")]
    loaded, text = converters.load("me/tiny"), random_tokens(0, 1, 9)
    assert loaded.config == cell.config
    assert torch.equal(loaded(text)[0], cell(text)[0])
    here, there = converters.tokenizer(folder / "me/tiny"), converters.tokenizer("me/tiny")
    assert there.to_str() == here.to_str()
    assert CELL.push_to_hub("tiny", commit_message="Train longer").endswith("me/tiny/commit/0")  # a repository that exists
    assert calls[2:] == [("create", "tiny", None, None), ("upload", "me/tiny", "Train longer", None)]
    assert msrnn.load(folder / "me/tiny").config == CELL.config


def test_save_pretrained_writes_the_folder_of_save(tmp_path):
    CELL.save_pretrained(tmp_path / "one")
    CELL.save(tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        assert (tmp_path / "one" / path.name).read_bytes() == path.read_bytes()
    assert msrnn.load(tmp_path / "one").config == CELL.config
    with pytest.raises(msrnn.Error, match="one"):
        CELL.save_pretrained(tmp_path / "one")


def test_a_refusal_of_the_hub_is_one_sentence(hub, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("401 Client Error\nInvalid user token")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", refuse)
    with pytest.raises(msrnn.Error, match=r"^cannot upload to 'me/tiny' on the hub \(401 Client Error\)$"):
        CELL.push_to_hub("me/tiny")
    assert list((hub[0] / "me/tiny").iterdir()) == []


def test_without_a_network_nothing_is_saved(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(CELL, "save", lambda folder: pytest.fail("saved before the repository was there"))
    for id in ("me/tiny", "no id"):
        with pytest.raises(msrnn.Error, match=f"cannot upload to '{id}' on the hub"):
            CELL.push_to_hub(id)


def test_a_split_cell_is_not_pushed(hub, monkeypatch):
    cell = tiny_cell(seed=0)
    monkeypatch.setattr(cell, "rank_part", object())
    with pytest.raises(msrnn.Error, match="every rank of a split cell would upload"):
        cell.push_to_hub("me/tiny")
    assert hub[1] == []
