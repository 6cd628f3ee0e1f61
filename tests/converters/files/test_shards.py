"""Checkpoints in several files with an index."""

import json

import pytest
import torch
from support.transformers_reference import save_folder, tiny_reference

import converters
import msrnn

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def sharded(tmp_path):
    model = tiny_reference(dtype=torch.float32)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    save_folder(model, tmp_path / "single")
    return tmp_path / "sharded"


def test_shards_equal_the_single_file(sharded):
    a, b = converters.load(sharded).state_dict(), converters.load(sharded.with_name("single")).state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


WRONG_INDEXES = {
    "outside": (lambda m: m.update({Q: "../single/model.safetensors"}), "expected the name of a"),
    "absent file": (lambda m: m.update({Q: "model-9.safetensors"}), "missing"),
    "removed": (lambda m: m.pop(Q), "disagree"),
    "invented": (lambda m: m.update({"invented": m[Q]}), "invented"),
    "no name": (lambda m: m.update({Q: 5}), "weight_map"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_INDEXES.values(), ids=WRONG_INDEXES)
def test_a_wrong_index_is_refused(change, message, sharded):
    edit_index(sharded, change)
    with pytest.raises(msrnn.Error, match=message):
        converters.load(sharded)
