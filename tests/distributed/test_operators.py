"""Every operator on two ranks: the logits of one process, and the same rows."""

from dataclasses import replace

import pytest
import torch
from support.rank_groups import run_ranks
from support.split_cells import HeadIndex, HeadWeights, LayerMaximum, compare
from support.tiny_families import tiny_family

import msrnn
from msrnn import SharedBudget
from msrnn.reductions.constants import Constants
from msrnn.reductions.learned_score import LearnedScore
from msrnn.reductions.query_statistics import QFilters

OPERATORS = {
    **{spec: spec for spec in ("full", "window:6", "sinks:6:2", "tova:6", "tova-head:6", "h2o:6", "h2o-layer:6", "random:6")},
    **{spec: spec for spec in ("last-queries:6:4", "morphkv:6:4", "scissorhands:6:2", "keydiff:6", "knorm:6")},
    **{spec: spec for spec in ("keyformer:6", "cam:6:2")},
    **{spec: spec for spec in ("caote:6", "caote-layer:6", "dropkv:6:4", "vase:8:4:2:1", "r-kv:8:4", "lagkv:9:2:1", "a2sf:6")},
    "layer maximum": LayerMaximum(6),
    "head index": HeadIndex(6),
    "one per layer": ["tova:6", "h2o:5"],
    **{spec: spec for spec in ("tova-head:6/3", "sinks:full/4,4/full:1", "a2sf:3/7", "keyformer:3/7", "window:3/7,5")},
    **{spec: spec for spec in ("shared:tova-head:5", "shared:floor=0:h2o:5", "shared:caote:5", "shared:random:5")},
    **{spec: spec for spec in ("shared:a2sf:5", "shared:keydiff:5", "shared:window:5")},
    "all heads, sizes per head": HeadWeights(((3, 7),)),
    "all heads, shared": SharedBudget(HeadWeights(5)),
}
REMAPPED = [("sinks:6:2", "inside"), ("tova:6", "compressed"), ("sinks:7/4:2", "inside"), ("shared:tova-head:5", "compressed")]
PLACES = {f"{places} {spec}": (spec, places) for spec, places in REMAPPED}


CALIBRATED = (QFilters, LearnedScore)


def compare_operators(rank, folder):
    whole = tiny_family("llama", n_layers=2)
    split = msrnn.distribute(whole)
    found = {name: compare(whole, split, operator) for name, operator in OPERATORS.items()}
    found |= {name: compare(whole, split, spec, places=places) for name, (spec, places) in PLACES.items()}
    for kind in CALIBRATED:
        found[kind.__name__] = compare(whole, split, with_random_constants(kind, whole))
    return found


def with_random_constants(kind, cell):
    empty, generator = kind(6, Constants({"none": torch.zeros(1)})), torch.Generator().manual_seed(0)
    shapes = empty.constant_shapes(cell.sizes)
    numbers = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    return replace(empty, constants=Constants(numbers))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_ranks(2, compare_operators, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [*OPERATORS, *PLACES, *(kind.__name__ for kind in CALIBRATED)])
def test_two_ranks_compute_what_one_process_computes(found, name):
    for of_rank in found:
        gap, steps, same_rows = of_rank[name]
        assert max(gap, steps) < 1e-9
        assert same_rows
