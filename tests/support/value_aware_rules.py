"""The rules of the operators that read values, written with the attention output that would result without a row."""

import math
from statistics import fmean

from support.naive_operators import cheapest, softmax

from msrnn import CAOTE, VATP, DropKV


def output(logits, rows):
    """Return the attention output of one query over the rows."""
    weights = softmax(logits)
    return [math.fsum(w * row.value[i] for w, row in zip(weights, rows, strict=True)) for i in range(len(rows[0].value))]


def change_without(logits, rows, gone):
    """Return the squared distance of the output of one query with all rows and without row ``gone``."""
    rest = [i for i in range(len(rows)) if i != gone]
    one, other = output(logits, rows), output([logits[i] for i in rest], [rows[i] for i in rest])
    return math.fsum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def caote(l):
    def rule(t, h, rows, logits, full):
        changes = {row: math.fsum(change_without(z, rows, i) for z in logits) for i, row in enumerate(rows)} if full else {}
        return cheapest(rows, changes.get) if full else None

    return rule


def caote_layer(l):
    def rule():
        pass

    def together(t, heads, full):
        if not full:
            return None
        changes = {}
        for rows, logits in heads:
            for i, row in enumerate(rows):
                more = math.fsum(change_without(z, rows, i) for z in logits)
                changes[row.position] = changes.get(row.position, 0.0) + more
        return min(changes, key=lambda p: (changes[p], p))

    rule.together = together
    return rule


def dropkv(window):
    def at(l):
        def rule(t, h, rows, logits, full):
            for i, row in enumerate(rows):
                row.by_query[t] = fmean(change_without(z, rows, i) if len(rows) > 1 else 0.0 for z in logits)
            free = [row for row in rows if row.position <= t - window]
            last = range(t - window + 1, t + 1)
            return cheapest(free or rows, lambda row: math.fsum(row.by_query.get(s, 0.0) for s in last)) if full else None

        return rule

    return at


def vatp(recent, sinks):
    def at(l):
        def rule(t, h, rows, logits, full):
            free = [row for row in rows if sinks <= row.position <= t - recent]
            received = {row: math.fsum(row.by_query.values()) * math.fsum(map(abs, row.value)) for row in rows}
            return cheapest(free or rows, received.get) if full else None

        return rule

    return at


CASES = {
    "caote": (CAOTE(5), caote),
    "caote-layer": (CAOTE(6, per_head=False), caote_layer),
    "caote per layer": (CAOTE((3, 7)), caote),
    "dropkv": (DropKV(7, window=3), dropkv(3)),
    "vatp": (VATP(7, sinks=1), vatp(3, 1)),
    "vatp, settings": (VATP(6, recent=1, sinks=2), vatp(1, 2)),
}
