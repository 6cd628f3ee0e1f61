"""Scores of single observations: the exact change of the output in float32, and the distribution of a random eviction."""

import math
from itertools import permutations

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell

from msrnn import CAOTE, DropKV, Observation, VaSE


def observe(weights, values, **more):
    """Return the observation of one head with one query head; ``weights (R,)``, ``values (R, D)``."""
    R = len(weights)
    positions, clock = torch.arange(R)[None, None], torch.tensor([R - 1])
    output = (weights @ values)[None, None, None]
    return Observation(weights[None, None, None], positions, clock, {}, None, values[None, None], output)._replace(**more)


def change_without(logits, values, gone):
    """Return the distance between the outputs with all rows and without one, in Python floats."""

    def output(rows):
        exps = {i: math.exp(logits[i] - max(logits)) for i in rows}
        return [math.fsum(e * values[i][d] for i, e in exps.items()) / math.fsum(exps.values()) for d in range(len(values[0]))]

    every = range(len(logits))
    return math.dist(output(every), output([i for i in every if i != gone]))


@pytest.mark.parametrize("gap", [1.0, 9.0, 13.0, 16.0, 20.0, 60.0])
@pytest.mark.parametrize("operator", [CAOTE(5), DropKV(5, window=1)], ids=str)
def test_the_change_stays_exact_for_weights_close_to_1(operator, gap):
    """A row with 1 − p below the resolution of float32 still has the score of the change of the output without it."""
    generator = torch.Generator().manual_seed(int(gap))
    logits, values = torch.randn(6, generator=generator).double(), torch.randn(6, 4, generator=generator).double()
    logits[2] += gap
    observation = observe(logits.softmax(0).float(), values.float(), row_stats={"read": torch.zeros(1, 1, 6, 1)})
    expected = [change_without(logits.tolist(), values.tolist(), i) for i in range(6)]
    if isinstance(operator, DropKV):
        found = operator.update(observation)["read"][0, 0, :, 0].sqrt()
    else:
        found = operator.score(observation)[0, 0]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_single_row_has_a_finite_score():
    assert CAOTE(1).score(observe(torch.ones(1), torch.tensor([[3.0, 4.0]]))).item() == pytest.approx(5)


def test_vase_leaves_out_a_row_of_a_sample_without_replacement():
    """The frequencies over 4,000 seeds against the probability that a row is drawn last, by the formula."""
    attention = torch.tensor([0.5, 0.9, 0.05, 0.2, 0.25])
    values = torch.tensor([[0.0, 1.0], [-9.0, 9.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]])  # row 1 is protected
    seen = observe(attention, values, row_stats={"read": attention[None, None, :, None]})
    counts = [0] * 5
    for seed in range(4000):
        counts[int(VaSE(4, window=1, large=1, sinks=0, seed=seed).score(seen).argmin())] += 1
    rows, expected = (0, 2, 3), [0.0] * 5
    for order in permutations(rows):
        left, chance = math.fsum(attention[list(rows)].tolist()), 1.0
        for i in order:
            chance, left = chance * attention[i].item() / left, left - attention[i].item()
        expected[order[-1]] += chance
    assert counts == [pytest.approx(4000 * p, abs=4.5 * math.sqrt(4000 * p * (1 - p))) for p in expected]
    assert expected[2] > 0.6


def test_vase_protects_large_values_recent_rows_and_sinks():
    values = torch.tensor([[5.0, 5.0], [0.0, 1.0], [-3.0, 3.0], [0.0, 2.0], [1.0, 1.0], [0.0, 9.0]])
    seen = observe(torch.full((6,), 1 / 6), values, row_stats={"read": torch.full((1, 1, 6, 2), 0.1)})

    def protected(**settings):
        return VaSE(5, window=2, **settings).score(seen)[0, 0].isinf().nonzero()[:, 0].tolist()

    assert protected(large=1, sinks=0) == [2, 4, 5]  # range 6, and the last two rows
    assert protected(large=2, sinks=0) == [2, 3, 4, 5]
    assert protected(large=2, sinks=1) == [0, 2, 4, 5]  # a sink is one of the two
    assert protected(large=1, sinks=2) == [0, 1, 4, 5]


@pytest.mark.parametrize("spec", ["caote:6", "dropkv:8:4", "vase:12:3:3:1"])
def test_rows_of_equal_values_are_evicted_alike_in_both_paths(spec):
    """In a run of one token all values are equal, up to rounding that differs between the paths."""
    cell = tiny_cell(width=64, head_dim=32)
    text = torch.cat((torch.full((1, 20), 7), random_tokens(1, 1, 8)), dim=1)
    expected, end = step_loop(cell, text, cell.initial_state(1, spec))
    logits, state = cell(text, cell.initial_state(1, spec))
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)


def test_vase_protects_the_oldest_of_equal_ranges():
    seen = observe(torch.full((6,), 1 / 6), torch.ones(6, 2), row_stats={"read": torch.full((1, 1, 6, 2), 0.1)})
    assert VaSE(5, window=2, large=2, sinks=1).score(seen)[0, 0].isinf().tolist() == [True, True, False, False, True, True]
