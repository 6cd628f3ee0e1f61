"""GGUF to ours: against transformers' reading of a real file, naive decoders, and files written here byte by byte."""

import re
import struct
import sys
import zlib
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support.gguf_files import write
from support.tiny_models import tiny_cell

from converters.gguf.header import read_header
from converters.gguf.tensors import TYPES
from converters.gguf.weights import NAMES, open_checkpoint
from msrnn import Error
from msrnn.layers.rotary import Linear, Llama3, Rope, Yarn, rotate
from msrnn.models import Llama
from msrnn.models.loading import check_tensors

LLAMA = {  # what a small file says
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 24,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 6,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.context_length": 64,
}
GGUF_NAMES = {  # ours: llama.cpp's, spelled here once more
    "embed": "token_embd", "norm": "output_norm", "head": "output",
    "attention_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "ffn_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


def theirs(cell):
    """A cell's tensors under GGUF's names, rows of q and k interleaved as llama.cpp's converter does it."""
    tensors = {}
    for name, x in cell.state_dict().items():
        *layer, stem, _ = name.split(".")
        if stem in "qk":
            n = cell.config.n_heads if stem == "q" else cell.config.n_kv_heads
            x = x.reshape(n, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        tensors["".join(f"blk.{n}." for n in layer[1:]) + f"{GGUF_NAMES[stem]}.weight"] = x.numpy()
    return tensors


@pytest.fixture(scope="module")
def cell():
    return tiny_cell(dtype=torch.float32)


@pytest.fixture
def small(tmp_path, cell):
    """Writes the small file, with what a test changes; None leaves a key or a tensor out."""

    def make(metadata=None, tensors=None, kinds=None):
        metadata, tensors = {**LLAMA, **(metadata or {})}, {**theirs(cell), **(tensors or {})}
        present = [{key: value for key, value in x.items() if value is not None} for x in (metadata, tensors)]
        return write(tmp_path / "small.gguf", *present, kinds)

    return make


def read(path):
    source = open_checkpoint(path)
    check_tensors(source.config, source.tensors)
    return source.config, source.tensors


def refusing(sentence):
    return pytest.raises(Error, match=re.escape(sentence))


def test_real_weights_are_those_transformers_reads_bit_for_bit(gguf_path, hf_folder):
    hf = {"embed": "embed_tokens", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "norm": "norm"}
    hf |= {x: f"self_attn.{x}_proj" for x in "qkvo"} | {x: f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    config, tensors = read(gguf_path)
    assert (config.n_heads, config.n_kv_heads, config.tied, config.norm_eps) == (9, 3, True, 1e-5)
    assert (config.bos_token_id, config.eos_token_ids, config.rope) == (1, (2,), Rope(100000.0))
    with safe_open(hf_folder / "model.safetensors", "pt") as file:
        left = set(file.keys())
        for name, unread in tensors.items():
            x = unread.read()
            *layer, stem, _ = name.split(".")
            reference = ".".join(["model", *layer, hf[stem], "weight"])
            left.remove(reference)
            assert torch.equal(x.view(torch.int32), file.get_tensor(reference).view(torch.int32)), name
    assert not left


def test_grouped_heads_come_back_exactly_and_fit_the_cell(small, cell):
    config, tensors = read(small())
    assert (config.tied, config.n_kv_heads, config.vocab_size) == (False, 2, 50)
    found = {name: x.read() for name, x in tensors.items()}
    Llama(config).load_state_dict(found)  # every name, every shape, none besides
    for name, x in cell.state_dict().items():
        assert torch.equal(found[name], x), name
        assert found[name].dtype == torch.float32


def test_interleaved_rotation_of_the_file_is_our_half_split_one(small):
    """The reason for moving rows: GGUF turns (2i, 2i+1), we turn (i, i + D/2), and heads must agree but for order."""
    path = small()
    config, tensors = read(path)
    ours, x, position = tensors["layers.1.k.weight"].read(), torch.randn(24), torch.tensor([7])
    reader = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    stored = torch.tensor(reader["blk.1.attn_k.weight"]) @ x
    cos, sin = config.rope.rotation(position, 6, torch.float32)
    pairs = (cos[..., 3:], sin[..., 3:])
    a, b = rearrange(stored, "(k i two) -> two 1 k i", k=2, two=2)
    turned = torch.stack((a * pairs[0] - b * pairs[1], b * pairs[0] + a * pairs[1]))  # two, 1, K, D/2
    half_split = rotate(rearrange(ours @ x, "(k d) -> 1 k d", k=2), (cos, sin))
    assert torch.allclose(rearrange(turned, "two 1 k i -> 1 k (two i)"), half_split, atol=1e-6)


def test_tied_when_the_file_has_no_output(small):
    config, tensors = read(small(tensors={"output.weight": None}))
    assert config.tied
    assert "head.weight" not in tensors


def test_one_tensor_at_a_time_in_memory_of_its_own(small):
    path = small()
    first = read(path)[1]["embed.weight"].read()
    path.unlink()
    first.zero_()  # writable, though the file is gone
    assert not first.any()


# -- quantisations --------------------------------------------------------------------------------------------------


def nibble(data, j, half):
    return data[j % half] & 15 if j < half else data[j % half] >> 4


def half(data, at):
    return float(np.frombuffer(bytes(data[at : at + 2]), np.float16)[0])


def k_scale(scales, j):
    """The 6-bit scale and minimum of sub-block j of eight, packed into 12 bytes (Q4_K, Q5_K)."""
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    return (scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4), (scales[j + 4] >> 4) | (scales[j] >> 6 << 4)


def naive(kind, b):
    """One block, number by number, from the layout of ggml's structs."""
    if kind == "Q8_0":
        return [half(b, 0) * struct.unpack("b", b[2 + j : 3 + j])[0] for j in range(32)]
    if kind == "Q4_0":
        return [half(b, 0) * (nibble(b[2:], j, 16) - 8) for j in range(32)]
    if kind == "Q4_1":
        return [half(b, 0) * nibble(b[4:], j, 16) + half(b, 2) for j in range(32)]
    if kind == "Q5_0":
        high = int.from_bytes(b[2:6], "little")
        return [half(b, 0) * ((nibble(b[6:], j, 16) | (high >> j & 1) << 4) - 16) for j in range(32)]
    if kind == "Q5_1":
        high = int.from_bytes(b[4:8], "little")
        return [half(b, 0) * (nibble(b[8:], j, 16) | (high >> j & 1) << 4) + half(b, 2) for j in range(32)]
    if kind in ("Q4_K", "Q5_K"):
        out = []
        for j in range(256):
            scale, low = k_scale(b[4:16], j // 32)
            quants = b[16:] if kind == "Q4_K" else b[48:]
            q = nibble(quants[j // 64 * 32 :], j % 64, 32)
            if kind == "Q5_K":
                q |= (b[16 + j % 32] >> j // 32 & 1) << 4
            out.append(half(b, 0) * scale * q - half(b, 2) * low)
        return out
    if kind == "Q6_K":
        out = []
        for j in range(256):
            part, r = divmod(j, 128)
            low = nibble(b[64 * part + r % 64 :], 0, 1) if r < 64 else b[64 * part + r % 64] >> 4
            high = b[128 + 32 * part + r % 32] >> 2 * (r // 32) & 3
            scale = struct.unpack("b", b[192 + j // 16 : 193 + j // 16])[0]
            out.append(half(b, 208) * scale * ((low | high << 4) - 32))
        return out
    return None


HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # where scales lie in a block


@pytest.mark.parametrize("kind", TYPES)
def test_every_quantisation_means_what_the_package_says_and_what_its_layout_says(small, tmp_path, kind):
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    random = np.random.default_rng(zlib.crc32(kind.encode()))
    values = random.standard_normal((50, 512)).astype(np.float32)
    if kind in HALVES:  # the package cannot write these: random blocks with finite scales
        data = random.integers(0, 256, (50, 512 // block, size), np.uint8)
        for at in HALVES[kind]:
            data[..., at : at + 2] = random.standard_normal(data.shape[:2]).astype(np.float16)[..., None].view(np.uint8)
        data = data.reshape(50, -1)
    else:
        data = gguf.quants.quantize(values, number)
    wide = {"llama.embedding_length": 512, "llama.block_count": 1, "llama.feed_forward_length": 1}
    tensors = {"token_embd.weight": data, "output_norm.weight": values[0], "output.weight": values}
    ones = {"attn_norm": (512,), "ffn_norm": (512,), "attn_q": (24, 512), "attn_k": (12, 512), "attn_v": (12, 512)}
    ones |= {"attn_output": (512, 24), "ffn_gate": (1, 512), "ffn_up": (1, 512), "ffn_down": (512, 1)}
    tensors |= {f"blk.0.{name}.weight": np.ones(shape, np.float32) for name, shape in ones.items()}
    path = write(tmp_path / "kind.gguf", {**LLAMA, **wide}, tensors, {"token_embd.weight": number})
    found = read(path)[1]["embed.weight"].read().numpy()
    assert np.array_equal(found, gguf.quants.dequantize(data, number))
    if kind in HALVES:
        assert found.std() > 1
    else:
        assert np.abs(found - values).max() < {"F32": 1e-9, "F16": 2e-3, "BF16": 2e-2}.get(kind, 0.5)
    for row in (0, 49):
        first = bytes(data[row, :size]) if data.dtype == np.uint8 else b""
        expected = naive(kind, first)
        if expected is not None:
            assert np.allclose(found[row, :block], expected, rtol=1e-5, atol=1e-6)


# -- the config -----------------------------------------------------------------------------------------------------


def test_absent_facts_have_llama_cpps_defaults(small, cell):
    square = {k: v for k, v in theirs(cell).items() if "attn_q" not in k and "attn_output" not in k}
    more = {f"blk.{n}.{x}.weight": np.zeros((24, 24), np.float32) for n in (0, 1) for x in ("attn_q", "attn_output")}
    heads = {f"blk.{n}.{x}.weight": np.zeros((24, 24), np.float32) for n in (0, 1) for x in ("attn_k", "attn_v")}
    gone = {"llama.attention.head_count_kv": None, "llama.attention.key_length": None}
    config, _ = read(small(gone, {**square, **more, **heads}))
    assert (config.n_kv_heads, config.head_dim, config.rope, config.window) == (4, 6, Rope(10000.0), None)
    assert (config.bos_token_id, config.eos_token_ids, config.family) == (None, (), "llama")


def test_small_floats_come_back_as_the_decimals_they_were_written_from(small):
    for eps, theta in ((1e-5, 500000.0), (1e-6, 1e6), (0.1, 5e6)):
        config, _ = read(small({"llama.attention.layer_norm_rms_epsilon": eps, "llama.rope.freq_base": theta}))
        assert (config.norm_eps, config.rope) == (eps, Rope(theta))


def test_tokens_window_and_vocabulary(small):
    ids = {f"tokenizer.ggml.{x}_token_id": n for x, n in (("bos", 3), ("eos", 4), ("eot", 9), ("eom", 4))}
    config, _ = read(small({**ids, "llama.attention.sliding_window": 16, "llama.vocab_size": 50}))
    assert (config.bos_token_id, config.eos_token_ids, config.window) == (3, (4, 9), 16)
    with refusing("'embed.weight' has shape (50, 24); expected (2, 24)"):
        read(small({"tokenizer.ggml.tokens": ["a", "b"]}))


@pytest.mark.parametrize(
    ("scaling", "rope"),
    [
        ({"type": "none", "factor": 4.0}, Rope(10000.0)),
        ({"type": "linear"}, Rope(10000.0)),
        ({"factor": 4.0}, Linear(10000.0, 4.0)),
        ({"type": "linear", "factor": 2.5, "finetuned": True}, Linear(10000.0, 2.5)),
        ({"type": "yarn", "factor": 4.0}, Yarn(10000.0, 4.0, 64, 0.1 * np.log(4.0) + 1)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 32, "attn_factor": 0.5, "yarn_beta_fast": 16.0},
            Yarn(10000.0, 4.0, 32, 0.5 * (0.1 * np.log(4.0) + 1), 16.0),
        ),
    ],
)
def test_rope_scaling(small, scaling, rope):
    assert read(small({f"llama.rope.scaling.{key}": value for key, value in scaling.items()}))[0].rope == rope


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64)])
def test_llama3_scaling_is_recovered_from_what_it_leads_to(small, cell, factor, head_dim):
    """Divisors as llama.cpp's converter writes them, from transformers' own frequencies."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    facts = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    facts |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    hf = LlamaConfig(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=facts)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](hf, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    big = tiny_cell(dtype=torch.float32, head_dim=head_dim)
    said = {"llama.attention.key_length": head_dim, "llama.rope.freq_base": 500000.0}
    tensors = {**theirs(big), "rope_freqs.weight": (plain / scaled).numpy()}
    config, found = read(small(said, tensors))
    assert config.rope == Llama3(500000.0, factor, 1.0, 4.0, 8192)
    assert not [name for name in found if "rope" in name]
    with refusing("expected Llama 3's scaling (1, 4, 8192)"):
        read(small(said, {**tensors, "rope_freqs.weight": (plain / scaled).numpy() * np.float32(1.001)}))
    with refusing("rope_freqs.weight has shape"):
        read(small(said, {**tensors, "rope_freqs.weight": (plain / scaled).numpy()[1:]}))
    with refusing("scaling.type is 'linear'; expected 'none' in a file with"):
        read(small({**said, "llama.rope.scaling.type": "linear"}, tensors))
    ones = read(small(said, {**tensors, "rope_freqs.weight": np.ones(head_dim // 2, np.float32)}))[0]
    assert ones.rope == Rope(500000.0)


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"general.architecture": "gemma"}, "general.architecture is 'gemma'; expected 'llama'"),
        ({"general.architecture": None}, "general.architecture is missing; expected 'llama'"),
        ({"llama.expert_count": 8}, "expert_count is 8; expected 0"),
        ({"split.count": 3}, "split.count is 3; expected one whole file"),
        ({"llama.block_count": None}, "block_count is missing; expected an int"),
        ({"llama.block_count": 2**31}, "block_count is 2147483648; expected at most 21"),
        ({"llama.block_count": 1}, "tensor 'layers.1.attention_norm.weight' is not part of this model"),
        ({"llama.embedding_length": 2.0}, "embedding_length is 2.0; expected an int"),
        ({"llama.attention.head_count": [4, 4]}, "head_count is [4, 4]; expected an int"),
        ({"llama.attention.head_count_kv": 3}, "4 query heads cannot share 3"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "epsilon is missing; expected a finite number"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan; expected a finite number"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count is 4; expected 6"),
        ({"llama.attention.value_length": 8}, "value_length is 8; expected 6"),
        ({"llama.rope.freq_base": 0.0}, "theta is 0.0; expected"),
        ({"llama.rope.scaling.type": "longrope"}, "scaling.type is 'longrope'; expected 'none', 'linear' or 'yarn'"),
        ({"llama.rope.scaling.type": "yarn"}, "scaling.factor is missing; expected at least 1"),
        ({"llama.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier is 0.1; expected no scaling key except"),
        ({"tokenizer.ggml.eos_token_id": 50}, "special token id 50 is outside the vocabulary of 50"),
        ({"llama.vocab_size": 51}, "'embed.weight' has shape (50, 24); expected (51, 24)"),
    ],
)
def test_refused_metadata(small, metadata, sentence):
    with refusing(sentence):
        read(small(metadata))


@pytest.mark.parametrize(
    ("tensors", "kinds", "sentence"),
    [
        ({"blk.0.attn_q.bias": np.zeros(24, np.float32)}, {}, "tensor 'blk.0.attn_q.bias' is not part of this architecture"),
        (
            {"blk.0.ffn_gate_exps.weight": np.zeros(2, np.float32)},
            {},
            "tensor 'blk.0.ffn_gate_exps.weight' is not part of this architecture",
        ),
        ({"blk.1.ffn_up.weight": None}, {}, "tensor 'layers.1.up.weight' missing"),
        ({"output_norm.weight": np.zeros(23, np.float32)}, {}, "'norm.weight' has shape (23,); expected (24,)"),
        ({"output_norm.weight": np.zeros(24, np.float64)}, {}, "output_norm.weight is quantised as F64; expected one of F32"),
        ({"output_norm.weight": np.zeros(24, np.int32)}, {}, "output_norm.weight is quantised as I32; expected one of F32"),
    ],
)
def test_refused_tensors(small, tensors, kinds, sentence):
    with refusing(sentence):
        read(small(tensors=tensors, kinds=kinds))


def test_rows_that_no_block_divides(small):
    """The package's writer refuses to write such a file, so the number of the type is changed in place."""
    path = small()
    data = path.read_bytes()
    name = b"output_norm.weight"
    at = data.index(name) + len(name) + 4 + 8  # after the number of axes and the one axis
    path.write_bytes(data[:at] + struct.pack("<I", gguf.GGMLQuantizationType.Q8_0) + data[at + 4 :])
    with refusing("output_norm.weight has rows of 24; Q8_0 expects a multiple of 32"):
        read(path)
    path.write_bytes(data[:at] + struct.pack("<I", 999) + data[at + 4 :])
    with refusing("output_norm.weight is quantised as 999"):
        read(path)


def test_header_is_what_the_package_reads(small):
    said = {"a.list": [1, 2, 3], "a.texts": ["x", "ü", ""], "a.flag": True, "a.real": 0.1, "a.text": "…"}
    path = small(said)
    file, reader = read_header(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    rounded = {key: float(np.float32(x)) if isinstance(x, float) else x for key, x in file.metadata.items()}
    assert rounded == fields
    assert said.items() <= file.metadata.items()
    for tensor in reader.tensors:
        stored = file.tensors[tensor.name]
        assert (stored.shape, stored.ggml_type, stored.offset) == (
            tuple(tensor.shape.tolist()[::-1]),
            tensor.tensor_type,
            tensor.data_offset,
        )
    assert len(reader.tensors) == len(file.tensors) == 2 * 9 + len(NAMES.outer)


def test_a_file_cut_short_anywhere_is_refused(small, tmp_path):
    data, cut = small({"tokenizer.ggml.tokens": [str(n) for n in range(50)]}).read_bytes(), tmp_path / "cut.gguf"
    header = read_header(tmp_path / "small.gguf").tensors["token_embd.weight"].offset
    for length in [*range(0, header + 64, 7), len(data) - 64, len(data) // 2]:
        cut.write_bytes(data[:length])
        with pytest.raises(Error, match=r"ends inside|begins with"):
            read(cut)


@settings(max_examples=150, deadline=None)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_header_is_read_or_refused_never_worse(damaged, flips):
    data, header, path = damaged
    bad = bytearray(data)
    for at, flip in flips:
        bad[int(at * header)] ^= flip
    path.write_bytes(bad)
    try:
        config, _ = read(path)
    except Error:
        return
    assert config.vocab_size == 50


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, cell):
    path = tmp_path_factory.mktemp("damaged") / "x.gguf"
    write(path, {**LLAMA, "tokenizer.ggml.tokens": [str(n) for n in range(50)], "llama.vocab_size": 50}, theirs(cell))
    return path.read_bytes(), read_header(path).tensors["token_embd.weight"].offset, path


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "ends inside its header"),
        (b"PK\x03\x04" + bytes(40), r"begins with b'PK\x03\x04'; expected a GGUF file"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "version 50331648 (a big-endian file?); expected 2 or 3"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version 1; expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63), "ends inside its header"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 7, 2**60), "ends inside its header"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 10, 2**64 - 1), "ends inside its header"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "k is an array of type 9"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 13), "k has a value of type 13"),
        (b"GGUF" + struct.pack("<IQQQ1s", 3, 0, 1, 1, b"\xff"), "is not UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + struct.pack("<Q1sIB", 1, b"k", 7, 1) * 2, "k is there twice"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 5), "tensor t has 5 axes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + struct.pack("<Q1sIQIQ", 1, b"t", 1, 1, 0, 0) * 2, "tensor t is there twice"),
        (b"GGUF" + struct.pack("<IQQQ17sII", 3, 0, 1, 17, b"general.alignment", 4, 3), "alignment is 3"),
    ],
)
def test_refused_bytes(tmp_path, data, sentence):
    (tmp_path / "x.gguf").write_bytes(data)
    with refusing(sentence):
        read(tmp_path / "x.gguf")


def test_no_file_and_no_package(small, tmp_path, monkeypatch):
    with refusing("absent.gguf: cannot be read"):
        read(Path(tmp_path / "absent.gguf"))
    path = small()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with refusing('install it to read GGUF files: pip install "msrnn[gguf]"'):
        read(path)
