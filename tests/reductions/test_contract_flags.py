"""Flags of an operator class hold for the class that states them, and layers for the operator that they have."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
from support.operator_paths import LENGTHS, assert_paths_agree, retained_by_scores
from support.tiny_models import retained_positions

import msrnn
from msrnn import H2O, TOVA, Knorm, Reduction, Window
from msrnn.reductions.contract import SAFE_FLAGS
from msrnn.reductions.stochastic import CaM


@dataclass(frozen=True)
class Decayed(H2O):
    """H2O with statistics that fade, so that its update is not additive."""

    def update(self, observation):
        faded = 0.5 * observation.row_stats["accumulated_attention"]
        return {"accumulated_attention": faded + observation.weights.mean(2)}


@dataclass(frozen=True)
class WeightedWindow(Window):
    """A Window with a score that reads weights."""

    def score(self, observation):
        return observation.weights.mean(2)


@dataclass(frozen=True)
class Helper(Knorm):
    """A subclass that overrides a helper only."""

    def keys(self, observation):
        return super().keys(observation) * observation.weights.mean(2)[..., None]


@pytest.mark.parametrize("operator", [Decayed(6), WeightedWindow(6), Helper(6)], ids=lambda o: type(o).__name__)
def test_subclass_of_shipped_operator_is_exact(operator):
    assert_paths_agree(operator)


def test_flags_are_not_inherited():
    for flag, safe in SAFE_FLAGS.items():
        assert all(getattr(kind, flag) is safe for kind in (Decayed, WeightedWindow, Helper, Reduction))
    assert Helper.needs_keys  # the safe value is the inherited one
    assert not H2O.merges_values

    class Merging(H2O):
        def merge(self, observation, values, row):
            return values

    assert Merging.merges_values
    assert CaM.merges_values


@pytest.mark.parametrize("reads_weights", [True, False])
@pytest.mark.parametrize("layout", [True, False])
def test_layers_are_told_apart_by_fields_that_equality_leaves_out(layout, reads_weights):
    """Layers with equal operators are evaluated together, so the layer index has to count although ``==`` ignores it."""

    @dataclass(frozen=True)
    class ByLayer(Reduction):
        layer: int = field(default=0, compare=False)
        depends_on_row_layout: ClassVar[bool] = layout
        needs_weights: ClassVar[bool] = reads_weights

        def for_layer(self, layer):
            return replace(self, layer=layer)

        def score(self, observation):
            turn = observation.positions * (3 + self.layer) % 7
            return turn + observation.weights.mean(2) / 2

    end = retained_positions(assert_paths_agree(ByLayer(5)))
    for layer, heads in enumerate(end):
        scores = tuple(p * (3 + layer) % 7 for p in range(7))
        assert reads_weights or heads == [[retained_by_scores(scores, 5, n)] * 2 for n in LENGTHS.tolist()]


def test_spec_names_of_the_library_cannot_be_taken():
    with pytest.raises(msrnn.Error, match=r"Mine: spec name 'tova' is that of msrnn\.TOVA; expected another name"):

        class Mine(Reduction):
            spec_names: ClassVar = {"tova": {}}

    for bonus in (1.0, 2.0):  # a class of the same name replaces the earlier one, as in a notebook

        @dataclass(frozen=True)
        class Again(Reduction):
            spec_names: ClassVar = {"again": {}}
            extra = bonus
            score = TOVA.score

    assert type(msrnn.parse_reduction("again:4")).extra == 2.0
