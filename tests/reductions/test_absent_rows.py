"""Operators that read keys: absent rows have no effect on the scores. In a block of tokens they may hold any number."""

import pytest
import torch

from msrnn import RKV, KeyDiff, Knorm, LagKV, Observation
from msrnn.reductions.contract import EMPTY

OPERATORS = [KeyDiff(8), Knorm(8), RKV(8, window=3), LagKV(9, lag=2, sinks=1)]
B, K, G, R, D = 2, 3, 2, 9, 4


def observation(operator, filler):
    """Return an observation with random rows, of which some are absent and have keys and values of ``filler``."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    absent = torch.rand(B, K, R, generator=generator) < 0.3
    positions = torch.arange(R).expand(B, K, R).masked_fill(absent, EMPTY)
    keys, values = (random(B, K, R, D).masked_fill(absent[..., None], filler) for _ in range(2))
    weights = random(B, K, G, R).masked_fill(absent[:, :, None], -torch.inf).softmax(-1)
    row_stats = {name: random(B, K, R, *operator.stat_shape(name)).abs() for name in operator.stat_names}
    clock = torch.full((B,), R - 1)
    return Observation(weights, positions, clock, row_stats, keys, values), ~absent


@pytest.mark.parametrize("filler", [torch.nan, torch.inf, 1e300])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_absent_rows_have_no_effect(operator, filler):
    found = []
    for of_absent in (0.0, filler):
        seen, present = observation(operator, of_absent)
        updated = operator.update(seen) if operator.stat_names else {}
        score = operator.score(seen._replace(row_stats=updated or seen.row_stats))
        found.append([score[present], *(x[present] for x in updated.values())])
    for plain, other in zip(*found, strict=True):
        assert plain.isfinite().any()
        assert other.equal(plain)
