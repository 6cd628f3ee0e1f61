"""Downloads from the hub, without a network."""

import os
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from support.refusals import refusing
from support.transformers_reference import save_folder, tiny_reference

import converters
import msrnn
from converters import hub
from msrnn.cli.main import main


def test_a_cached_hub_id_is_read_without_a_network(tmp_path, monkeypatch):
    """The cache has the layout of huggingface-hub, in which refs/main names a snapshot."""
    from huggingface_hub import constants

    home = tmp_path / "hub"
    snapshot = home / "models--owner--tiny" / "snapshots" / ("a" * 40)
    model = save_folder(tiny_reference(dtype=torch.float32), snapshot)
    (home / "models--owner--tiny" / "refs").mkdir()
    (home / "models--owner--tiny" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(home))
    cell = converters.load("owner/tiny")
    own = converters.load(model)
    assert all(torch.equal(a, b) for a, b in zip(cell.parameters(), own.parameters(), strict=True))
    assert converters.load("owner/tiny", revision="a" * 40).config == own.config
    for id, revision in (("owner/absent", None), ("owner/tiny", "v9")):
        with pytest.raises(msrnn.Error, match=id):
            converters.load(id, revision=revision)


def test_only_the_files_needed_are_downloaded(monkeypatch, tmp_path):
    """The file names are those of real repositories of meta-llama, mistralai and 01-ai."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    small_files = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    small_files += ["params.json", "tokenizer.model"]
    kinds = [
        ["model.safetensors", "model.safetensors.index.json", "model-00001-of-00003.safetensors"],
        ["consolidated.safetensors"],
        ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"],
        ["consolidated.00.pth", "consolidated.01.pth"],
    ]
    others = ["README.md", "original/consolidated.00.pth", "original/params.json", "original/model.safetensors"]
    others += ["flax_model.msgpack", "onnx/model.onnx", ".gitattributes", "training_args.bin", "optimizer.pt"]
    available, revisions = [], []

    def download(id, revision, allow_patterns):
        revisions.append(revision)
        for name in filter_repo_objects(available, allow_patterns=allow_patterns):
            (folder / name).touch()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for n in range(len(kinds)):  # only the first kind that is available
        available = [*small_files, *others, *(name for kind in kinds[n:] for name in kind)]
        folder = tmp_path / str(n)
        folder.mkdir()
        converters.hub.fetch("a/b", "v1")
        assert sorted(os.listdir(folder)) == sorted(small_files + kinds[n])
    (tmp_path / "small").mkdir()
    folder = tmp_path / "small"
    converters.hub.fetch("a/b", "v1", weights=False)
    assert sorted(os.listdir(folder)) == sorted(small_files)
    assert set(revisions) == {"v1"}


FILES = ["m.Q4_K_M.gguf", "m.Q4_K_S.gguf", "m-IQ2_XS.gguf", "sub/m-bf16.gguf", "mmproj-f16.gguf", "README.md", "config.json"]


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("a/b:Q4_K_M", "m.Q4_K_M.gguf"),
        ("a/b:q4_k_s", "m.Q4_K_S.gguf"),
        ("a/b:IQ2_XS", "m-IQ2_XS.gguf"),
        ("a/b:BF16", "sub/m-bf16.gguf"),
        ("a/b/m.Q4_K_S.gguf", "m.Q4_K_S.gguf"),
        ("a/b/sub/m-bf16.gguf", "sub/m-bf16.gguf"),
    ],
)
@pytest.mark.parametrize("online", [True, False])
def test_a_gguf_file_of_a_hub_id_is_chosen_by_name(source, file, online, monkeypatch, tmp_path):
    """Only this file is downloaded; without a network it is found in the cache."""
    downloaded = fake_hub(monkeypatch, tmp_path, FILES, online)
    assert hub.split_id(source)[0] == "a/b"
    assert converters.detect.locate(source, "v1") == tmp_path / file
    assert converters.detect.locate(source, "v1", weights=False) == tmp_path / file
    if online:
        assert downloaded == {file}


@pytest.mark.parametrize("source", ["a/b", "a/b:Q4_K", "a/b:Q8_0", "a/b/m.Q8_0.gguf"])
def test_a_choice_that_names_no_file_lists_the_files(source, monkeypatch, tmp_path):
    fake_hub(monkeypatch, tmp_path, [name for name in FILES if name != "config.json"])
    listed = r"expected one of m-IQ2_XS\.gguf, m\.Q4_K_M\.gguf, m\.Q4_K_S\.gguf, sub/m-bf16\.gguf; choose one: a/b/FILE"
    for call in (converters.load, converters.config, converters.tokenizer):
        with pytest.raises(msrnn.Error, match=rf"a/b has .*; {listed}"):
            call(source)


def test_the_only_gguf_file_of_a_hub_id_needs_no_choice(monkeypatch, tmp_path):
    downloaded = fake_hub(monkeypatch, tmp_path, ["README.md", "x.gguf"])
    assert converters.detect.locate("a/b", None) == tmp_path / "x.gguf"
    assert converters.detect.locate("a/b", None, weights=False) == tmp_path / "x.gguf"
    assert downloaded == {"x.gguf"}


class TransportError(Exception):
    """As the errors of httpx, which are no OSError; the hub client has changed its HTTP library several times."""


UNREACHABLE = [
    TransportError("[Errno -2] Name or service not known"),
    TimeoutError(110, "Connection timed out"),
    ConnectionResetError(104, "Connection reset by peer"),
    OfflineModeIsEnabled("HF_HUB_OFFLINE is set"),
    LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder"),
    RuntimeError(),
]
RESPONSE = SimpleNamespace(headers={}, request=None)
ANSWERED = [
    (RepositoryNotFoundError("404 Client Error", response=RESPONSE), "expected the id of a repository that exists"),
    (GatedRepoError("401 Client Error", response=RESPONSE), "a private or gated one needs a login (hf auth login)"),
    (RevisionNotFoundError("Invalid rev id: v1", response=RESPONSE), "from the hub (Invalid rev id: v1)"),
    (OSError(28, "No space left on device"), "from the hub ([Errno 28] No space left on device)"),
]


@pytest.mark.parametrize("failure", UNREACHABLE, ids=lambda error: type(error).__name__)
def test_without_a_network_the_message_asks_for_a_path(failure, monkeypatch, capsys):
    fail(monkeypatch, failure)
    expected = "no file or folder of this name is here; without a network, give the path of a model folder or a .gguf file"
    for call in (converters.load, converters.config, converters.tokenizer):
        with refusing(f"cannot fetch 'a/b' at 'v1' from the hub ({str(failure) or 'RuntimeError'}), and {expected}"):
            call("a/b", revision="v1")
    assert main(["info", "a/b"]) == 1
    assert capsys.readouterr().err.endswith(f"{expected}\n")


@pytest.mark.parametrize(("failure", "message"), ANSWERED, ids=lambda x: type(x).__name__)
def test_other_failures_do_not_blame_the_network(failure, message, monkeypatch):
    fail(monkeypatch, failure)
    with refusing(message) as found:
        converters.load("a/b")
    assert "network" not in str(found.value)


def fail(monkeypatch, failure):
    """Replace the downloads of the hub client by an exception."""

    def refuse(*_, **__):
        raise failure

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


def fake_hub(monkeypatch, folder, files, online=True):
    """Replace the hub client by one with these files; return the set of downloaded files."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    downloaded = set()

    def download(id, revision, allow_patterns):
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            downloaded.add(name)
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        return str(folder)

    def list_files(id, revision):
        if not online:
            raise RuntimeError("no network")
        return files

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_files)
    return downloaded
