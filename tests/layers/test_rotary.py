"""Tests of rotary embeddings; ``integration/test_transformers.py`` compares whole models."""

import math

import pytest
import torch

import msrnn
from msrnn.layers.rotary import DynamicNTKRope, LinearRope, Llama3Rope, Rope, YarnRope, apply_rotary


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rope(0.0), "theta is 0.0"),
        (lambda: Rope(1.0), "theta is 1.0"),
        (lambda: Rope(float("nan")), "theta is nan"),
        (lambda: Rope(float("inf")), "theta is inf"),
        (lambda: Rope(10**400), "theta"),
        (lambda: Rope(True), "theta is True"),
        (lambda: LinearRope(10.0, "2"), "factor is '2'"),
        (lambda: DynamicNTKRope(10.0, 2.0, 0), "original_length is 0"),
        (lambda: Llama3Rope(10.0, 2.0, 4.0, 1.0, 8), "high_freq_factor is 1.0"),
        (lambda: Llama3Rope(10.0, 2.0, 4.0, 4.0, 8), "high_freq_factor is 4.0; expected more than low_freq_factor, 4.0"),
        (lambda: YarnRope(10.0, 2.0, 8, -1.0), "attention_factor is -1.0"),
    ],
)
def test_wrong_settings_are_refused(build, message):
    with pytest.raises(msrnn.Error, match=message):
        build()


def test_pairs_half_a_head_apart_are_rotated():
    """Against complex numbers: pair i is x[i] + 1j x[i + D/2], multiplied by exp(1j t f_i)."""
    rope, D, position = Rope(100.0), 6, torch.tensor([0, 5])
    x = torch.randn(2, 3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = apply_rotary(x, rope.cos_sin(position, D, torch.float64))
    frequencies = torch.tensor([100.0 ** (-2 * i / D) for i in range(3)], dtype=torch.float64)
    expected = torch.complex(x[..., :3], x[..., 3:]) * torch.exp(1j * position[:, None, None] * frequencies)
    assert torch.allclose(turned, torch.cat((expected.real, expected.imag), -1), atol=1e-12)


def test_angles_are_computed_in_at_least_float32():
    cos, _ = Rope(1e4).cos_sin(torch.tensor([2049]), 4, torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    assert cos[0, 0, 0].item() == pytest.approx(torch.tensor(2049.0).cos().item(), abs=4e-3)  # 2049 is not a bfloat16 number


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(
    ("theta", "length"), [(10000.0, 4096), (100.0, 64), (3.0, 4096), (2.0, 1000)], ids=["published", "tiny", "clamped", "far"]
)
def test_yarn_frequencies_equal_transformers(theta, length, truncate):
    """For a small theta and a long training length the ramp ends beyond the last pair and is clamped to D - 1."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {"rope_type": "yarn", "rope_theta": theta, "factor": 4.0, "original_max_position_embeddings": length}
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=4 * length,
        rope_parameters=settings | {"truncate": truncate},
    )  # fmt: skip
    expected, scaling = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    rope = YarnRope(theta, 4.0, length, 0.1 * math.log(4.0) + 1, truncate=truncate)
    found = rope.frequencies(torch.zeros((), dtype=torch.int64), 16, torch.float32)
    assert torch.allclose(found, expected, rtol=1e-6, atol=0)
    assert rope.attention_scaling == pytest.approx(scaling)


def test_a_yarn_ramp_without_length_is_a_step():
    """With equal ends transformers adds 0.001 to one of them; then no pair is divided by zero."""
    zero = torch.zeros((), dtype=torch.int64)
    rope = YarnRope(2.0, 4.0, 64, 1.0, beta_fast=7.0, beta_slow=7.0, truncate=False)
    at = 16 * math.log(64 / (7 * 2 * math.pi)) / (2 * math.log(2.0))
    ratio = rope.frequencies(zero, 16, torch.float64) / Rope(2.0).frequencies(zero, 16, torch.float64)
    assert 0 < at < 7
    assert torch.allclose(ratio, torch.where(torch.arange(8) < at, 1.0, 0.25).double())
    whole = YarnRope(2.0, 4.0, 10**9, 1.0, beta_fast=2.0, beta_slow=1.0)  # both ends beyond the last pair
    assert whole.frequencies(zero, 16, torch.float64).isfinite().all()


def test_the_ramp_of_yarn_ends_at_the_head_dimension():
    """The end of the ramp is clamped to D - 1 = 15, not to the last pair, D/2 - 1 = 7."""
    rope = YarnRope(2.0, 4.0, 10**6, 1.0, beta_fast=10**5, beta_slow=1.0)
    plain = Rope(2.0).frequencies(torch.zeros((), dtype=torch.int64), 16, torch.float64)
    ratio = rope.frequencies(torch.zeros((), dtype=torch.int64), 16, torch.float64) / plain
    first = math.floor(16 * math.log(10**6 / (2 * math.pi * 10**5)) / (2 * math.log(2.0)))
    ramp = ((torch.arange(8, dtype=torch.float64) - first) / (15 - first)).clamp(0, 1)
    assert torch.allclose(ratio, ramp / 4 + 1 - ramp, atol=1e-12)
    assert 0 < ramp[7] < 1
