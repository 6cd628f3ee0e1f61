"""The rules of operators that forget, compare keys, or compare parts of the text, in plain Python."""

import math
from statistics import fmean, stdev

from support.naive_operators import cheapest, dot, softmax

from msrnn import A2SF, RKV, LagKV


def a2sf(forgetting):
    def rule(t, h, rows, logits, full):
        def score(row):
            return math.fsum(forgetting ** (t - s) * share for s, share in row.by_query.items())

        return cheapest(rows, score) if full else None

    return lambda l: rule


def rkv(window, importance, threshold, uncounted):
    def rule(t, h, rows, logits, full):
        if not full:
            return None
        units = [[x / math.sqrt(dot(row.key, row.key)) for x in row.key] for row in rows]
        counted = [[dot(a, b) if i != j else 0.0 for j, b in enumerate(units)] for i, a in enumerate(units)]
        for line in counted:
            similar = [j for j, cosine in enumerate(line) if cosine > threshold]
            for j in sorted(similar, key=lambda j: -rows[j].position)[:uncounted]:
                line[j] = 0.0
        redundancy = softmax([fmean(line[j] for line in counted) for j in range(len(rows))])
        last = range(t - window + 1, t + 1)
        score = {}
        for row, redundant in zip(rows, redundancy, strict=True):
            attention = math.fsum(row.by_query.get(s, 0.0) for s in last) / window
            score[row] = importance * attention - (1 - importance) * redundant
        return cheapest([row for row in rows if row.position <= t - window] or rows, score.get)

    return lambda l: rule


def lagkv(lag, sinks):
    def spread(rows, reference, name):
        out = []
        for row in rows:
            scaled = []
            for i, x in enumerate(getattr(row, name)):
                column = [getattr(other, name)[i] for other in reference]
                scaled.append((x - min(column)) / (max(column) - min(column)))
            out.append(stdev(scaled))
        return softmax(out)

    def at(l):
        rank = {}

        def rule(t, h, rows, logits, full):
            read = t + 1 - sinks
            if read >= 2 * lag and read % lag == 0:
                start = t + 1 - 2 * lag
                part = [row for row in rows if start <= row.position < start + lag]
                reference = [row for row in rows if start + lag <= row.position]
                assert len(part) == len(reference) == lag  # nothing leaves before it is ranked
                scores = [a + b for a, b in zip(*(spread(part, reference, name) for name in ("key", "value")), strict=True)]
                for place, row in enumerate(sorted(part, key=lambda row: scores[part.index(row)])):
                    rank[row] = place
            return cheapest([row for row in rows if row in rank], rank.get) if full else None

        return rule

    return at


CASES = {
    "a2sf": (A2SF(5), a2sf(0.9)),
    "a2sf, short memory": (A2SF((6, 4), forgetting=0.5), a2sf(0.5)),
    "r-kv": (RKV(8, window=2, recent_share=0.25), rkv(2, 0.1, 0.5, 2)),
    "r-kv, settings": (RKV(6, window=1, importance=0.8, threshold=0.2, recent_share=0.2), rkv(1, 0.8, 0.2, 1)),
    "lagkv": (LagKV(9, sinks=1), lagkv(2, 1)),
    "lagkv, long parts": (LagKV(10, lag=5, sinks=0), lagkv(5, 0)),
}
