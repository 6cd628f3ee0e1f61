"""Matrices that Phi-3 stores as one: the parts are rows of the file, and other shapes are refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.transformers_reference import save_folder, tiny_reference

import converters
import msrnn
from converters.detect import open_source

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")
QKV, GATE_UP = "model.layers.1.self_attn.qkv_proj.weight", "model.layers.0.mlp.gate_up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return save_folder(tiny_reference("phi3", dtype=torch.float32), tmp_path)


def test_parts_are_rows_of_the_file(folder):
    tensors, data = open_source(folder, None).tensors, (folder / "model.safetensors").read_bytes()
    stored = load_file(folder / "model.safetensors")
    q, k, v = (tensors[f"layers.1.{name}.weight"] for name in "qkv")
    gate, up = (tensors[f"layers.0.{name}.weight"] for name in ("gate", "up"))
    assert torch.equal(torch.cat([x.read() for x in (q, k, v)]), stored[QKV])
    assert torch.equal(torch.cat([x.read() for x in (gate, up)]), stored[GATE_UP])
    assert [x.shape for x in (q, k, v, gate, up)] == [(24, 24), (12, 24), (12, 24), (40, 24), (40, 24)]
    for x in (q, k, v, gate, up):
        start = x.location.start
        assert data[start : start + x.nbytes] == x.read().contiguous().numpy().tobytes()


def test_tensors_in_memory_have_no_place_in_a_file(folder):
    state = load_file(folder / "model.safetensors")
    tensors = open_source((state, converters.config(folder)), None).tensors
    assert tensors["layers.1.k.weight"].location is None
    assert torch.equal(tensors["layers.1.k.weight"].read(), state[QKV][24:36])


@pytest.mark.parametrize("name", [QKV, GATE_UP])
@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: torch.cat((x, x[:1])), lambda x: x[0]])
def test_a_fused_matrix_of_another_shape_is_refused(name, change, folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        msrnn.Error, match=r"tensor 'layers\.\d\.(qkv|gate_up)\.weight' has shape .*; expected \d+ rows, those of"
    ):
        converters.load(folder)


def test_a_matrix_of_another_family_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(24, 24)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(msrnn.Error, match=r"q_proj\.weight' is not part of this architecture"):
        converters.load(folder)
