"""Tests of tiled attention against softmax attention, forward and backward, and of its memory."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

import msrnn
from msrnn.layers.tiled_attention import SoftmaxState, attention, finalize, init, update

SHAPES = {  # B, N, K, T, R, D
    "one head": (1, 1, 1, 5, 5, 4),
    "grouped": (2, 6, 2, 7, 11, 4),
    "one key head": (1, 4, 1, 9, 9, 3),
    "one token": (3, 2, 2, 1, 13, 4),
    "more tokens than rows": (1, 2, 1, 8, 3, 4),
}
TILES = [(1, 1), (3, 2), (4, 5), (64, 64)]


def inputs(shape, dtype=torch.float64, seed=0):
    B, N, K, T, R, D = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = ((B, N, T, D), (B, K, R, D), (B, K, R, D))
    return [(2 * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_() for size in sizes]


def masks(shape, seed=0):
    """Masks of every rank by name, True where visible; some tokens see no row."""
    B, N, _, T, R, _ = shape
    generator = torch.Generator().manual_seed(seed)
    padding = torch.arange(R) < torch.randint(1, R + 1, (B, 1, 1, 1), generator=generator)
    some = torch.rand(B, N, T, R, generator=generator) >= 0.4
    some[:, :, T // 2] = False
    return {"none": None, "padding": padding, "any": some, "of one head": some[:1, :1], "rows": some[0, 0, 0], "tr": some[0, 0]}


def softmax_attention(q, k, v, visible, causal):
    """Return the output of plain softmax attention; zeros for a token that sees no row."""
    T, R = q.shape[2], k.shape[2]
    seen = torch.ones(T, R, dtype=torch.bool).tril(R - T) if causal else torch.ones(T, R, dtype=torch.bool)
    seen = (seen if visible is None else seen & visible).expand(q.shape[0], q.shape[1], T, R)
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT / math.sqrt(q.shape[3])
    weights = logits.masked_fill(~seen, -1e300).softmax(-1) * seen.any(-1, keepdim=True)
    return weights @ v.repeat_interleave(q.shape[1] // k.shape[1], 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_output_and_gradients_equal_softmax_attention(name, causal, figure):
    worst = 0.0
    q, k, v = inputs(SHAPES[name])
    for mask in masks(SHAPES[name]).values():
        expected = softmax_attention(q, k, v, mask, causal)
        back = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        wanted = torch.autograd.grad(expected, (q, k, v), back)
        for tile in TILES:
            read = attention(q, k, v, mask, causal=causal, tile=tile)
            found = torch.autograd.grad(read, (q, k, v), back)
            for a, b in zip((read, *found), (expected, *wanted), strict=True):
                worst = max(worst, float((a - b).detach().abs().max()))
    assert worst < 1e-12
    figure(f"tiled attention, {name}, causal={causal}: differs from softmax attention by {worst:.1e}, gradients included")


def test_output_equals_pytorchs_kernel():
    q, k, v = (x.detach() for x in inputs((2, 4, 4, 12, 12, 8)))
    assert torch.allclose(attention(q, k, v, causal=True, tile=(5, 5)), scaled_dot_product_attention(q, k, v, is_causal=True))
    visible = masks((2, 4, 4, 12, 12, 8))["padding"]
    assert torch.allclose(attention(q, k, v, visible, tile=(5, 5)), scaled_dot_product_attention(q, k, v, visible))


@pytest.mark.parametrize("tile", [(2, 3), (3, 1)])
def test_gradcheck(tile):
    shape = (2, 2, 1, 4, 5, 2)
    for mask in (None, masks(shape)["any"]):
        assert torch.autograd.gradcheck(lambda *x, mask=mask: attention(*x, mask, causal=True, tile=tile), inputs(shape))


def test_tiles_and_order_of_rows_do_not_matter():
    """The order of the rows in H has no meaning either."""
    q, k, v = (x.detach()[0, 0] for x in inputs((1, 1, 1, 3, 10, 4)))
    ends = []
    for rows in ([[*range(10)]], [[i] for i in range(10)], [[7, 2], [9], [0, 1, 3, 8], [5, 4, 6]]):
        carried = init(q, 4)
        for some in rows:
            carried = update(carried, q, k[some], v[some])
        ends.append(finalize(carried))
    for read, L in ends:
        assert torch.allclose(read, (q @ k.mT / 2).softmax(-1) @ v, atol=1e-14)
        assert torch.allclose(L[:, 0], (q @ k.mT / 2).logsumexp(-1), atol=1e-14)


def test_large_logits_do_not_overflow():
    q, k, v = (torch.tensor(x, dtype=torch.float32)[:, None] for x in ([1.0], [900.0, -900.0, 1000.0], [1.0, 2.0, 3.0]))
    carried = init(q, 1)
    for i in range(3):
        carried = update(carried, q, k[i : i + 1], v[i : i + 1])
    assert finalize(carried)[0].item() == 3.0


def test_a_token_that_sees_no_row_has_output_and_gradient_zero():
    q, k, v = inputs((1, 1, 1, 3, 4, 2))
    visible = torch.tensor([[True], [False], [True]]).expand(3, 4)
    read = attention(q, k, v, visible, tile=(2, 3))
    assert read[0, 0, 1].tolist() == [0.0, 0.0]
    read.sum().backward()
    assert q.grad[0, 0, 1].tolist() == [0.0, 0.0]
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert finalize(init(q.detach(), 2))[1].eq(-torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_16_bit_values_are_computed_in_float32(dtype):
    q, k, v = inputs((1, 2, 1, 6, 6, 4), dtype)
    read = attention(q, k, v, causal=True, tile=(4, 4))
    read.float().square().sum().backward()
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = softmax_attention(*wide, None, True)
    expected.square().sum().backward()
    assert read.dtype == q.grad.dtype == dtype
    bound = 4 * torch.finfo(dtype).eps
    for a, b in zip((read, q.grad, k.grad, v.grad), (expected, *(x.grad for x in wide)), strict=True):
        assert (a.double() - b).abs().max() < bound * b.abs().max()


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("causal", [False, True])
def test_no_tensor_has_all_tokens_by_all_rows(causal):
    T, D = 300, 4
    q, k, v = inputs((1, 1, 1, T, T, D))
    with Largest() as largest:
        attention(q, k, v, causal=causal, tile=(32, 32)).sum().backward()
    assert largest.elements == max(T * D, 32 * 32)
    with Largest() as largest:
        softmax_attention(q, k, v, None, causal).sum().backward()
    assert largest.elements == T * T


def test_causal_attention_skips_later_tiles():
    """NaN in skipped tiles does not reach the output."""
    q, k, v = (x.detach() for x in inputs((1, 1, 1, 8, 8, 2)))
    expected = attention(q, k, v, causal=True)
    k[:, :, 4:], v[:, :, 4:] = torch.nan, torch.nan
    assert torch.equal(attention(q, k, v, causal=True, tile=(4, 4))[:, :, :4], expected[:, :, :4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k, v: attention(q[0], k, v), "expected (B, N, T, D)"),
        (lambda q, k, v: attention(q[:, :3], k, v), "expected (B, N, T, D)"),
        (lambda q, k, v: attention(q, k[..., :1], v), "expected (B, N, T, D)"),
        (lambda q, k, v: attention(q, k, v[:, :, 1:]), "expected (B, N, T, D)"),
        (lambda q, k, v: attention(q, k.float(), v), "torch.float32"),
        (lambda q, k, v: attention(q, k, v, torch.zeros(7, 6)), "expected bool"),
        (lambda q, k, v: attention(q, k, v, torch.zeros(7, 6, dtype=torch.bool)), "expected bool"),
        (lambda q, k, v: attention(q, k, v, tile=(0, 4)), "tile is (0, 4)"),
        (lambda q, k, v: attention(q, k, v, tile=5), "tile is 5"),
        (lambda q, k, v: attention(q, k, v, tile=(2.5, 2)), "tile is (2.5, 2)"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(msrnn.Error, match=r"^tiled attention: ") as refused:
        call(*inputs((1, 4, 2, 5, 6, 4)))
    assert message in str(refused.value)


def test_the_state_is_three_tensors():
    q = torch.zeros(2, 3, 4)
    assert [tuple(x.shape) for x in init(q, 5)] == [(2, 3, 1), (2, 3, 1), (2, 3, 5)]
    assert SoftmaxState._fields == ("m", "l", "o")
