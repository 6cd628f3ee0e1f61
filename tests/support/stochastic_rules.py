"""The random numbers of operators in Python ints, and the rule of value-aware stochastic eviction."""

import math

from support.naive_operators import cheapest

from msrnn import VaSE


def draws(seed, layer, head, position, clock):
    """One round of splitmix64 with Python ints."""
    mask, x = 2**64 - 1, seed
    for part in (layer, clock, head, position):
        x = (x + part + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
    return ((x >> 41) + 0.5) / 2**23


def vase(window, large, sinks, seed):
    def at(l):
        def rule(t, h, rows, logits, full):
            if not full:
                return None
            candidates = [row for row in rows if row.position <= t - window]
            by_range = sorted(candidates, key=lambda row: (row.position >= sinks, min(row.value) - max(row.value)))
            protected = by_range[: max(large, sum(row.position < sinks for row in candidates))]

            def noisy(row):
                attention = math.fsum(row.by_query.get(s, 0.0) for s in range(t - window + 1, t + 1))
                return math.log(attention) - math.log(-math.log(draws(seed, l, h, row.position, t)))

            return cheapest([row for row in candidates if row not in protected], noisy)

        return rule

    return at


CASES = {
    "vase": (VaSE(9, window=3), vase(3, 2, 4, 0)),
    "vase, settings": (VaSE(7, window=2, large=3, sinks=1, seed=4), vase(2, 3, 1, 4)),
    "vase per layer": (VaSE((8, 11), window=4, large=2, sinks=0), vase(4, 2, 0, 0)),
}
