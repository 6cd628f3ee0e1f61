"""One-shot prefill eviction against transformers with eager attention and an eviction in plain Python."""

from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell
from support.transformers_reference import dense, float64_reference, save_folder, tiny_reference
from transformers import DynamicCache

import converters
import msrnn
from msrnn import H2O, TOVA, CaM, Keyformer, Knorm, LastQueries, Random, Reduction, Sinks, Window, prefill

TEXT = torch.randint(0, 61, (2, 30), generator=torch.Generator().manual_seed(1))


def top(score, size):
    """Return the positions of the ``size`` highest scores in order; of equal scores the newest are retained."""
    return sorted(sorted(range(len(score)), key=lambda p: (score[p], p))[-size:])


def tova(weights, k, size, G):
    return top([sum(w[-1][p] for w in weights) / len(weights) for p in range(len(weights[0]))], size)


def tova_head(weights, k, size, G):
    return tova(weights[k * G : (k + 1) * G], 0, size, G)


def h2o(weights, k, size, G, recent=None):
    T, recent = len(weights[0]), size // 2 if recent is None else recent
    total = [sum(row[p] for w in weights[k * G : (k + 1) * G] for row in w) / G for p in range(T)]
    return top([float("inf") if p >= T - recent else total[p] for p in range(T)], size)


def last_queries(weights, k, size, G):
    T = len(weights[0])
    total = [sum(row[p] for w in weights[k * G : (k + 1) * G] for row in w[-3:]) / G for p in range(T)]
    return top([float("inf") if p >= T - 3 else total[p] for p in range(T)], size)


RULES = {
    "tova": (TOVA(7), tova),
    "tova-head": (TOVA(7, per_head=True), tova_head),
    "h2o": (H2O(8), h2o),
    "h2o, no recent rows": (H2O(5, recent=0), lambda *a: h2o(*a, recent=0)),
    "window": (Window(6), lambda weights, k, size, G: list(range(len(weights[0]) - size, len(weights[0])))),
    "sinks": (Sinks(6, 2), lambda weights, k, size, G: [0, 1, *range(len(weights[0]) - size + 2, len(weights[0]))]),
    "last queries": (LastQueries(8, window=3), last_queries),
    "per layer": (TOVA((4, 9)), tova),
    "longer than the prompt": (TOVA(64), tova),
    "full": (msrnn.Full(), lambda weights, k, size, G: list(range(len(weights[0])))),
}


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize(("operator", "rule"), RULES.values(), ids=RULES)
def test_retained_rows_and_logits_equal_transformers_and_plain_python(operator, rule, heads, tmp_path):
    model = tiny_reference(num_key_value_heads=heads)
    cell = converters.load(save_folder(model, tmp_path))
    logits, weights, rows = dense(model, TEXT)
    read, state = prefill(cell, TEXT, operator)
    assert_close(read, logits)
    cache = DynamicCache()
    for l, H in enumerate(state):
        size = operator.for_layer(l).size or 30
        kept = [[rule(weights[l][b].tolist(), k, size, 4 // heads) for k in range(heads)] for b in range(2)]
        assert H.positions.tolist() == kept
        index = torch.tensor(kept)[..., None].expand(-1, -1, -1, H.keys.shape[3])
        keys, values = (x.gather(2, index) for x in rows[l])
        assert_close(H.keys, keys)
        assert_close(H.values, values)
        cache.update(keys, values, l)
        assert H.clock.tolist() == [30, 30]
        assert str(H.reduction) == str(operator.for_layer(l))
    if len({H.keys.shape[2] for H in state}) == 1:  # transformers continues from these rows
        token = torch.tensor([[5], [6]])
        with float64_reference(model), patch("torch.float32", torch.float64), torch.no_grad():
            out = model(token, past_key_values=cache, position_ids=torch.full((2, 1), 30), use_cache=True)
        assert_close(cell.step(token[:, 0], state)[0], out.logits[:, -1])


OPERATORS = [TOVA(5), TOVA(4, per_head=True), H2O(6), Window(5), Window(0), Sinks(5, 2), Random(5), Knorm(5), Keyformer(6)]
OPERATORS += [LastQueries(6, 2), ["tova:4", "h2o:6"], H2O((3, 8), per_head=False)]
OPERATORS += ["tova-head:3/6", "h2o:full/4", "shared:floor=0:h2o:4", "shared:last-queries:5:2"]


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_ragged_prompts_are_independent_and_the_unroll_continues(operator):
    generator = torch.Generator().manual_seed(0)
    cell, text = tiny_cell(), torch.stack([torch.randperm(50, generator=generator)[:20] for _ in range(4)])
    lengths = torch.tensor([20, 1, 0, 9])
    logits, state = prefill(cell, text, operator, lengths=lengths)
    assert state.clock.tolist() == [20, 1, 0, 9]
    assert logits[2].isnan().all()
    for b in (0, 1, 3):
        alone, own = prefill(cell, text[b : b + 1, : lengths[b]], operator)
        assert_close(logits[b], alone[0], 1e-8)
        assert_same(state.select([b]), own, 1e-8)
    assert_same(state.select([2]), cell.initial_state(1, operator))
    more = random_tokens(4, 4, 9)
    by_step, end = step_loop(cell, more, state)
    folded, after = cell(more, state)
    assert_close(folded, by_step, 1e-8)
    assert_same(after, end, 1e-8)
    new, written, _ = msrnn.generate(cell, more, state, max_new_tokens=3)
    assert new.shape == (4, 3)
    assert written.clock.tolist() == [32, 13, 12, 21]


@pytest.mark.parametrize("operator", ["tova:20", "h2o:20", "keyformer:20", "scissorhands:20", "knorm:20", "vatp:20", "full"])
def test_without_an_eviction_prefill_equals_the_unroll(operator):
    cell, text = tiny_cell(), random_tokens(1, 2, 20)
    logits, state = prefill(cell, text, operator)
    expected, end = cell(text, cell.initial_state(2, operator), last_only=True)
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)


def test_with_evictions_prefill_differs_from_the_unroll():
    cell, text = tiny_cell(), random_tokens(1, 1, 30)
    for operator in ("tova:6", "h2o:6"):
        logits, state = prefill(cell, text, operator)
        folded, exact = cell(text, cell.initial_state(1, operator), last_only=True)
        assert_close(logits, cell(text, last_only=True)[0], 1e-8)
        assert (logits - folded).abs().max() > 0.1
        assert retained_positions(state) != retained_positions(exact)
    for operator in ("window:6", "sinks:6:2"):  # equal positions, but keys computed with other attention
        _, state = prefill(cell, text, operator)
        _, exact = cell(text, cell.initial_state(1, operator))
        assert retained_positions(state) == retained_positions(exact)
        assert (state[1].keys.sum() - exact[1].keys.sum()).abs() > 1e-3


def test_an_empty_prompt_gives_the_initial_state():
    cell = tiny_cell()
    logits, state = prefill(cell, random_tokens(0, 2, 0), "tova:4")
    assert logits.shape == (2, 50)
    assert logits.isnan().all()
    assert_same(state, cell.initial_state(2, "tova:4"))


@dataclass(frozen=True)
class Equal(Reduction):
    """All rows have the same score."""

    def score(self, seen):
        return torch.zeros_like(seen.weights.mean(2))


def test_of_equal_scores_the_oldest_rows_are_evicted():
    _, state = prefill(tiny_cell(), random_tokens(1, 1, 12), Equal(5))
    assert retained_positions(state) == [[[[7, 8, 9, 10, 11]] * 2]] * 2


@dataclass(frozen=True)
class SafeH2O(H2O):
    """H2O with the safe values of all flags, because flags are not inherited."""


def test_the_flags_of_an_operator_do_not_change_the_result():
    cell, text, lengths = tiny_cell(), random_tokens(1, 2, 30), torch.tensor([30, 11])
    logits, state = prefill(cell, text, H2O(6), lengths=lengths)
    same, other = prefill(cell, text, SafeH2O(6), lengths=lengths)
    assert_close(same, logits, 1e-8)
    assert retained_positions(other) == retained_positions(state)


def test_memory_is_not_quadratic_in_the_prompt(monkeypatch):
    """For an operator without statistics only the weights of the last query are computed."""
    sizes = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, *a, **k: sizes.append(x.numel()) or softmax(x, *a, **k))
    cell = tiny_cell()
    prefill(cell, random_tokens(1, 1, 300), "tova:8")
    assert max(sizes) == cell.config.n_heads * 300
    sizes.clear()
    prefill(cell, random_tokens(1, 1, 300), "h2o:8")
    assert max(sizes) <= cell.config.n_heads * 64 * 300


def test_operator_of_a_layer_is_made_once():
    @dataclass(frozen=True)
    class Growing(TOVA):
        def for_layer(self, layer):
            return replace(self, size=self.size + layer)

    cell, text = tiny_cell(), random_tokens(1, 2, 12)
    _, state = prefill(cell, text, Growing(4))
    assert [H.reduction.size for H in state] == [H.reduction.size for H in cell.initial_state(2, Growing(4))] == [4, 5]


def test_invalid_arguments_raise():
    cell = tiny_cell()
    with pytest.raises(msrnn.Error, match="CaM merges values"):
        prefill(cell, random_tokens(1, 1, 9), CaM(5, sinks=1))
    with pytest.raises(msrnn.Error, match="outside the vocabulary"):
        prefill(cell, torch.tensor([[50]]), "tova:4")
    with pytest.raises(msrnn.Error, match="lengths are"):
        prefill(cell, random_tokens(1, 1, 9), "tova:4", lengths=torch.tensor([10]))
    with pytest.raises(msrnn.Error, match="no operator is called"):
        prefill(cell, random_tokens(1, 1, 9), "nothing")


def test_on_the_real_weights(smollm, figure):
    text = torch.randint(1000, 20000, (1, 200), generator=torch.Generator().manual_seed(0))
    logits, state = prefill(smollm, text, "tova:64")
    full, _ = smollm(text, last_only=True)
    gap = (logits - full).abs().max().item()
    figure(f"{gap:.1e} largest difference of logits, prefill from the unbounded model: SmolLM2-135M")
    assert gap < 1e-3
    assert {H.keys.shape[2] for H in state} == {64}
