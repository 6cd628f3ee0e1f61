"""One-shot prefill eviction with sizes per head and shared budgets: published algorithms in plain Python, and no eviction."""

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, tiny_cell
from support.transformers_reference import dense, save_folder, tiny_reference

import converters
import msrnn
from msrnn import H2O, LastQueries, SharedBudget, Sinks, prefill

T, G, WINDOW = 30, 2, 3
TEXT = torch.randint(0, 61, (2, T), generator=torch.Generator().manual_seed(1))


def snapkv(weights, k):
    """SnapKV's scores of one head without pooling: the attention of the last queries, of which no row is evicted."""
    total = [sum(row[p] for w in weights[k * G : (k + 1) * G] for row in w[-WINDOW:]) / G for p in range(T)]
    return [float("inf") if p >= T - WINDOW else total[p] for p in range(T)]


def adakv_press(scores, size, floor):
    """AdaKVPress of kvpress: the highest rows of each head are safe, then the lowest of all heads together are pruned."""
    safe = {(k, p) for k, s in enumerate(scores) for p in sorted(range(T), key=lambda p: (s[p], p))[T - int(size * floor) :]}
    others = [(k, p) for k in range(len(scores)) for p in range(T) if (k, p) not in safe]
    n_pruned = len(scores) * (T - size)
    pruned = set(sorted(others, key=lambda row: (scores[row[0]][row[1]], row[1], row[0]))[:n_pruned])
    return [[p for p in range(T) if (k, p) not in pruned] for k in range(len(scores))]


def adakv(scores, size):
    """The capacities of Ada-KV without a safeguard, and then the rows of each head (FFY0/AdaKV, ``update_kv_gqa``).

    The number of rows of a head among the highest ``size`` × heads of the layer. The window is not counted.
    """
    base, K = size - WINDOW, len(scores)
    pooled = sorted(((s, k) for k, of_head in enumerate(scores) for s in of_head[: T - WINDOW]), reverse=True)[: K * base]
    capacity = [sum(1 for _, head in pooled if head == k) for k in range(K)]
    top = [sorted(range(T - WINDOW), key=s.__getitem__, reverse=True)[:n] for s, n in zip(scores, capacity, strict=True)]
    return [sorted([*rows, *range(T - WINDOW, T)]) for rows in top]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    model = tiny_reference(num_key_value_heads=2)
    logits, weights, rows = dense(model, TEXT)
    cell = converters.load(save_folder(model, tmp_path_factory.mktemp("model")))
    return cell, logits, [[w[b].tolist() for b in range(2)] for w in weights], rows


def check(read, operator, expected):
    """``expected(weights)`` gives the positions of the heads from the attention weights ``[head][query][row]`` of a layer."""
    cell, logits, weights, rows = read
    found, state = prefill(cell, TEXT, operator)
    assert_close(found, logits)
    kept = retained_positions(state)
    for l, (keys, values) in enumerate(rows):
        for b in range(2):
            assert kept[l][b] == expected(weights[l][b])
            for k, positions in enumerate(kept[l][b]):
                order = state[l].positions[b, k].argsort()[-len(positions) :]
                assert_close(state[l].keys[b, k, order], keys[b, k, positions])
                assert_close(state[l].values[b, k, order], values[b, k, positions])
    return kept


@pytest.mark.parametrize("floor", [0, 0.2, 0.5, 0.9, 1])
@pytest.mark.parametrize("size", [6, 11])
def test_a_shared_budget_is_that_of_kvpress(read, size, floor):
    operator = SharedBudget(LastQueries(size, window=WINDOW), floor=floor)
    kept = check(read, operator, lambda weights: adakv_press([snapkv(weights, k) for k in range(2)], size, floor))
    counts = {len(head) for layer in kept for row in layer for head in row}
    assert (counts == {size}) == (floor == 1), "else no allocation would show"


@pytest.mark.parametrize("size", [6, 11])
def test_without_a_floor_the_rows_are_those_of_ada_kv(read, size):
    operator = SharedBudget(LastQueries(size, window=WINDOW), floor=0)
    check(read, operator, lambda weights: adakv([snapkv(weights, k) for k in range(2)], size))


@pytest.mark.parametrize("sizes", [(5, 11), (7, None), (40, 4)])
def test_sizes_per_head_evict_in_each_head_alone(read, sizes):
    def expected(weights):
        scores = [snapkv(weights, k) for k in range(2)]
        order = [sorted(range(T), key=lambda p, s=s: (s[p], p)) for s in scores]
        return [sorted(rows[max(0, T - (T if n is None else n)) :]) for rows, n in zip(order, sizes, strict=True)]

    check(read, LastQueries((sizes,), window=WINDOW), expected)


def test_a_budget_that_is_not_reached_evicts_nothing():
    cell, text = tiny_cell(), random_tokens(1, 2, 12)
    for operator in ("tova-head:12/20", "shared:h2o:12", "h2o:full/full"):
        logits, state = prefill(cell, text, operator)
        expected, end = cell(text, cell.initial_state(2, operator), last_only=True)
        assert_close(logits, expected, 1e-8)
        assert_same(state, end, 1e-8)


def test_window_and_sinks_retain_the_positions_of_the_step_loop():
    cell, text = tiny_cell(), random_tokens(1, 2, 15)
    for operator in (Sinks(((4, None),), sinks=2), msrnn.Window(((3, 5),)), SharedBudget(msrnn.Window(4), floor=1)):
        _, state = prefill(cell, text, operator)
        _, exact = cell(text, cell.initial_state(2, operator))
        assert retained_positions(state) == retained_positions(exact)


def test_the_memory_of_evicted_rows_is_free():
    cell, text = tiny_cell(), random_tokens(1, 1, 50)
    _, state = prefill(cell, text, SharedBudget(H2O(6)))
    _, same = cell(text, cell.initial_state(1, SharedBudget(H2O(6))))
    assert state.nbytes <= same.nbytes  # which has one clock per layer
