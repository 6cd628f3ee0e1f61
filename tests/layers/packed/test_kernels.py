"""Tests of products with packed matrices: PyTorch's kernels and the dequantised way, against float64."""

import pytest
import torch

from msrnn.layers import emulation
from msrnn.layers.packed import kernels
from msrnn.layers.packed.kernels import (
    KERNEL_BLOCK_ROWS,
    dequantise_blocks,
    from_blocks,
    int4_linear,
    int8_linear,
    interleave_scales,
    to_blocks,
)
from msrnn.layers.packed.matrix import quantise, unpack_codes

BOUND = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(y, expected):
    return float((y.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("block", [32, 64])
def test_blocks_keep_all_codes(block):
    packed = quantise(random(128, 96), 4).codes
    blocks = to_blocks(packed, block)
    assert blocks.shape == packed.shape
    assert torch.equal(from_blocks(blocks, block), packed)
    codes = unpack_codes(packed).view(-1, 2, block // 2, 96)  # rows of each half of each block
    found = blocks.view(-1, 96, block // 2)
    assert torch.equal(found & 15, codes[:, 0].transpose(1, 2))
    assert torch.equal(found >> 4, codes[:, 1].transpose(1, 2))


@pytest.mark.skipif(KERNEL_BLOCK_ROWS is None, reason="this CPU has no int4 kernel")
def test_blocks_are_those_that_pytorch_makes():
    matrix = quantise(random(192, 64), 4)
    codes = unpack_codes(matrix.codes).int()
    expected = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    assert torch.equal(to_blocks(matrix.codes, KERNEL_BLOCK_ROWS).flatten(), expected.flatten())


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (2, 5, 64), (40, 64), (0, 64)])
def test_products_equal_float64(shape, dtype, native, kernel, monkeypatch):
    monkeypatch.setattr(emulation, "HAS_NATIVE_16BIT", dict.fromkeys((torch.bfloat16, torch.float16), native))
    monkeypatch.setattr(kernels, "PART_ELEMENTS", 64 * 64)  # several parts
    if not kernel:
        monkeypatch.setattr(kernels, "MAX_KERNEL_ROWS", {4: 0, 8: 0})
    x, weight = random(*shape).to(dtype), random(192, 64, seed=1)
    four, eight = quantise(weight, 4), quantise(weight, 8)
    blocks = to_blocks(four.codes, KERNEL_BLOCK_ROWS or 32)
    scales = interleave_scales(four).to(torch.promote_types(dtype, torch.float32) if dtype == torch.float16 else dtype)
    for y, matrix in (
        (int4_linear(x, blocks, scales), four),
        (int8_linear(x, eight.codes, eight.scales.to(scales.dtype)), eight),
    ):
        assert y.dtype == dtype
        assert y.shape == (*shape[:-1], 192)
        if x.numel():
            assert relative_error(y, x.double() @ matrix.dequantise(torch.float64).T) < BOUND[dtype]


@pytest.mark.parametrize(
    "x",
    [random(3, 128)[:, ::2], random(64, 3).T, random(1, 64).expand(3, 64), random(2, 64, 3).mT],
    ids=["strided", "transposed", "expanded", "transposed-3d"],
)
def test_inputs_of_any_strides(x):
    x, weight = x.bfloat16(), random(64, 64, seed=1)
    four, eight = quantise(weight, 4), quantise(weight, 8)
    y = int4_linear(x, to_blocks(four.codes, KERNEL_BLOCK_ROWS or 32), interleave_scales(four))
    assert relative_error(y, x.double() @ four.dequantise(torch.float64).T) < BOUND[torch.bfloat16]
    y = int8_linear(x, eight.codes, eight.scales)
    assert relative_error(y, x.double() @ eight.dequantise(torch.float64).T) < BOUND[torch.bfloat16]


@pytest.mark.parametrize("native", [True, False])
def test_products_with_codes_may_exceed_float16(native, monkeypatch):
    monkeypatch.setattr(emulation, "HAS_NATIVE_16BIT", {torch.float16: native})
    matrix = quantise(0.02 * random(32, 512), 8)
    x = 8 * matrix.codes[:1].sign().half()  # the sum of its products with codes is far above 65504
    y = int8_linear(x, matrix.codes, matrix.scales.half())
    assert relative_error(y, x.double() @ matrix.dequantise(torch.float64).T) < BOUND[torch.float16]


def test_few_rows_use_the_kernel_and_many_rows_do_not(monkeypatch):
    used = []
    for name in ("_weight_int4pack_mm_for_cpu", "_weight_int8pack_mm"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *x, name=name, plain=plain: used.append((name, len(x[0]))) or plain(*x))
    weight = random(64, 64)
    four, eight = quantise(weight, 4), quantise(weight, 8)
    blocks, scales = to_blocks(four.codes, KERNEL_BLOCK_ROWS or 32), interleave_scales(four)
    for rows in (1, 4, 5, 64, 65):
        int4_linear(random(rows, 64).bfloat16(), blocks, scales)
        int8_linear(random(rows, 64).bfloat16(), eight.codes, eight.scales)
    four_rows = [1, 4, 5, 64] if KERNEL_BLOCK_ROWS else []
    assert [n for name, n in used if "int4" in name] == four_rows
    assert [n for name, n in used if "int8" in name] == [1, 4]


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_can_be_differentiated(bits):
    weight = random(64, 64)
    matrix = quantise(weight, bits)
    x = random(2, 64).bfloat16().requires_grad_()
    if bits == 4:
        y = int4_linear(x, to_blocks(matrix.codes, KERNEL_BLOCK_ROWS or 32), interleave_scales(matrix))
    else:
        y = int8_linear(x, matrix.codes, matrix.scales)
    y.sum().backward()
    expected = matrix.dequantise().sum(0).expand(2, -1)
    assert torch.allclose(x.grad.float(), expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


def test_dequantised_blocks_are_the_transposed_matrix():
    matrix = quantise(random(128, 96), 4)
    expected = matrix.dequantise(torch.float64)
    for block in (32, 64):
        low, high = dequantise_blocks(to_blocks(matrix.codes, block), interleave_scales(matrix), block, torch.float64)
        halves = expected.unflatten(0, (-1, 2, block // 2))
        assert torch.allclose(low.T, halves[:, 0].flatten(0, 1), rtol=0, atol=1e-15)
        assert torch.allclose(high.T, halves[:, 1].flatten(0, 1), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("E", "offset"), [(24, 0), (40, 0), (64, 8), (64, 0), (48, 16)])
@pytest.mark.parametrize("rows", [1, 4])
def test_int8_rows_of_any_alignment(rows, E, offset):
    """The kernel of AVX-512 ends the process for rows that do not begin at multiples of 16 bytes."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-127, 128, (50 * E + 64,), generator=generator, dtype=torch.int8)
    codes = numbers[offset : offset + 50 * E].view(50, E)
    x = torch.randn(rows * E + 8, generator=generator).bfloat16()[8:].view(rows, E)  # begins at byte 16
    scales = torch.rand(50, generator=generator).bfloat16()
    expected = x.double() @ (codes.double() * scales.double()[:, None]).T
    torch.testing.assert_close(
        int8_linear(x, codes, scales).double(), expected, rtol=0.02, atol=0.02 * expected.abs().max().item()
    )
