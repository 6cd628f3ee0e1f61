"""User-defined operators work in every path: the step loop, many tokens, branches, saved states, steps in place."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.eviction_rules import dense_decoder, evict_one, lowest, mean
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import Reduction


@dataclass(frozen=True)
class KeepEven(Reduction):
    """The oldest odd position is evicted; one decision for the layer."""

    def score(self, seen):
        return (seen.positions[:, :1] % 2 == 0).to(seen.weights.dtype)


@dataclass(frozen=True)
class LeastRecentlyRead(Reduction):
    """Statistics: the last clock at which a row received more than ``share``, and its largest weight."""

    share: float = 0.2
    stat_names: ClassVar[tuple[str, ...]] = ("last", "best")

    def update(self, seen):
        weights = seen.weights.mean(2)
        now = seen.clock[:, None, None].to(weights.dtype)
        return {
            "last": torch.where(weights > self.share, now, seen.row_stats["last"]),
            "best": torch.maximum(seen.row_stats["best"], weights),
        }

    def score(self, seen):
        return seen.row_stats["last"] + seen.row_stats["best"] / 2


def keep_even(size):
    return evict_one(size, lambda t, seen: [lowest({p: p % 2 == 0 for p in head}) for head in seen])


def least_recently_read(size, share):
    last, best = {}, {}

    def worst(t, seen):
        for h, head in enumerate(seen):
            for p, w in head.items():
                last[h, p] = t if mean(w) > share else last.get((h, p), 0)
                best[h, p] = max(best.get((h, p), 0.0), mean(w))
        return [lowest({p: last[h, p] + best[h, p] / 2 for p in head}) for h, head in enumerate(seen)]

    return evict_one(size, worst)


OWN = {
    "keep even": (KeepEven(5), lambda l: keep_even(5)),
    "keep even per layer": (KeepEven((1, 6)), lambda l: keep_even((1, 6)[l])),
    "least recently read": (LeastRecentlyRead(5), lambda l: least_recently_read(5, 0.2)),
    "least recently read per layer": (LeastRecentlyRead((2, 6), share=0.1), lambda l: least_recently_read((2, 6)[l], 0.1)),
}


@pytest.mark.parametrize(("operator", "rule"), OWN.values(), ids=OWN)
def test_user_defined_operator_works_in_every_path(operator, rule, tmp_path):
    cell, text, lengths = tiny_cell(), random_tokens(5, 2, 15), torch.tensor([15, 11])
    expected = [dense_decoder(cell, text[b, :n], rule) for b, n in enumerate(lengths.tolist())]
    by_step, end = step_loop(cell, text, cell.initial_state(2, operator), lengths)
    for b, (logits, after) in enumerate(expected):
        assert_close(by_step[b, : lengths[b]], logits)
        assert [retained_positions(end)[l][b] for l in range(2)] == [history[-1] for history in after]
    folded, state = cell(text, cell.initial_state(2, operator), lengths=lengths)
    assert_close(folded, by_step, 1e-8)
    assert_same(state, end, 1e-8)
    more = random_tokens(6, 2, 8)
    swapped, other = step_loop(cell, more[[1, 0]], end.select([1, 0]))
    end.save(tmp_path / "state")
    for start in (end, end.clone(), msrnn.load_state(tmp_path / "state")):
        straight, after = step_loop(cell, more, start)
        assert_close(swapped[[1, 0]], straight)
        assert_same(other.select([1, 0]), after, 1e-9)
    moving = end.clone()
    for t in range(8):
        read, moving = cell.step_(more[:, t], moving)
        assert_close(read, straight[:, t])
    assert_same(moving, after, 1e-9)


@dataclass(frozen=True)
class Views(Reduction):
    """A statistic that is a view of the clock."""

    stat_names: ClassVar[tuple[str, ...]] = ("now",)

    def update(self, seen):
        return {"now": seen.clock[:, None, None].to(seen.weights.dtype).expand_as(seen.positions)}

    def score(self, seen):
        return seen.row_stats["now"] + seen.weights.mean(2)


def test_update_may_return_a_view():
    cell, text, lengths, operator = tiny_cell(), random_tokens(5, 2, 9), torch.tensor([9, 6]), Views(3)
    by_step, end = step_loop(cell, text, cell.initial_state(2, operator), lengths)
    folded, state = cell(text, cell.initial_state(2, operator), lengths=lengths)
    assert_close(folded, by_step, 1e-8)
    assert_same(state, end, 1e-8)
    alone, own = step_loop(cell, text[1:, :6], cell.initial_state(1, operator))
    assert_close(by_step[1, :6], alone[0])
    assert_same(end.select([1]), own, 1e-9)


@dataclass(frozen=True)
class KeepEvenIn(Reduction):
    """:class:`KeepEven` with scores of another dtype."""

    type: str = "bool"

    def score(self, seen):
        return (seen.positions % 2 == 0).to(getattr(torch, self.type))


@pytest.mark.parametrize("type", ["float32", "bfloat16", "bool", "int64", "uint8"])
def test_score_of_any_dtype_gives_the_same_evictions(type):
    cell, text, lengths = tiny_cell(), random_tokens(5, 2, 9), torch.tensor([9, 2])
    _, state = step_loop(cell, text, cell.initial_state(2, KeepEvenIn(4, type)), lengths)
    _, state = cell.step(text[:, 0], state)  # the short row still has empty rows to give
    assert retained_positions(state)[0] == [[[2, 4, 6, 8]] * 2, [[0, 1, 2]] * 2]


def test_missing_statistic_is_refused():
    @dataclass(frozen=True)
    class Forgets(Reduction):
        stat_names: ClassVar[tuple[str, ...]] = ("one", "other")

        def update(self, seen):
            return {"one": seen.weights.mean(2)}

        def score(self, seen):
            return seen.row_stats["one"]

    cell = tiny_cell()
    with pytest.raises(msrnn.Error, match=r"Forgets.*other"):
        cell.step(torch.tensor([1]), cell.initial_state(1, Forgets(3)))
