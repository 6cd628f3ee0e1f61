"""Tests of packed matrices: quantisation against a search over all codes, and the layout of the codes."""

import pytest
import torch

from msrnn.layers.packed.matrix import (
    GROUP,
    SHRINK,
    PackedMatrix,
    fits_int4,
    pack_codes,
    quantise,
    unpack_codes,
)


def random_matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def test_codes_are_stored_in_blocks_of_32_rows():
    codes = torch.randint(16, (64, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack_codes(codes)
    assert packed.shape == (64, 3)
    blocks = packed.view(2, 6, 16)
    for block, column, byte in ((0, 0, 0), (0, 5, 15), (1, 2, 7)):
        low, high = codes[32 * block + byte, column], codes[32 * block + byte + 16, column]
        assert int(blocks[block, column, byte]) == int(low) + 16 * int(high)
    assert torch.equal(unpack_codes(packed), codes)


def test_int4_rounds_every_number_to_the_nearest_code_of_its_group():
    weight = random_matrix(32, 64)
    matrix = quantise(weight, 4)
    assert matrix.codes.dtype == torch.uint8
    assert matrix.codes.shape == (32, 32)
    assert matrix.scales.shape == matrix.zeros.shape == (32, 2)
    found = matrix.dequantise(torch.float64)
    for row in range(32):
        for group in range(2):
            scale, zero = matrix.scales[row, group].double(), matrix.zeros[row, group].double()
            possible = (torch.arange(16) - 8) * scale + zero
            part = slice(group * GROUP, (group + 1) * GROUP)
            nearest = possible[(weight[row, part].double()[:, None] - possible).abs().argmin(1)]
            assert torch.allclose(found[row, part], nearest, rtol=0, atol=1e-12)


def test_int8_rounds_every_number_to_the_nearest_code_of_its_row():
    weight = random_matrix(6, 40)
    matrix = quantise(weight, 8)
    assert matrix.codes.dtype == torch.int8
    assert matrix.zeros is None
    possible = torch.arange(-127, 128) * matrix.scales.double()[:, None]  # (6, 255)
    nearest = (weight.double()[..., None] - possible[:, None]).abs().argmin(-1)
    assert torch.equal(matrix.codes.long(), nearest - 127)


def test_int4_chooses_the_best_of_the_ranges_for_every_group(monkeypatch):
    weight, shape = random_matrix(32, 64), (32, 2, 32)
    errors = []
    for shrink in SHRINK:
        with monkeypatch.context() as patch:
            patch.setattr("msrnn.layers.packed.matrix.SHRINK", (shrink,))
            errors.append((quantise(weight, 4).dequantise() - weight).view(shape).square().sum(-1))
    best = (quantise(weight, 4).dequantise() - weight).view(shape).square().sum(-1)
    assert torch.allclose(best, torch.stack(errors).amin(0), rtol=1e-5, atol=0)
    assert {int(x) for x in torch.stack(errors).argmin(0).unique()} >= {0, 1, 2}


@pytest.mark.parametrize("bits", [4, 8])
def test_constant_groups_and_long_matrices(bits, monkeypatch):
    monkeypatch.setattr("msrnn.layers.packed.matrix.CHUNK_ELEMENTS", 32 * 64)  # several chunks
    weight = random_matrix(96, 64)
    whole = quantise(weight, bits)
    weight[0] = 0
    weight[1] = 0.5
    matrix = quantise(weight, bits)
    assert torch.equal(matrix.dequantise()[0], torch.zeros(64))
    assert torch.allclose(matrix.dequantise()[1], torch.full((64,), 0.5), rtol=2**-8)
    assert torch.equal(matrix.dequantise()[2:], whole.dequantise()[2:])


@pytest.mark.parametrize(("rows", "columns", "fits"), [(32, 32, True), (48, 32, False), (32, 48, False), (64, 1536, True)])
def test_shapes_of_int4(rows, columns, fits):
    assert fits_int4(rows, columns) == fits


def test_dequantise_by_hand():
    codes = torch.full((32, 16), 0x9F, dtype=torch.uint8)  # 15 in the first 16 rows, 9 in the others
    matrix = PackedMatrix(codes, torch.full((32, 1), 0.5).bfloat16(), torch.full((32, 1), 1.0).bfloat16())
    assert matrix.dequantise()[::16, :3].tolist() == [[4.5, 4.5, 4.5], [1.5, 1.5, 1.5]]
    eight = PackedMatrix(torch.tensor([[-127, 3]], dtype=torch.int8), torch.tensor([0.5]).bfloat16())
    assert eight.dequantise(torch.float64).tolist() == [[-63.5, 1.5]]
