"""The random numbers of operators, and random eviction."""

import pytest
import torch
from support.stochastic_rules import draws
from support.tiny_models import random_tokens, retained_positions, tiny_cell

from msrnn import Random
from msrnn.diagnostics.retention import retained_fraction
from msrnn.reductions.hash_rng import uniform


def test_hash_rng_is_uniform_and_depends_on_all_arguments():
    head, position = torch.arange(8)[:, None], torch.arange(5000)
    drawn = uniform(0, 0, head, position, torch.tensor(7))
    assert drawn.shape == (8, 5000)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert drawn[3, 41].item() == draws(0, 0, 3, 41, 7)
    counts = torch.histc(drawn, 20, 0, 1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 50  # χ² with 19 degrees of freedom
    for other in (uniform(1, 0, head, position, 7), uniform(0, 1, head, position, 7), uniform(0, 0, head, position, 8)):
        assert (other == drawn).float().mean() < 1e-3
        assert torch.corrcoef(torch.stack((other.flatten(), drawn.flatten())))[0, 1].abs() < 0.03
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.06
    big = uniform(10**18 - 1, 999, head, position + 2**40, torch.tensor(2**62))
    assert big.mean().item() == pytest.approx(0.5, abs=0.02)


def test_random_is_repeatable_with_mean_lifetime_equal_to_size():
    cell, text = tiny_cell(n_layers=1, n_kv_heads=4), random_tokens(1, 1, 400)
    ends = [cell(text, cell.initial_state(1, Random(20, seed)))[1] for seed in (0, 0, 1)]
    assert retained_positions(ends[0]) == retained_positions(ends[1]) != retained_positions(ends[2])
    age = torch.stack([399 - H.positions.double() for state in ends[1:] for H in state])
    assert age.mean().item() == pytest.approx(20, rel=0.25)  # geometric, 1 in 21 a step
    assert retained_fraction(ends[0], 400).sum().item() == pytest.approx(20)
    four = retained_positions(cell(text, cell.initial_state(1, "random:20"))[1])[0][0]
    assert all(a != b for i, a in enumerate(four) for b in four[:i])  # heads draw apart
    layers = retained_positions(tiny_cell(n_layers=2)(text, tiny_cell(n_layers=2).initial_state(1, Random(20)))[1])
    assert layers[0] != layers[1]
