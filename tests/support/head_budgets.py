"""Operators in which heads hold different numbers of rows, and their rules in plain Python for ``naive_operators.naive``."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from hypothesis import strategies as st
from support.naive_operators import cheapest, softmax
from support.tiny_models import ROPES, tiny_cell

import msrnn
from msrnn import A2SF, CAOTE, H2O, TOVA, KeyDiff, LastQueries, Random, SharedBudget, Sinks, Window


@dataclass(frozen=True)
class LowestPeak(msrnn.Reduction):
    """A user-defined operator with the safe flags but one: the row with the lowest maximum weight is evicted."""

    stat_names: ClassVar[tuple[str, ...]] = ("peak",)
    depends_on_row_layout: ClassVar[bool] = False

    def update(self, observation):
        return {"peak": torch.maximum(observation.row_stats["peak"], observation.weights.amax(2))}

    def score(self, observation):
        return observation.row_stats["peak"]


def per_head(size):
    """Return operators of every kind that decide per head, with any ``size`` of at least 2, or None for a head."""
    return [
        *(Window(size), Sinks(size, sinks=1), TOVA(size, per_head=True), H2O(size), H2O(size, recent=1), CAOTE(size)),
        *(A2SF(size), KeyDiff(size), LastQueries(size, window=2), Random(size), LowestPeak(size)),
    ]


@st.composite
def uneven_cells(draw):
    """Draw a tiny cell, and an operator with sizes per head or a shared budget."""
    heads, K = draw(st.sampled_from([(4, 2), (3, 3), (6, 2), (2, 1)]))
    L = draw(st.integers(1, 2))
    rope = draw(st.sampled_from([*ROPES.values()]))
    cell = tiny_cell(seed=draw(st.integers(0, 99)), n_layers=L, n_heads=heads, n_kv_heads=K, head_dim=4, rope=rope)
    if draw(st.booleans()):
        one = st.tuples(*[st.integers(2, 6) | st.none()] * K)
        size = draw(st.tuples(one) | st.tuples(*[one | st.integers(2, 6)] * L))
        size = size if any(isinstance(x, tuple) for x in size) else (draw(one),)
        return cell, draw(st.sampled_from(per_head(size)))
    size = draw(st.integers(2, 5) | st.tuples(*[st.integers(2, 5)] * L))
    return cell, SharedBudget(draw(st.sampled_from(per_head(size))), floor=draw(st.sampled_from([0, 0.2, 0.5, 1])))


# Scores in plain Python: (t, rows, logits of the query heads) -> score per row.


def tova(t, rows, logits):
    return [row.by_query[t] for row in rows]


def h2o(t, rows, logits, recent=1):
    return [math.inf if row.position > t - recent else math.fsum(row.by_query.values()) for row in rows]


def caote(t, rows, logits):
    squares = [0.0] * len(rows)
    for z in logits:
        p = softmax(z)
        output = [math.fsum(w * row.value[d] for w, row in zip(p, rows, strict=True)) for d in range(len(rows[0].value))]
        for i, row in enumerate(rows):
            distance = math.fsum((a - b) ** 2 for a, b in zip(output, row.value, strict=True))
            squares[i] += (p[i] / (1 - p[i])) ** 2 * distance if p[i] < 1 else 0.0
    return squares


class SizedHeads:
    """Each head evicts by itself; a head with size None retains all rows."""

    def __init__(self, sizes, score):
        self.sizes, self.score = sizes, score

    def several(self, t, seen):
        gone = []
        for (rows, logits), size in zip(seen, self.sizes, strict=True):
            scores = dict(zip((row.position for row in rows), self.score(t, rows, logits), strict=True))
            evicts = size is not None and len(rows) > size
            gone.append([cheapest(rows, lambda row, s=scores: s[row.position])] if evicts else [])
        return gone


class SharedHeads:
    """The heads of the layer share ``size`` rows per head; ``floor`` rows stay in each."""

    def __init__(self, size, floor, score):
        self.size, self.floor, self.score = size, floor, score

    def several(self, t, seen):
        left = [list(rows) for rows, _ in seen]
        scores = [self.score(t, rows, logits) for rows, logits in seen]
        score = {id(row): s for (rows, _), own in zip(seen, scores, strict=True) for row, s in zip(rows, own, strict=True)}
        gone = [[] for _ in seen]
        while sum(map(len, left)) > self.size * len(left):
            heads = [h for h, rows in enumerate(left) if len(rows) > self.floor]
            h, row = min(((h, row) for h in heads for row in left[h]), key=lambda x: (score[id(x[1])], x[1].position, x[0]))
            left[h].remove(row)
            gone[h].append(row)
        return gone
