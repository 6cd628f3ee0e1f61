"""Rope settings that make no sense are refused; that they are right is `test_transformers.py`'s."""

import pytest
import torch

import msrnn
from msrnn.layers.rotary import Dynamic, Linear, Llama3, Rope, Yarn, rotate


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Rope(0.0), "theta is 0.0"),
        (lambda: Rope(1.0), "theta is 1.0"),
        (lambda: Rope(float("nan")), "theta is nan"),
        (lambda: Rope(float("inf")), "theta is inf"),
        (lambda: Rope(10**400), "theta"),
        (lambda: Rope(True), "theta is True"),
        (lambda: Linear(10.0, "2"), "factor is '2'"),
        (lambda: Dynamic(10.0, 2.0, 0), "length is 0"),
        (lambda: Llama3(10.0, 2.0, 4.0, 1.0, 8), "high is 1.0"),
        (lambda: Yarn(10.0, 2.0, 8, -1.0), "attention_factor is -1.0"),
    ],
)
def test_refusals(build, said):
    with pytest.raises(msrnn.Error, match=said):
        build()


def test_a_rotation_turns_pairs_half_a_head_apart():
    """Against complex numbers: pair i is x[i] + 1j x[i + D/2], turned by t · f_i."""
    rope, D, position = Rope(100.0), 6, torch.tensor([0, 5])
    x = torch.randn(2, 3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, rope.rotation(position, D, torch.float64))
    frequencies = torch.tensor([100.0 ** (-2 * i / D) for i in range(3)], dtype=torch.float64)
    expected = torch.complex(x[..., :3], x[..., 3:]) * torch.exp(1j * position[:, None, None] * frequencies)
    assert torch.allclose(turned, torch.cat((expected.real, expected.imag), -1), atol=1e-12)


def test_angles_are_taken_in_float32_at_least():
    cos, _ = Rope(1e4).rotation(torch.tensor([2049]), 4, torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    assert cos[0, 0, 0].item() == pytest.approx(torch.tensor(2049.0).cos().item(), abs=4e-3)  # 2049 is no bfloat16
