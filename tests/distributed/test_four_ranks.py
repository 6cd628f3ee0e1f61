"""Four ranks for two key/value heads, and states that are read by another number of ranks than wrote them."""

import pytest
import torch.distributed as dist
from support.rank_groups import run_ranks
from support.split_cells import compare, has_rows_of, largest_gap, text
from support.tiny_families import tiny_family

import msrnn

CASES = {
    "llama": "tova:6",
    "qwen2": "h2o-layer:6",
    "qwen3": "last-queries:6:4",
    "olmo2": "knorm:6",
    "granite_swa": "caote:6",
}
BUDGETS = ("tova-head:6/3", "sinks:full/4:1", "shared:floor=0:h2o:5")
"""Operators under which heads hold different numbers of rows, for the family llama."""


def run_cases(rank, folder):
    found = {}
    for family, reduction in CASES.items():
        whole = tiny_family(family, n_layers=2, layer_windows=(), layer_ropes=(), vocab_size=51)
        found[family] = compare(whole, msrnn.distribute(whole), reduction)
    whole = tiny_family("llama", n_layers=2, vocab_size=51)
    split = msrnn.distribute(whole)
    found |= {spec: compare(whole, split, spec) for spec in BUDGETS}
    return found | {"file": files(rank, folder, "h2o:6"), "file, uneven": files(rank, folder, "h2o:6/3")}


def files(rank, folder, spec):
    """Save a state by two ranks and read it by four, and the reverse. Every pair of ranks does the same."""
    whole, tokens = tiny_family("llama", n_layers=2, vocab_size=51), text(51)
    pair = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])][rank // 2]
    folder = folder / f"{spec.replace('/', ' ')}, pair {rank // 2}"
    folder.mkdir(exist_ok=True)
    four, two = msrnn.distribute(whole), msrnn.distribute(whole, pair)
    expected, H = whole(tokens, whole.initial_state(2, spec), last_only=True)
    _, by_two = two(tokens, two.initial_state(2, spec), last_only=True)
    by_two.save(folder / "two")
    read_by_four = msrnn.load_state(folder / "two", group=dist.group.WORLD)
    logits, by_four = four.step(tokens[:, 0], read_by_four)
    by_four.save(four_file := folder.parent / f"{spec.replace('/', ' ')}, four")
    read_by_two = msrnn.load_state(four_file, group=pair)
    expected, H = whole.step(tokens[:, 0], H)
    gaps = [largest_gap(logits, expected)]
    same = has_rows_of(by_four, H), has_rows_of(read_by_two, H)
    expected, H = whole.step(tokens[:, 1], H)
    gaps.append(largest_gap(two.step(tokens[:, 1], read_by_two)[0], expected))
    return max(gaps), *same


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_ranks(4, run_cases, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("family", [*CASES, *BUDGETS])
def test_four_ranks_compute_what_one_process_computes(found, family):
    for of_rank in found:
        gap, steps, same_rows = of_rank[family]
        assert max(gap, steps) < 1e-9
        assert same_rows


@pytest.mark.parametrize("name", ["file", "file, uneven"])
def test_another_number_of_ranks_reads_a_state(found, name):
    for of_rank in found:
        gap, *same_rows = of_rank[name]
        assert gap < 1e-9
        assert same_rows == [True, True]
