"""Dequantisation compared with the gguf package and with naive decoders."""

import struct
import zlib

import gguf
import numpy as np
import pytest
from support.gguf_files import METADATA, write
from support.refusals import refusing

from converters.gguf.header import read_header
from converters.gguf.reader import open_checkpoint
from converters.gguf.tensors import TYPES, read_tensor


def nibble(data, j, half):
    return data[j % half] & 15 if j < half else data[j % half] >> 4


def half(data, at):
    return float(np.frombuffer(bytes(data[at : at + 2]), np.float16)[0])


def k_scale(scales, j):
    """The 6-bit scale and minimum of sub-block j of eight, packed into 12 bytes (Q4_K, Q5_K)."""
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    return (scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4), (scales[j + 4] >> 4) | (scales[j] >> 6 << 4)


FP4 = [sign * x for sign in (1, -1) for x in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]
"""The values of e2m1."""
IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
"""The values of IQ4_NL in ggml-common.h."""


def e4m3(byte):
    """The value of an unsigned e4m3 number."""
    return (byte & 7) * 2.0**-9 if byte < 8 else (1 + (byte & 7) / 8) * 2.0 ** ((byte >> 3) - 7)


def naive(ggml_type, b):
    """Dequantise one block value by value, from the layout of ggml's structs."""
    if ggml_type == "Q8_0":
        return [half(b, 0) * struct.unpack("b", b[2 + j : 3 + j])[0] for j in range(32)]
    if ggml_type == "Q4_0":
        return [half(b, 0) * (nibble(b[2:], j, 16) - 8) for j in range(32)]
    if ggml_type == "Q4_1":
        return [half(b, 0) * nibble(b[4:], j, 16) + half(b, 2) for j in range(32)]
    if ggml_type == "Q5_0":
        high = int.from_bytes(b[2:6], "little")
        return [half(b, 0) * ((nibble(b[6:], j, 16) | (high >> j & 1) << 4) - 16) for j in range(32)]
    if ggml_type == "Q5_1":
        high = int.from_bytes(b[4:8], "little")
        return [half(b, 0) * (nibble(b[8:], j, 16) | (high >> j & 1) << 4) + half(b, 2) for j in range(32)]
    if ggml_type in ("Q4_K", "Q5_K"):
        out = []
        for j in range(256):
            scale, low = k_scale(b[4:16], j // 32)
            quants = b[16:] if ggml_type == "Q4_K" else b[48:]
            q = nibble(quants[j // 64 * 32 :], j % 64, 32)
            if ggml_type == "Q5_K":
                q |= (b[16 + j % 32] >> j // 32 & 1) << 4
            out.append(half(b, 0) * scale * q - half(b, 2) * low)
        return out
    if ggml_type == "Q6_K":
        out = []
        for j in range(256):
            part, r = divmod(j, 128)
            low = nibble(b[64 * part + r % 64 :], 0, 1) if r < 64 else b[64 * part + r % 64] >> 4
            high = b[128 + 32 * part + r % 32] >> 2 * (r // 32) & 3
            scale = struct.unpack("b", b[192 + j // 16 : 193 + j // 16])[0]
            out.append(half(b, 208) * scale * ((low | high << 4) - 32))
        return out
    if ggml_type == "TQ2_0":
        return [half(b, 64) * ((b[32 * (j // 128) + j % 32] >> 2 * (j % 128 // 32) & 3) - 1) for j in range(256)]
    if ggml_type == "TQ1_0":  # five trits in a byte: 32 bytes, then 16 bytes, then 4 bytes of four trits
        places = [*((j % 32, j // 32) for j in range(160)), *((32 + j % 16, j // 16) for j in range(80))]
        places += [(48 + j % 4, j // 4) for j in range(16)]
        return [half(b, 52) * ((b[at] * 3**n % 256 * 3 >> 8) - 1) for at, n in places]
    if ggml_type == "MXFP4":
        return [2.0 ** (b[0] - 127) * FP4[nibble(b[1:], j, 16)] for j in range(32)]
    if ggml_type == "NVFP4":
        return [e4m3(b[j // 16]) * FP4[nibble(b[4 + 8 * (j // 16) :], j % 16, 8)] for j in range(64)]
    if ggml_type == "IQ4_NL":
        return [half(b, 0) * IQ4[nibble(b[2:], j, 16)] for j in range(32)]
    if ggml_type == "IQ4_XS":
        out = []
        for j in range(256):
            part = j // 32
            low = b[4 + part // 2] >> 4 * (part % 2) & 15
            high = int.from_bytes(b[2:4], "little") >> 2 * part & 3
            out.append(half(b, 0) * ((low | high << 4) - 32) * IQ4[nibble(b[8 + 16 * part :], j % 32, 16)])
        return out
    return None


HALVES = {
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "NVFP4": (), "IQ1_M": ()},
    **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"), (0,)),
}
"""Where float16 scales are in a block, for the types that the package cannot write."""
ERRORS = {"F32": 1e-9, "F16": 2e-3, "BF16": 2e-2, "MXFP4": 1.5, "TQ1_0": 2.5, "TQ2_0": 2.5}
"""Maximum rounding error of standard normal values; 0.5 for other types."""


def test_all_types_of_the_package_are_read():
    package = {x.name for x in gguf.quants._type_traits}
    assert set(TYPES) == package | {"F32", "F16"}


@pytest.mark.parametrize("ggml_type", TYPES)
def test_dequantisation_equals_the_package_and_a_naive_decoder(tmp_path, ggml_type):
    number = gguf.GGMLQuantizationType[ggml_type]
    block, size = gguf.GGML_QUANT_SIZES[number]
    random = np.random.default_rng(zlib.crc32(ggml_type.encode()))
    values = random.standard_normal((50, 512)).astype(np.float32)
    if ggml_type in HALVES:  # the package cannot write these: random blocks with finite scales
        data = random.integers(0, 256, (50, 512 // block, size), np.uint8)
        if ggml_type == "NVFP4":  # four scales in e4m3, of which 0x7F is NaN
            data[..., :4] = random.integers(1, 0x7F, (*data.shape[:2], 4))
        if ggml_type == "IQ1_M":  # a float16 scale, 1.0, in the upper four bits of four numbers
            data[..., [49, 51, 53, 55]] = data[..., [49, 51, 53, 55]] & 15 | np.array([0, 0, 0xC0, 0x30], np.uint8)
        for at in HALVES[ggml_type]:
            data[..., at : at + 2] = random.standard_normal(data.shape[:2]).astype(np.float16)[..., None].view(np.uint8)
        data = data.reshape(50, -1)
    else:
        data = gguf.quants.quantize(values, number)
    wide = {"llama.embedding_length": 512, "llama.block_count": 1, "llama.feed_forward_length": 1}
    tensors = {"token_embd.weight": data, "output_norm.weight": values[0], "output.weight": values}
    ones = {"attn_norm": (512,), "ffn_norm": (512,), "attn_q": (24, 512), "attn_k": (12, 512), "attn_v": (12, 512)}
    ones |= {"attn_output": (512, 24), "ffn_gate": (1, 512), "ffn_up": (1, 512), "ffn_down": (512, 1)}
    tensors |= {f"blk.0.{name}.weight": np.ones(shape, np.float32) for name, shape in ones.items()}
    path = write(tmp_path / "x.gguf", {**METADATA, **wide}, tensors, {"token_embd.weight": number})
    found = read_tensor(read_header(path), "token_embd.weight").numpy()
    assert np.array_equal(found, gguf.quants.dequantize(data, number))
    if ggml_type in HALVES:
        assert found.std() > 1
    else:
        assert np.abs(found - values).max() < ERRORS.get(ggml_type, 0.5)
    for row in (0, 49):
        first = bytes(data[row, :size]) if data.dtype == np.uint8 else b""
        expected = naive(ggml_type, first)
        if expected is not None:
            assert np.allclose(found[row, :block], expected, rtol=1e-5, atol=1e-6)


def test_a_tensor_is_a_copy_of_the_file(write_tiny):
    path = write_tiny()
    first = open_checkpoint(path).tensors["embed.weight"].read()
    path.unlink()
    first.zero_()  # writable although the file is deleted
    assert not first.any()


def test_bytes_after_the_last_tensor_are_refused(write_tiny):
    path = write_tiny()
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    with refusing("where its last tensor ends"):
        open_checkpoint(path)


def test_row_length_must_be_a_multiple_of_the_block(write_tiny):
    """The package refuses to write such a file, so the test changes the type number in place."""
    path = write_tiny()
    data = path.read_bytes()
    name = b"output_norm.weight"
    at = data.index(name) + len(name) + 4 + 8  # after the number of axes and the one axis
    path.write_bytes(data[:at] + struct.pack("<I", gguf.GGMLQuantizationType.Q8_0) + data[at + 4 :])
    with refusing("output_norm.weight has rows of 24; Q8_0 expects a multiple of 32"):
        open_checkpoint(path)
    path.write_bytes(data[:at] + struct.pack("<I", 999) + data[at + 4 :])
    with refusing("output_norm.weight is quantised as 999"):
        open_checkpoint(path)


def test_a_matrix_is_multiplied_by_its_scale(write_tiny, cell):
    """Files in NVFP4 have one factor for each matrix."""
    scale = {"blk.1.attn_q.scale": np.array([0.25], np.float32), "output.scale": np.array([2.0], np.float32)}
    plain, scaled = (
        {name: x.read() for name, x in open_checkpoint(write_tiny(tensors=more)).tensors.items()} for more in ({}, scale)
    )
    assert plain.keys() == scaled.keys()
    for name, x in plain.items():
        assert np.array_equal(scaled[name], x * {"layers.1.q.weight": 0.25, "head.weight": 2.0}.get(name, 1.0)), name
    for wrong in ({"blk.7.attn_q.scale": np.ones(1, np.float32)}, {"blk.1.attn_q.scale": np.ones(24, np.float32)}):
        with refusing(f"{next(iter(wrong))}' is not part of this architecture"):
            open_checkpoint(write_tiny(tensors=wrong))


def test_tables_of_old_conversions_are_skipped(write_tiny):
    tables = {"blk.0.attn_rot_embd.weight": np.ones(3, np.float32), "blk.1.attn_rot_embd.weight": np.ones(3, np.float32)}
    assert open_checkpoint(write_tiny(tensors=tables)).tensors.keys() == open_checkpoint(write_tiny()).tensors.keys()
