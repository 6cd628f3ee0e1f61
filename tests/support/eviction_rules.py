"""Eviction rules in plain Python, and a dense decoder that attends to the retained rows; no code is shared with the library."""

import math

import torch

from msrnn.layers.rotary import DynamicNTKRope


def dense_decoder(cell, text, rule):
    """Run the decoder on one text, all tokens at once; each query attends to the positions that a rule retained.

    Args:
        text: ids ``(T,)``.
        rule: ``rule(layer)`` returns a function of t and ``seen``, the attention weights at token t: for each key/value head a
            dict ``{position: [weight per query head]}``. This function returns the positions to retain, per key/value head.

    Returns:
        Logits ``(T, V)`` and ``after[layer][t][head]``, the sorted positions retained after token t.
    """
    c, T = cell.config, len(text)
    G = c.n_heads // c.n_kv_heads

    def theta(t):  # dynamic NTK scaling rotates token t as in a text of t + 1 tokens
        if not isinstance(c.rope, DynamicNTKRope):
            return c.rope.theta
        scale = max(t + 1, c.rope.original_length) / c.rope.original_length
        return c.rope.theta * (c.rope.factor * scale - (c.rope.factor - 1)) ** (c.head_dim / (c.head_dim - 2))

    def norm(x, gain):
        return x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * gain

    def heads(x, count):  # (T, count · D) -> (count, T, D), rotated; pair i of a head is a complex number
        half = c.head_dim // 2
        x = x.view(T, count, c.head_dim)
        angle = torch.tensor([[t * theta(t) ** (-i / half) for i in range(half)] for t in range(T)], dtype=x.dtype)
        z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
        return torch.cat((z.real, z.imag), -1).transpose(0, 1)

    x, after = cell.embed.weight[text], []
    for l, layer in enumerate(cell.layers):
        normed = norm(x, layer.attention_norm.weight)
        q, k = heads(normed @ layer.q.weight.T, c.n_heads), heads(normed @ layer.k.weight.T, c.n_kv_heads)
        v = (normed @ layer.v.weight.T).view(T, c.n_kv_heads, c.head_dim).transpose(0, 1)
        scores = torch.stack([q[n] @ k[n // G].T for n in range(c.n_heads)]) / math.sqrt(c.head_dim)  # (N, T, T)
        weights, retained, history, decide = torch.zeros_like(scores), [[] for _ in v], [], rule(l)
        for t in range(T):
            for n in range(c.n_heads):
                visible = [*retained[n // G], t]
                weights[n, t, visible] = scores[n, t, visible].softmax(-1)
            rows = weights[:, t].tolist()
            seen = [{p: [rows[h * G + g][p] for g in range(G)] for p in (*retained[h], t)} for h in range(c.n_kv_heads)]
            retained = decide(t, seen)
            history.append([sorted(positions) for positions in retained])
        after.append(history)
        attn_output = torch.stack([weights[n] @ v[n // G] for n in range(c.n_heads)], 1)  # (T, N, D)
        x = x + attn_output.flatten(1) @ layer.o.weight.T
        normed = norm(x, layer.ffn_norm.weight)
        gate = normed @ layer.gate.weight.T
        x = x + (gate * gate.sigmoid() * (normed @ layer.up.weight.T)) @ layer.down.weight.T
    return norm(x, cell.norm.weight) @ (cell.embed if c.tied else cell.head).weight.T, after


# The rules of the library's operators.


def evict_one(size, worst):
    """Return a rule that evicts one position per head above ``size`` rows; ``worst(t, seen)`` returns it per head."""

    def decide(t, seen):
        out = worst(t, seen)
        return [[p for p in head if len(head) <= size or p != evicted] for head, evicted in zip(seen, out, strict=True)]

    return decide


def window(size):
    return evict_one(size, lambda t, seen: [min(head) for head in seen])


def sinks(size, first):
    return evict_one(size, lambda t, seen: [min((p for p in head if p >= first), default=None) for head in seen])


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def lowest(score):
    """Return the position with the lowest score; of equal scores the oldest."""
    return min(score, key=lambda p: (score[p], p))


def tova(size):
    def worst(t, seen):
        return [lowest({p: mean(w for head in seen for w in head[p]) for p in seen[0]})] * len(seen)

    return evict_one(size, worst)


def tova_head(size):
    return evict_one(size, lambda t, seen: [lowest({p: mean(w) for p, w in head.items()}) for head in seen])


def h2o(size, recent, layerwise=False):
    received = {}

    def worst(t, seen):
        for h, head in enumerate(seen):
            for p, w in head.items():
                received[h, p] = received.get((h, p), 0.0) + mean(w)
        out = []
        for h, head in enumerate(seen):
            free = sorted(head)[: len(head) - recent]  # the newest `recent` rows are protected
            group = range(len(seen)) if layerwise else (h,)
            out.append(lowest({p: mean(received[i, p] for i in group) for p in free}) if free else None)
        return out

    return evict_one(size, worst)


def full():
    return evict_one(math.inf, lambda t, seen: [None for _ in seen])
