"""The folder of another run, a damaged one, and a folder without a run are refused."""

import os

import pytest
import torch
from support.training import MODEL, folder_contents, train_config, words

import msrnn
from msrnn.train import train


def test_a_state_of_another_batch_size_is_refused(tmp_path):
    done = train(train_config(), words(), tmp_path)
    done.state.select([0, 1]).save(tmp_path / "state-12.safetensors")
    with pytest.raises(msrnn.Error, match="state has batch size 2"):
        train(train_config(), words(), tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.5}, "contains a run with lr 0.003; this one has 0.5"),
        ({"reduction": "tova:7"}, "contains a run with reduction 'tova:6'; this one has 'tova:7'"),
        ({"model": {**MODEL, "width": 32}}, "contains a run with model {"),
        ({"tokenizer": "bpe:300"}, "contains a run with tokenizer 'bytes'; this one has 'bpe:300'"),
    ],
)
def test_another_run_is_refused(fields, message, tmp_path):
    train(train_config(), words(), tmp_path)
    before = folder_contents(tmp_path)
    with pytest.raises(msrnn.Error) as refused:
        train(train_config(**fields), words(), tmp_path)
    assert message in str(refused.value)
    with pytest.raises(msrnn.Error, match="contains a run with text"):
        train(train_config(), words() + "!", tmp_path)
    assert folder_contents(tmp_path) == before


def test_a_folder_without_a_run_is_refused_and_unchanged(tmp_path):
    (tmp_path / "letter.txt").write_text("x")
    with pytest.raises(msrnn.Error, match=r"has no training\.safetensors; expected the folder of a training run, or a new one"):
        train(train_config(), words(), tmp_path)
    assert os.listdir(tmp_path) == ["letter.txt"]


def damaged(folder, name, change):
    tensors = dict(msrnn.storage.safetensors_io.read_tensors(folder / name))
    about = msrnn.storage.safetensors_io.read_metadata(folder / name)
    change(tensors, about)
    from safetensors.torch import save_file

    save_file(tensors, folder / name, about)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "training.safetensors").write_bytes(b"no"), "safetensors"),
        (lambda out: (out / "state-12.safetensors").unlink(), "cannot read"),
        (lambda out: (out / "state-12.safetensors").write_bytes(b"no"), "safetensors"),
        (lambda out: damaged(out, "training.safetensors", lambda x, _: x.pop("adam.norm.weight.step")), "is not part"),
        (lambda out: damaged(out, "training.safetensors", lambda x, _: x.update(more=torch.zeros(1))), "'more' is not part"),
        (lambda out: damaged(out, "training.safetensors", lambda x, _: x.pop("losses")), "incomplete"),
        (lambda out: damaged(out, "training.safetensors", lambda x, _: x.update(random=torch.zeros(1))), "incomplete"),
        (lambda out: damaged(out, "training.safetensors", lambda x, _: x.update({"model.norm.weight": torch.zeros(12)})), "16"),
        (lambda out: damaged(out, "training.safetensors", lambda _, a: a.update(config="{")), "damaged"),
        (
            lambda out: damaged(out, "training.safetensors", lambda _, a: a.update(version="1")),
            "version '1'; expected '2'",
        ),
        (lambda out: (out / "tokenizer.json").write_text("[]"), "tokenizer.json"),
    ],
)
def test_a_damaged_run_is_refused(change, message, tmp_path):
    train(train_config(), words(), tmp_path)
    change(tmp_path)
    with pytest.raises(msrnn.Error) as refused:
        train(train_config(), words(), tmp_path)
    assert message in str(refused.value)
