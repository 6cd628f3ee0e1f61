"""The rules of the operators with constants, in plain Python, and random constants for the tiny cells."""

import cmath
import math

import torch
from support.naive_operators import cheapest, dot, softmax

from msrnn import Constants, ExpectedAttention, LearnedScore, QFilters

L, N, K, D, E, H = 2, 4, 2, 6, 24, 5


def constants(**shapes):
    """Return random constants of these shapes."""
    generator = torch.Generator().manual_seed(len(shapes))
    return Constants({name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()})


FILTERS = constants(filters=(L, K, D))
QUERIES = constants(mean=(L, N, D), covariance=(L, N, D, D), frequencies=(L, D // 2))
LINEAR = constants(weight=(L, K, E), bias=(L, K))
NETWORK = constants(hidden=(L, H, E), hidden_bias=(L, H), weight=(L, K, H), bias=(L, K))


def number(c, name, *index):
    return c.tensors[name][index].tolist()


def q_filters(l):
    def rule(t, h, rows, logits, full):
        return cheapest(rows, lambda row: dot(row.key, number(FILTERS, "filters", l, h))) if full else None

    return rule


def rotated(x, angle):
    """Rotate pairs ``(x[i], x[i + D/2])`` by complex numbers."""
    half = len(x) // 2
    z = [complex(x[i], x[i + half]) * cmath.exp(1j * angle[i]) for i in range(half)]
    return [a.real for a in z] + [a.imag for a in z]


def expected_attention(sinks):
    def at(l):
        def rule(t, h, rows, logits, full):
            if not full:
                return None
            angle, groups, share = number(QUERIES, "frequencies", l), len(logits), dict.fromkeys(rows, 0.0)
            for g in range(groups):
                n = h * groups + g
                turn = [t * a for a in angle]
                mean = rotated(number(QUERIES, "mean", l, n), turn)
                columns = [rotated(list(c), turn) for c in zip(*number(QUERIES, "covariance", l, n), strict=True)]
                covariance = [rotated(list(r), turn) for r in zip(*columns, strict=True)]
                z = [
                    dot(row.key, mean) + dot(row.key, [dot(row.key, c) for c in zip(*covariance, strict=True)]) / 2
                    for row in rows
                ]
                for row, p in zip(rows, softmax(z), strict=True):
                    share[row] += p / groups
            free = [row for row in rows if row.position >= sinks]
            return cheapest(free, lambda row: share[row] * math.sqrt(dot(row.value, row.value)))

        return rule

    return at


def learned_score(c, recent):
    def at(l):
        def score(row, h):
            x = row.entry
            rms = math.sqrt(dot(x, x) / len(x) + 1e-6)
            x = [a / rms for a in x]
            if "hidden" in c.tensors:
                z = [dot(w, x) + b for w, b in zip(number(c, "hidden", l), number(c, "hidden_bias", l), strict=True)]
                x = [a * (1 + math.erf(a / math.sqrt(2))) / 2 for a in z]
            return dot(number(c, "weight", l, h), x) + number(c, "bias", l, h)

        def rule(t, h, rows, logits, full):
            free = [row for row in rows if row.position <= t - recent]
            return cheapest(free, lambda row: score(row, h)) if full else None

        return rule

    return at


CASES = {
    "q-filters": (QFilters(5, FILTERS), q_filters),
    "expected-attention": (ExpectedAttention(6, QUERIES, sinks=1), expected_attention(1)),
    "learned-score": (LearnedScore(6, LINEAR), learned_score(LINEAR, 3)),
    "learned-score with a hidden layer": (LearnedScore((5, 7), NETWORK, recent=1), learned_score(NETWORK, 1)),
}
