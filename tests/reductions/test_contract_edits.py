"""An operator that edits the tensors it receives is harmless, or refused."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.operator_paths import TEXT, assert_paths_agree
from support.tiny_models import assert_close, assert_same, step_loop, tiny_cell

import msrnn
from msrnn import Reduction


@dataclass(frozen=True)
class Edits(Reduction):
    """Edits a received tensor in place, in ``update`` or in ``score``."""

    what: str = ""
    stat_names: ClassVar[tuple[str, ...]] = ("sum",)

    def update(self, observation):
        stats = observation.row_stats
        if self.what == "update weights":
            observation.weights.masked_fill_(observation.weights < 0.2, 0.0)
        if self.what == "update stats":
            stats["sum"].add_(observation.weights.mean(2))
            return stats
        stats["sum"] = stats["sum"] + observation.weights.mean(2)
        return stats

    def score(self, observation):
        score = observation.row_stats["sum"]
        if self.what == "score weights":
            score = observation.weights[:, :, 0]
        if self.what == "score positions":
            observation.positions.add_(1)
        if self.what.startswith("score"):
            score[observation.positions > observation.clock[:, None, None] - 2] = math.inf
        return score


class LayoutFree(Edits):
    depends_on_row_layout: ClassVar[bool] = False


EDITS = ["update weights", "update stats", "score weights", "score stats", "score positions"]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("what", EDITS)
def test_in_place_edits_are_harmless_or_refused(what, rows):
    cell, text = tiny_cell(), TEXT[:rows]
    expected, end = step_loop(cell, text, cell.initial_state(rows, Edits(6, what)))
    logits, state = cell(text, cell.initial_state(rows, Edits(6, what)))
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)
    assert logits.isfinite().all()
    for path in (lambda s: step_loop(cell, text, s), lambda s: cell(text, s)):
        with pytest.raises(msrnn.Error, match=r"LayoutFree\.(update|score) edits .* in place; expected a new tensor"):
            path(cell.initial_state(rows, LayoutFree(6, what)))
        with torch.inference_mode():
            path(cell.initial_state(rows, LayoutFree(6, what)))  # copies, because inference tensors have no version


@pytest.mark.parametrize("edited", ["values", "row"])
def test_merge_that_edits_what_it_is_given_is_refused(edited):
    """A class that reads any row layout receives the library's own tensors."""

    @dataclass(frozen=True)
    class Edits(Reduction):
        depends_on_row_layout: ClassVar[bool] = False

        def score(self, observation):
            return observation.weights.mean(2)

        def merge(self, observation, values, row):
            (values if edited == "values" else row).mul_(2)
            return values.clone()

    cell = tiny_cell()
    for path in (step_loop, lambda cell, text, state: cell(text, state)):
        with pytest.raises(msrnn.Error, match=f"Edits.merge edits {edited} in place; expected a new tensor"):
            path(cell, TEXT, cell.initial_state(2, Edits(4)))


@pytest.mark.parametrize("layout", [True, False])
def test_statistics_may_be_taken_out_of_the_dict(layout):
    class Taking(Reduction):
        stat_names: ClassVar[tuple[str, ...]] = ("a",)
        depends_on_row_layout: ClassVar[bool] = layout

        def update(self, observation):
            return {"a": observation.row_stats.pop("a") + observation.weights.mean(2)}

        def score(self, observation):
            return observation.row_stats.pop("a")

    assert_paths_agree(Taking(5))


def test_statistics_carry_no_graph():
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)

    class Trained(Reduction):
        stat_names: ClassVar[tuple[str, ...]] = ("a",)

        def update(self, observation):
            with torch.enable_grad():
                return {"a": observation.row_stats["a"] + weight * observation.weights.mean(2)}

        def score(self, observation):
            return observation.row_stats["a"] * weight

    state = assert_paths_agree(Trained(5))
    assert not any(x.requires_grad for H in state for x in H.rows.values())
