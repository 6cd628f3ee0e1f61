"""One step of a layer does not wait for the device: tensors on the meta device have no values to wait for."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from msrnn import H2O, TOVA, MultiState, Reduction, Sinks, Window
from msrnn.recurrence.transition import Attended, reduce


@dataclass(frozen=True)
class KeepsCurrent(Reduction):
    """A user-defined operator that depends on the row layout and keeps a statistic."""

    stat_names: ClassVar[tuple[str, ...]] = ("peak",)

    def update(self, observation):
        return {"peak": torch.maximum(observation.row_stats["peak"], observation.weights.amax(2))}

    def score(self, observation):
        score = observation.row_stats["peak"].clone()
        score[..., -1] = torch.inf
        return score


OPERATORS = [Window(4), Sinks(4, sinks=1), H2O(4), TOVA(4), TOVA(4, per_head=True), KeepsCurrent(4)]


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.parametrize("rows", [3, 4], ids=["growing", "full"])
def test_reduce_reads_no_value_of_a_tensor(operator, rows):
    B, K, G, D = 2, 2, 2, 4
    keys = torch.empty(B, K, rows, D, device="meta")
    positions = torch.empty(B, K, rows, dtype=torch.int64, device="meta")
    clock = torch.empty(B, dtype=torch.int64, device="meta")
    stats = {name: torch.empty(B, K, rows, device="meta") for name in operator.stat_names}
    H = MultiState(keys, keys.clone(), positions, clock, operator, stats, no_empty_rows=True)
    seen = H.append(keys[:, :, 0], keys[:, :, 0], in_place=True)
    weights = torch.empty(B, K, G, rows + 1, device="meta")
    after = reduce(seen, Attended(weights), clock + 1, None)
    assert after.keys.shape[2] == min(rows + 1, 4)
