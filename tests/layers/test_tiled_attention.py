"""Tiled attention is softmax attention, forward and backward, and never holds all tokens by all rows."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

import msrnn
from msrnn.layers.tiled_attention import Carried, attention, end, start, step

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
    """By name, ``hidden`` of every rank; some tokens see no row."""
    B, N, _, T, R, _ = shape
    generator = torch.Generator().manual_seed(seed)
    padding = torch.arange(R) >= torch.randint(1, R + 1, (B, 1, 1, 1), generator=generator)
    some = torch.rand(B, N, T, R, generator=generator) < 0.4
    some[:, :, T // 2] = True
    return {"none": None, "padding": padding, "any": some, "of one head": some[:1, :1], "rows": some[0, 0, 0], "tr": some[0, 0]}


def softmax_attention(q, k, v, hidden, causal):
    """By PyTorch; a token that sees nothing reads zeros."""
    T, R = q.shape[2], k.shape[2]
    seen = torch.ones(T, R, dtype=torch.bool).tril(R - T) if causal else torch.ones(T, R, dtype=torch.bool)
    seen = (seen if hidden is None else seen & ~hidden).expand(q.shape[0], q.shape[1], T, R)
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT / math.sqrt(q.shape[3])
    weights = logits.masked_fill(~seen, -1e300).softmax(-1) * seen.any(-1, keepdim=True)
    return weights @ v.repeat_interleave(q.shape[1] // k.shape[1], 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_softmax_attention_and_so_are_its_gradients(name, causal, figure):
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


def test_it_is_what_pytorchs_kernel_reads():
    q, k, v = (x.detach() for x in inputs((2, 4, 4, 12, 12, 8)))
    assert torch.allclose(attention(q, k, v, causal=True, tile=(5, 5)), scaled_dot_product_attention(q, k, v, is_causal=True))
    hidden = masks((2, 4, 4, 12, 12, 8))["padding"]
    assert torch.allclose(attention(q, k, v, hidden, tile=(5, 5)), scaled_dot_product_attention(q, k, v, ~hidden))


@pytest.mark.parametrize("tile", [(2, 3), (3, 1)])
def test_gradcheck(tile):
    shape = (2, 2, 1, 4, 5, 2)
    for mask in (None, masks(shape)["any"]):
        assert torch.autograd.gradcheck(lambda *x, mask=mask: attention(*x, mask, causal=True, tile=tile), inputs(shape))


def test_the_rows_may_come_in_any_tiles_and_any_order():
    """An RNN whose state knows nothing of the order of its input: as the rows of H know none."""
    q, k, v = (x.detach()[0, 0] for x in inputs((1, 1, 1, 3, 10, 4)))
    ends = []
    for rows in ([[*range(10)]], [[i] for i in range(10)], [[7, 2], [9], [0, 1, 3, 8], [5, 4, 6]]):
        carried = start(q, 4)
        for some in rows:
            carried = step(carried, q, k[some], v[some])
        ends.append(end(carried))
    for read, L in ends:
        assert torch.allclose(read, (q @ k.mT / 2).softmax(-1) @ v, atol=1e-14)
        assert torch.allclose(L[:, 0], (q @ k.mT / 2).logsumexp(-1), atol=1e-14)


def test_large_logits_do_not_overflow():
    q, k, v = (torch.tensor(x, dtype=torch.float32)[:, None] for x in ([1.0], [900.0, -900.0, 1000.0], [1.0, 2.0, 3.0]))
    carried = start(q, 1)
    for i in range(3):
        carried = step(carried, q, k[i : i + 1], v[i : i + 1])
    assert end(carried)[0].item() == 3.0


def test_a_token_that_sees_no_row_reads_zeros_and_learns_nothing():
    q, k, v = inputs((1, 1, 1, 3, 4, 2))
    hidden = torch.tensor([[False], [True], [False]]).expand(3, 4)
    read = attention(q, k, v, hidden, tile=(2, 3))
    assert read[0, 0, 1].tolist() == [0.0, 0.0]
    read.sum().backward()
    assert q.grad[0, 0, 1].tolist() == [0.0, 0.0]
    assert all(x.grad.isfinite().all() for x in (q, k, v))
    assert end(start(q.detach(), 2))[1].eq(-torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_added_up_in_32(dtype):
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
    """Elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_as_large_as_all_tokens_by_all_rows_is_ever_there(causal):
    T, D = 300, 4
    q, k, v = inputs((1, 1, 1, T, T, D))
    with Largest() as largest:
        attention(q, k, v, causal=causal, tile=(32, 32)).sum().backward()
    assert largest.elements == max(T * D, 32 * 32)
    with Largest() as largest:
        softmax_attention(q, k, v, None, causal).sum().backward()
    assert largest.elements == T * T


def test_what_is_to_come_is_not_looked_at():
    """Half of the tiles, and no NaN that stands there comes in."""
    q, k, v = (x.detach() for x in inputs((1, 1, 1, 8, 8, 2)))
    expected = attention(q, k, v, causal=True)
    k[:, :, 4:], v[:, :, 4:] = torch.nan, torch.nan
    assert torch.equal(attention(q, k, v, causal=True, tile=(4, 4))[:, :, :4], expected[:, :, :4])


@pytest.mark.parametrize(
    ("change", "words"),
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
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(msrnn.Error, match=r"^tiled attention: ") as refused:
        change(*inputs((1, 4, 2, 5, 6, 4)))
    assert words in str(refused.value)


def test_the_state_is_three_tensors():
    q = torch.zeros(2, 3, 4)
    assert [tuple(x.shape) for x in start(q, 5)] == [(2, 3, 1), (2, 3, 1), (2, 3, 5)]
    assert Carried._fields == ("m", "l", "o")
