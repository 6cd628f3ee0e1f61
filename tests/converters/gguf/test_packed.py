"""Matrices that keep their own four bits, compared with the gguf package's own dequantisation."""

import gguf
import numpy as np
import pytest
import torch
from support.gguf_files import METADATA, to_gguf, write
from support.packed_models import GGUF_SHAPES, SHAPES, dequantised
from support.tiny_models import assert_close, random_tokens, tiny_cell

import converters
import msrnn
from msrnn.layers.packed.modules import Int4Linear, Int8Embedding, Int8Linear, PackedModule

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")
WIDE = METADATA | GGUF_SHAPES
TEXT = random_tokens(3, 2, 9)
LAYER = ("q", "k", "v", "o", "gate", "up", "down")


def write_quantised(path, types, metadata=WIDE, extra=None, **fields):
    """Write a tiny cell; ``types`` maps a part of GGUF's names to a quantisation type, and other tensors are float32."""
    cell = tiny_cell(dtype=torch.float32, **(SHAPES | fields))
    tensors, raw = to_gguf(cell) | (extra or {}), {}
    for name, x in tensors.items():
        kind = next((kind for part, kind in types.items() if part in name and x.ndim == 2), None)
        if kind is not None:
            raw[name] = gguf.GGMLQuantizationType[kind]
            tensors[name] = gguf.quants.quantize(np.ascontiguousarray(x), raw[name])
    return write(path, metadata, tensors, raw)


@pytest.mark.filterwarnings("ignore:.*matrices keep their own 4 bits")
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_the_numbers_are_those_of_the_file_up_to_bfloat16_scales(kind, tmp_path):
    path = write_quantised(tmp_path / "x.gguf", {"blk": kind})
    exact = converters.load(path)  # dequantised by the gguf package; rows of q and k reordered
    packed = converters.load(path, weights="packed")
    assert packed.dtype == torch.bfloat16
    assert exact.dtype == torch.float32
    for n, layer in enumerate(packed.layers):
        for name in LAYER:
            module = layer.get_submodule(name)
            assert type(module) is Int4Linear
            found, expected = module.matrix.dequantise(), exact.get_parameter(f"layers.{n}.{name}.weight")
            # s and z are rounded to 8 significant bits, by at most 2⁻⁸ of each, and a code is at most 8 away from the middle
            scales, zeros = (x.float().repeat_interleave(32, 1) for x in (module.matrix.scales, module.matrix.zeros))
            bound = (8 * scales.abs() + zeros.abs()) * 2.0**-8 + 1e-6
            assert ((found - expected).abs() <= bound).all()
            # the codes are kept: those of the nearest other numbers are one scale away
            assert ((found - expected).abs() < 0.5 * scales.abs()).all()


@pytest.mark.filterwarnings("ignore:.*matrices keep their own 4 bits")
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_scales_that_bfloat16_holds_are_exact(kind, tmp_path):
    """Blocks made by hand with random codes: d and m are powers of two."""
    rng, cell = np.random.default_rng(0), tiny_cell(dtype=torch.float32, **SHAPES)
    tensors, types = to_gguf(cell), {}
    for name, x in tensors.items():
        if name.startswith("blk") and x.ndim == 2:
            numbers = 2.0 ** rng.integers(-8, -3, (*x.shape[:1], x.shape[1] // 32, 1 if kind == "Q4_0" else 2))
            numbers[..., 1:] *= -1
            codes = rng.integers(0, 256, (*numbers.shape[:2], 16), dtype=np.uint8)
            blocks = np.concatenate((numbers.astype(np.float16).view(np.uint8), codes), axis=-1)
            tensors[name], types[name] = blocks.reshape(len(x), -1), gguf.GGMLQuantizationType[kind]
    path = write(tmp_path / "x.gguf", WIDE, tensors, types)
    exact, packed = converters.load(path), converters.load(path, weights="packed", dtype=torch.float32)
    for n, layer in enumerate(packed.layers):
        for name in LAYER:
            found = layer.get_submodule(name).matrix.dequantise()
            assert torch.equal(found, exact.get_parameter(f"layers.{n}.{name}.weight")), name


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_convert_and_load_give_the_same_cell(kind, tmp_path):
    path = write_quantised(tmp_path / "x.gguf", {"blk": kind, "token_embd": "Q8_0"}, tied=True)
    with pytest.warns(UserWarning, match="14 of 15 matrices keep their own 4 bits; quantised again, to 8 bits: embed$"):
        loaded = converters.load(path, weights="packed")
    with pytest.warns(UserWarning, match="14 of 15 matrices keep their own 4 bits"):
        converters.convert(path, tmp_path / "own", weights="packed")
    again = msrnn.load(tmp_path / "own")
    assert again.state_dict().keys() == loaded.state_dict().keys()
    assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in again.state_dict().items())
    assert torch.equal(again(TEXT)[0], loaded(TEXT)[0])
    wide = msrnn.load(tmp_path / "own", dtype=torch.float64)
    assert_close(wide(TEXT)[0], dequantised(loaded)(TEXT)[0])
    # Q4_0 and Q4_1 can be quantised again by the general rule too, without a warning
    assert type(converters.load(path, weights="int4").layers[0].q) is Int4Linear


def test_matrices_of_other_types_get_eight_bits_and_are_named(tmp_path):
    types = {"ffn_down": "Q8_0", "attn_v": "Q5_0", "blk": "Q4_1", "output.weight": "Q4_0"}
    path = write_quantised(tmp_path / "x.gguf", types, tied=False, vocab_size=64)
    message = "11 of 16 matrices keep their own 4 bits; quantised again, to 8 bits: embed, .* and 2 more$"
    with pytest.warns(UserWarning, match=message) as warned:
        cell = converters.load(path, weights="packed")
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match=message) as warned:
        converters.convert(path, tmp_path / "own", weights="packed")
    assert warned[0].filename == __file__
    assert type(cell.embed) is Int8Embedding
    assert type(cell.head) is Int4Linear
    kinds = {name: type(cell.layers[0].get_submodule(name)) for name in LAYER}
    assert kinds == {name: Int8Linear if name in ("v", "down") else Int4Linear for name in LAYER}


@pytest.mark.filterwarnings("ignore:.*matrices keep their own 4 bits")
def test_matrices_whose_rows_do_not_fit_get_eight_bits(tmp_path):
    path = write_quantised(
        tmp_path / "x.gguf", {"blk": "Q4_1", "output.weight": "Q4_1"}, tied=False, vocab_size=50
    )  # 50 is no multiple of 32
    cell = converters.load(path, weights="packed")
    assert type(cell.head) is Int8Linear
    assert type(cell.layers[0].q) is Int4Linear


def test_a_file_without_such_matrices_is_refused(tmp_path):
    path = write_quantised(tmp_path / "x.gguf", {"blk": "Q8_0"})
    for call in (lambda **x: converters.load(path, **x), lambda **x: converters.convert(path, tmp_path / "own", **x)):
        with pytest.raises(msrnn.Error, match="has no matrices of type Q4_0 or Q4_1; expected 'int4' or 'int8'"):
            call(weights="packed")
    assert not (tmp_path / "own").exists()
    assert {m.bits for m in converters.load(path, weights="int4").modules() if isinstance(m, PackedModule)} == {4, 8}


@pytest.mark.filterwarnings("ignore:.*matrices keep their own 4 bits")
def test_a_matrix_with_a_factor_of_its_own_is_not_kept(tmp_path):
    """NVFP4 files have such factors; the four bits of the matrix are not all of its numbers."""
    extra = {"blk.0.ffn_up.scale": np.array([2.5], np.float32)}
    path = write_quantised(tmp_path / "x.gguf", {"blk": "Q4_1"}, extra=extra)
    exact, cell = converters.load(path), converters.load(path, weights="packed")
    assert type(cell.layers[0].up) is Int8Linear
    assert type(cell.layers[1].up) is Int4Linear
    expected = exact.layers[0].up.weight
    bound = expected.abs().amax(1, keepdim=True) / 127 * 0.51 + 2.0**-8 * expected.abs()
    assert ((cell.layers[0].up.matrix.dequantise() - expected).abs() <= bound).all()


def test_damaged_files_are_refused(tmp_path):
    path = write_quantised(tmp_path / "x.gguf", {"blk": "Q4_1"})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(msrnn.Error, match=r"x\.gguf"):
        converters.load(path, weights="packed")


@pytest.mark.filterwarnings("ignore:.*matrices keep their own 4 bits")
def test_real_weights_keep_their_bits(gguf_path, smollm):
    """SmolLM2: q and k have different numbers of heads, and the embedding is Q8_0."""
    cell = converters.load(gguf_path, weights="packed")
    for n in (0, 29):
        for name in LAYER:
            module, expected = cell.layers[n].get_submodule(name), smollm.layers[n].get_submodule(name).weight
            assert type(module) is Int4Linear
            error = (module.matrix.dequantise() - expected).norm() / expected.norm()
            assert error < 3e-3, (n, name)  # 2⁻⁸ of scales and zeros at most
    error = (cell.embed.matrix.dequantise() - smollm.embed.weight).norm() / smollm.embed.weight.norm()
    assert error < 2e-2  # Q8_0 has a scale for 32 numbers, and int8 has one for a row
