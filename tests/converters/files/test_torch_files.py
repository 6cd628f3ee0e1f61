"""PyTorch files: no code in them is run, and other objects than plain tensors are refused."""

import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict

import pytest
import torch
from support.tiny_checkpoints import make_checkpoint, write_folder
from torch.nn import Parameter

import converters
import msrnn
from converters.files import torch_files
from converters.files.torch_files import open_pickle


class Hostile:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("hidden", [lambda x: x, lambda x: {"model.norm.weight": x}, lambda x: {"a": torch.zeros(1), "b": [x]}])
def test_code_is_not_run(zipped, hidden, tmp_path):
    torch.save(hidden(Hostile(tmp_path / "ran")), tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(msrnn.Error, match=r"x\.bin is damaged, or more than tensors .*system"):
        open_pickle(tmp_path / "x.bin")
    write_folder(tmp_path / "hf", {"config.json": {"model_type": "llama"}})
    (tmp_path / "x.bin").rename(tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(msrnn.Error):
        converters.load(tmp_path / "hf")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "hf" / "pytorch_model.bin", weights_only=False)  # without weights_only the code is run
    assert (tmp_path / "ran").exists()


def test_code_in_a_bare_pickle_is_not_run(tmp_path):
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": Hostile(tmp_path / "ran")}))
    with pytest.raises(msrnn.Error, match="damaged, or more than tensors"):
        open_pickle(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()


class Sub(torch.Tensor):
    pass


NOT_PLAIN = {
    "no dict": ([torch.zeros(1)], "holds a list"),
    "a number": ({"a": 1}, "'a' is a int"),
    "a dict": ({"weights": {"a": torch.zeros(1)}}, "'weights' is a dict"),
    "no name": ({3: torch.zeros(1)}, "3 is a Tensor"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "sparse_coo"),
    "meta": ({"a": torch.zeros(3, device="meta")}, "on meta"),
    "expanded": ({"a": torch.zeros(1).expand(10**9, 10**6)}, "fewer numbers"),
    "expanded rows": ({"a": torch.zeros(3).expand(4, 3)}, "fewer numbers"),
}


@pytest.mark.filterwarnings("ignore")  # torch warns of sparse tensors
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("content", "message"), NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_other_objects_than_plain_tensors_are_refused(content, message, zipped, tmp_path):
    torch.save(content, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(msrnn.Error, match=message):
        open_pickle(tmp_path / "x.bin")


@pytest.mark.filterwarnings("ignore:.*quantiz.*", "ignore:.*TypedStorage.*")
def test_quantised_tensors_and_subclasses_are_refused(tmp_path):
    torch.save({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, tmp_path / "x.bin")
    with pytest.raises(msrnn.Error, match=r"qint8|more than tensors"):
        open_pickle(tmp_path / "x.bin")
    with pytest.raises(msrnn.Error, match="Sub"):
        converters.load(({"a": torch.zeros(3).as_subclass(Sub)}, {"model_type": "llama"}))


def test_parameters_views_and_shared_storage_are_read(tmp_path):
    whole = torch.randn(6, 4)
    state = OrderedDict(a=Parameter(whole[:2]), b=whole[2:4].t(), c=whole, d=whole[0])
    for zipped in (True, False):
        torch.save(state, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
        found = open_pickle(tmp_path / "x.bin")
        for _ in range(2):
            assert all(torch.equal(found[name].read(), x) for name, x in state.items())
        assert not any(x.read().requires_grad for x in found.values())


def test_a_file_is_mapped_again_without_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "REMAP_BYTES", 100)
    state = {str(n): torch.randn(10) for n in range(20)}
    torch.save(state, tmp_path / "x.bin")
    found = open_pickle(tmp_path / "x.bin")
    assert all(torch.equal(found[name].read(), state[name]) for name in random.Random(0).sample(list(state), 20))


def test_damaged_files_are_read_or_refused(tmp_path):
    _, state, config = make_checkpoint("gqa", tmp_path / "ref")
    folder = write_folder(tmp_path / "hf", {"config.json": config, "pytorch_model.bin": state})
    path = folder / "pytorch_model.bin"
    data, rng = path.read_bytes(), random.Random(0)
    expected = converters.load(tmp_path / "ref")
    for n in range(60):
        bad = bytearray(data)
        if n % 3 == 0:
            bad = bad[: rng.randrange(len(bad))]
        elif n % 3 == 1:
            for _ in range(3):
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        else:  # in the pickle itself
            at = data.index(b"model.layers")
            bad[rng.randrange(at - 50, at + 3000)] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            cell = converters.load(folder)
        except msrnn.Error as wrong:
            refused = str(wrong)
        else:
            refused = ""
            assert cell.config == expected.config
        assert "\n" not in refused
        assert "weights_only" not in refused


def test_missing_empty_and_other_files_are_refused(tmp_path):
    for content in (b"", b"PK\x03\x04", b"hello", bytes(1000)):
        (tmp_path / "x.bin").write_bytes(content)
        with pytest.raises(msrnn.Error, match="damaged" if content else "empty"):
            open_pickle(tmp_path / "x.bin")
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "hello")
    (tmp_path / "x.bin").write_bytes(other.getvalue())
    with pytest.raises(msrnn.Error, match="damaged"):
        open_pickle(tmp_path / "x.bin")
    with pytest.raises(msrnn.Error, match="cannot read"):
        open_pickle(tmp_path / "absent.bin")
