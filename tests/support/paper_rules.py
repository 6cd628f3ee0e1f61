"""Rules of operators from further papers, in plain Python, each written from its paper."""

import math
from statistics import fmean

import torch
from support import stochastic_rules, value_aware_rules, window_rules
from support.naive_operators import cheapest, dot, softmax
from support.stochastic_rules import draws

from msrnn import CaM, KeyDiff, Keyformer, Knorm, LastQueries, MorphKV, Random, Scissorhands


def distinct(seed, B, T):
    """Return ``(B, T)`` ids without repetition, because the keys of equal tokens have equal norms in the first layer."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(50, generator=generator)[:T] for _ in range(B)])


def random(seed):
    def at(l):
        def rule(t, h, rows, logits, full):
            return cheapest(rows, lambda row: draws(seed, l, h, row.position, t)) if full else None

        return rule

    return at


def knorm(l):
    return lambda t, h, rows, logits, full: max(rows, key=lambda row: dot(row.key, row.key)) if full else None


def keydiff(l):
    def rule(t, h, rows, logits, full):
        if not full:
            return None
        units = [[x / math.sqrt(dot(row.key, row.key)) for x in row.key] for row in rows]
        mean = [fmean(column) for column in zip(*units, strict=True)]
        return max(zip(rows, units, strict=True), key=lambda pair: dot(pair[1], mean) / math.sqrt(dot(mean, mean)))[0]

    return rule


def last_queries(window):
    def rule(t, h, rows, logits, full):
        free = [row for row in rows if row.position <= t - window]
        last = range(t - window + 1, t + 1)
        return cheapest(free or rows, lambda row: math.fsum(row.by_query.get(s, 0.0) for s in last)) if full else None

    return lambda l: rule


def morphkv(window, fuse):
    def rule(t, h, rows, logits, full):
        for row, share in zip(rows, softmax([math.fsum(z) for z in zip(*logits, strict=True)]), strict=True):
            row.by_query[t] = share  # instead of the mean
        free = [row for row in rows if row.position <= t - window]
        last = range(t - window + 1, t + 1)
        return cheapest(free or rows, lambda row: fuse(row.by_query.get(s, 0.0) for s in last)) if full else None

    return lambda l: rule


def scissorhands(recent, history):
    def rule(t, h, rows, logits, full):
        def counter(row):
            if row.position > t - recent:
                return 0
            return sum(share < 1 / (s + 1) for s, share in row.by_query.items() if s > t - history)

        return cheapest(rows, lambda row: -counter(row)) if full else None

    return lambda l: rule


def keyformer(recent, steps, seed):
    def at(l):
        total = {}

        def rule(t, h, rows, logits, full):
            tau = 1 + min(1, t / steps)
            noisy = []
            for g, z in enumerate(logits):
                noise = [-math.log(-math.log(draws(seed, l, h * len(logits) + g, row.position, t))) for row in rows]
                noisy.append(softmax([(a + b) / tau for a, b in zip(z, noise, strict=True)]))
            for i, row in enumerate(rows):
                total[h, row.position] = total.get((h, row.position), 0.0) + fmean(y[i] for y in noisy)
            free = [row for row in rows if row.position <= t - recent]
            return cheapest(free or rows, lambda row: total[h, row.position]) if full else None

        return rule

    return at


def cam(sinks, into, seed):
    def at(l):
        def rule(t, h, rows, logits, full):
            if not full:
                return None
            gone = next(row for row in rows if row.position >= sinks)
            after = [row for row in rows if row.position > gone.position]
            likely = gone.by_query[t] / fmean(row.by_query[t] for row in after)
            if draws(seed, l, h, gone.position, t) < min(1, likely):
                for row in after[:into]:
                    row.value = [x + y / into for x, y in zip(row.value, gone.value, strict=True)]
            return gone

        return rule

    return at


CASES = {
    "random": (Random(5), random(0)),
    "random, seed 3": (Random(6, seed=3), random(3)),
    "knorm": (Knorm(5), knorm),
    "keydiff": (KeyDiff(6), keydiff),
    "last queries": (LastQueries(7, window=3), last_queries(3)),
    "last queries, all rows their own": (LastQueries(4, window=4), last_queries(4)),
    "morphkv": (MorphKV(7, window=3), morphkv(3, math.fsum)),
    "morphkv-max": (MorphKV(6, window=2, max_fusion=True), morphkv(2, max)),
    "scissorhands": (Scissorhands(6, recent=2), scissorhands(2, 400)),
    "scissorhands, short history": (Scissorhands(6, recent=0, history=5), scissorhands(0, 5)),
    "scissorhands, history in two numbers": (Scissorhands(4, recent=1, history=30), scissorhands(1, 30)),
    "keyformer": (Keyformer(7, steps=9), keyformer(2, 9, 0)),
    "keyformer, seed 2": (Keyformer(6, recent=0, steps=100, seed=2), keyformer(0, 100, 2)),
    "cam": (CaM(6, sinks=2, merge_window=3), cam(2, 3, 0)),
    "cam, seed 1": (CaM(5, sinks=1, merge_window=9, seed=1), cam(1, 9, 1)),
    "per layer": (MorphKV((6, 4), window=2), morphkv(2, math.fsum)),
    "cam per layer": (CaM((4, 7), sinks=1, merge_window=2), cam(1, 2, 0)),
    "random per layer": (Random((3, 6)), random(0)),
    "keyformer, highest temperature": (Keyformer(7, steps=1), keyformer(2, 1, 0)),
    **stochastic_rules.CASES,
    **value_aware_rules.CASES,
    **window_rules.CASES,
}
OPERATORS = [operator for operator, _ in CASES.values()]
