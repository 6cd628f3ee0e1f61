"""A decoder in plain Python with a rule that says which row goes, token by token, to compare operators with.

A rule receives the queries, keys and values of the library's layer for each token, as lists. Attention, scores, eviction,
merging and the output of the layer are written here.
"""

import math
from statistics import fmean

import torch


class Row:
    """One token of one key/value head: position, key, value, and statistics of a rule."""

    def __init__(self, position, key, value, entry):
        self.position, self.key, self.value = position, key, value
        self.entry = entry  # the input of the layer for this token
        self.by_query = {}  # what each query gave it, by the query's position


def softmax(xs):
    top = max(xs)
    es = [math.exp(x - top) for x in xs]
    return [e / sum(es) for e in es]


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def naive(cell, text, rule, size=None):
    """Return the logits ``(T, V)`` of one text ``(T,)``, and the positions retained at the end per layer and head.

    ``rule(layer)`` gives a function of t, the head's number, its rows (the current one last) and the logits of its query heads,
    ``[g][row]``, that returns the row to go once there are more than ``size(layer)``; it may change values. A rule with an
    attribute ``together`` is called once for all heads instead, with t, a list of pairs (rows, logits), and whether a row has
    to go; it returns the position to go. A rule with an attribute ``several`` is called with t and these pairs, and returns the
    rows to go, a list per head.
    """
    c = cell.config
    G = c.n_heads // c.n_kv_heads
    rules, H = [rule(l) for l in range(c.n_layers)], [[[] for _ in range(c.n_kv_heads)] for _ in range(c.n_layers)]
    out = []
    for t, token in enumerate(text.tolist()):
        x = cell.embed.weight[token][None]  # (1, E)
        for l, layer in enumerate(cell.layers):
            q, k, v = (y[0].tolist() for y in layer.project_qkv(x, c.rope.cos_sin(torch.tensor([t]), c.head_dim, x.dtype)))
            read, seen = [], []
            for h, rows in enumerate(H[l]):
                rows.append(Row(t, k[h], v[h], x[0].tolist()))
                logits = [[dot(q[h * G + g], row.key) / math.sqrt(c.head_dim) for row in rows] for g in range(G)]
                for z in logits:
                    weights = softmax(z)
                    read.append([dot(weights, column) for column in zip(*(row.value for row in rows), strict=True)])
                for i, row in enumerate(rows):
                    row.by_query[t] = fmean(softmax(z)[i] for z in logits)
                seen.append((rows, logits))
            full = size is not None and len(H[l][0]) > size(l)
            if hasattr(rules[l], "several"):
                H[l] = [
                    [row for row in rows if row not in out]
                    for (rows, _), out in zip(seen, rules[l].several(t, seen), strict=True)
                ]
                gone = [None] * len(H[l])
            elif hasattr(rules[l], "together"):
                position = rules[l].together(t, seen, full)
                gone = [next((row for row in rows if row.position == position), None) for rows in H[l]]
            else:
                gone = [rules[l](t, h, rows, logits, full) for h, (rows, logits) in enumerate(seen)]
            for rows, row in zip(H[l], gone, strict=True):
                if row is not None:
                    rows.remove(row)
            x = layer.post_attention(x, torch.tensor([read], dtype=x.dtype))
        out.append(cell.compute_logits(x)[0])
    return torch.stack(out), [[[row.position for row in rows] for rows in layer] for layer in H]


def cheapest(rows, score):
    """Return the row with the lowest score, the oldest of ties; rows are in order."""
    return min(rows, key=lambda row: (score(row), row.position))
