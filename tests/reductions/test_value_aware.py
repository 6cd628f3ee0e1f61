"""Scores of single observations: the change of the output stays exact in float32."""

import math

import pytest
import torch

from msrnn import CAOTE, DropKV, Observation


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
