"""What the ranks of a split cell send in a step under a shared budget: scores and positions, if heads decide for themselves."""

import pytest
from support.rank_groups import run_ranks
from support.split_cells import HeadWeights, compare, text
from support.tiny_families import tiny_family

import msrnn
from msrnn import SharedBudget
from msrnn.distributed.ranks import TRAFFIC

B, L, SIZE = 2, 2, 5
OPERATORS = {
    **{spec: spec for spec in ("shared:tova-head:5", "shared:h2o:5", "shared:last-queries:5:2", "shared:keydiff:5")},
    "all heads": SharedBudget(HeadWeights(5)),
}


def count(rank, folder):
    whole = tiny_family("llama", n_layers=L, vocab_size=51)
    split, found = msrnn.distribute(whole), {}
    for name, operator in OPERATORS.items():
        _, state = split(text(51, B), split.initial_state(B, operator))
        columns = [H.positions.shape[2] for H in state]
        TRAFFIC.reset()
        split.step_(text(51, B)[:, 0], state)
        found[name] = TRAFFIC.payload["heads"], TRAFFIC.messages["heads"], columns
        found[f"gaps {name}"] = compare(whole, split, operator)
    return found, whole.config.n_kv_heads


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_ranks(2, count, tmp_path_factory.mktemp("ranks"))


def test_scores_and_positions_are_sent_if_heads_decide_for_themselves(found):
    K = found[0][1] // 2  # of each rank
    for name in OPERATORS:
        counted, messages = zip(*(of_rank[name][:2] for of_rank, _ in found), strict=True)
        fullest = [max(columns) for columns in zip(*(of_rank[name][2] for of_rank, _ in found), strict=True)]
        numbers_of_columns = 8 * L
        expected = sum(B * K * (S + 1) * (8 + 8) for S in fullest) + numbers_of_columns
        if name == "all heads":
            assert min(counted) > expected
        else:
            assert counted == (expected, expected)
            assert messages == (3 * L, 3 * L)


def test_two_ranks_compute_what_one_process_computes(found):
    for of_rank, _ in found:
        for name in OPERATORS:
            gap, steps, same_rows = of_rank[f"gaps {name}"]
            assert max(gap, steps) < 1e-9
            assert same_rows
