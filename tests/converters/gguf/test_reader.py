"""GGUF weights compared with transformers' reading of a real file and with a tiny cell; extra files."""

import json
import pickle

import gguf
import numpy as np
import pytest
import torch
from einops import rearrange
from safetensors import safe_open
from support.refusals import refusing

import converters
from converters.gguf.reader import open_checkpoint
from msrnn.layers.rotary import Rope, apply_rotary
from msrnn.models import Llama


def test_real_weights_are_bit_for_bit_those_of_transformers(gguf_path, hf_folder):
    hf = {"embed": "embed_tokens", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "norm": "norm"}
    hf |= {x: f"self_attn.{x}_proj" for x in "qkvo"} | {x: f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    source = open_checkpoint(gguf_path)
    config = source.config
    assert (config.n_heads, config.n_kv_heads, config.tied, config.norm_eps) == (9, 3, True, 1e-5)
    assert (config.bos_token_id, config.eos_token_ids, config.rope) == (1, (2,), Rope(100000.0))
    with safe_open(hf_folder / "model.safetensors", "pt") as file:
        left = set(file.keys())
        for name, lazy in source.tensors.items():
            x = lazy.read()
            *layer, part, _ = name.split(".")
            reference = ".".join(["model", *layer, hf[part], "weight"])
            left.remove(reference)
            assert torch.equal(x.view(torch.int32), file.get_tensor(reference).view(torch.int32)), name
    assert not left


def test_weights_of_grouped_queries_are_exactly_those_of_the_cell(write_tiny, cell):
    source = open_checkpoint(write_tiny())
    assert (source.config.tied, source.config.n_kv_heads, source.config.vocab_size) == (False, 2, 50)
    found = {name: x.read() for name, x in source.tensors.items()}
    Llama(source.config).load_state_dict(found)  # strict: all names and shapes, and no others
    for name, x in cell.state_dict().items():
        assert torch.equal(found[name], x), name
        assert found[name].dtype == torch.float32


def test_interleaved_rotation_of_the_file_equals_our_half_split_rotation(write_tiny):
    """The rows are permuted because GGUF rotates pairs (2i, 2i + 1) and msrnn (i, i + D/2); both give the same numbers."""
    path = write_tiny()
    source = open_checkpoint(path)
    k, x, position = source.tensors["layers.1.k.weight"].read(), torch.randn(24), torch.tensor([7])
    reader = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    stored = torch.tensor(reader["blk.1.attn_k.weight"]) @ x
    cos, sin = source.config.rope.cos_sin(position, 6, torch.float32)
    pair_cos, pair_sin = cos[..., 3:], sin[..., 3:]
    a, b = rearrange(stored, "(k i two) -> two 1 k i", k=2, two=2)
    rotated = torch.stack((a * pair_cos - b * pair_sin, b * pair_cos + a * pair_sin))  # (2, 1, K, D/2)
    half_split = apply_rotary(rearrange(k @ x, "(k d) -> 1 k d", k=2), (cos, sin))
    assert torch.allclose(rearrange(rotated, "two 1 k i -> 1 k (two i)"), half_split, atol=1e-6)


def test_embeddings_are_tied_without_an_output_tensor(write_tiny):
    source = open_checkpoint(write_tiny(tensors={"output.weight": None}))
    assert source.config.tied
    assert "head.weight" not in source.tensors


TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"t{n}" for n in range(47))],
    "tokenizer.ggml.scores": [0.0] * 50,
    "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 47],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.chat_template": "{{ messages }}",
}


def test_tokenizer_special_tokens_and_template_become_files(write_tiny):
    path = write_tiny({**TOKENIZER, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 99})
    cell = converters.load(path)
    assert sorted(cell.extra_files) == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert cell.extra_files["chat_template.jinja"] == b"{{ messages }}"
    fields = json.loads(cell.extra_files["tokenizer_config.json"])
    assert fields == {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    assert pickle.loads(pickle.dumps(cell)).extra_files == cell.extra_files


def test_a_file_without_a_tokenizer_is_reported(write_tiny):
    with pytest.warns(UserWarning, match="the model has no tokenizer: .*tokenizer.ggml.model is missing") as warned:
        cell = converters.load(write_tiny({"tokenizer.chat_template": "x"}))
    assert dict(cell.extra_files) == {"chat_template.jinja": b"x"}
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blk.0.attn_q.bias": np.zeros(24, np.float32)}, "'blk.0.attn_q.bias' is not part of this architecture"),
        (
            {"blk.0.ffn_gate_exps.weight": np.zeros(2, np.float32)},
            "gate_exps.weight' is not part of this architecture",
        ),
        ({"blk.1.ffn_up.weight": None}, "tensor 'layers.1.up.weight' missing"),
        ({"output_norm.weight": np.zeros(23, np.float32)}, "'norm.weight' has shape (23,); expected (24,)"),
        ({"output_norm.weight": np.zeros(24, np.float64)}, "output_norm.weight is quantised as F64; expected one of F32"),
        ({"output_norm.weight": np.zeros(24, np.int32)}, "output_norm.weight is quantised as I32; expected one of F32"),
    ],
)
def test_other_tensors_are_refused(write_tiny, tensors, message):
    with refusing(message):
        converters.load(write_tiny(tensors=tensors))
