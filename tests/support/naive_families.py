"""Every family in plain loops: one token, one layer, one head at a time, with softmax and eviction written out.

No code is shared with the layers, operators and the state of the library.
"""

import math

import torch
from support.remapped_decoder import remap

from msrnn.layers.rotary import LinearRope, Rope

GEMMA = ("gemma2", "gemma3")
GRANITE = ("granite", "granite_swa")


def naive_decoder(cell, text, rules, places="absolute"):
    """Read one text.

    Args:
        cell: a cell of one of the families of ``tiny_families``, in float64.
        text: ids.
        rules: for each layer a rule of ``support.eviction_rules``: a function of t and ``seen``, which has for each key/value
            head a dict ``{position: [weight of each query head]}``. It returns the positions to retain, per key/value head.
        places: as of ``initial_state``.

    Returns:
        Logits ``(T, V)``, ``after[t][layer][head]``, the retained positions, and ``mass[t][layer]``, the sum of the weights of
        all query heads.
    """
    c, w = cell.config, dict(cell.named_parameters())
    K, G = c.n_kv_heads, c.n_heads // c.n_kv_heads
    H, logits, after, mass = [[[] for _ in range(K)] for _ in range(c.n_layers)], [], [], []
    for t, token in enumerate(text):
        x = w["embed.weight"][token]
        if c.family in GEMMA:
            x = x * math.sqrt(c.width)
        if c.family in GRANITE:
            x = x * c.embedding_multiplier
        mass.append([])
        for l in range(c.n_layers):
            p = {name.removeprefix(f"layers.{l}."): value for name, value in w.items() if name.startswith(f"layers.{l}.")}
            q, k, v = _projections(c, p, x)
            for h in range(K):
                H[l][h].append((t, k[h], v[h]))
            outputs, seen = [], [{position: [] for position, _, _ in rows} for rows in H[l]]
            for n in range(c.n_heads):
                rows = H[l][n // G]
                where = [position for position, _, _ in rows] if places == "absolute" else remap(places, [r[0] for r in rows])
                query = _rotated(q[n], where[-1], c.ropes[l])
                if c.family == "ministral3":
                    query = query * (1 + c.query_beta * math.log(1 + t // c.query_length))
                keys = [_rotated(key, position, c.ropes[l]) for position, (_, key, _) in zip(where, rows, strict=True)]
                weights = _softmax([_logit(c, query, key) for key in keys], p["sinks"][n] if "sinks" in p else None)
                for weight, (position, _, _) in zip(weights, rows, strict=True):
                    seen[n // G][position].append(weight.item())
                outputs.append(sum(weight * value for weight, (_, _, value) in zip(weights, rows, strict=True)))
            mass[-1].append(sum(weight for head in seen for weights in head.values() for weight in weights))
            retained = rules[l](t, seen)
            H[l] = [[row for row in rows if row[0] in stay] for rows, stay in zip(H[l], retained, strict=True)]
            x = _after_attention(c, p, x, torch.cat(outputs))
        out = w["embed.weight" if c.tied else "head.weight"] @ _norm(c, x, w["norm.weight"])
        if c.family in GRANITE:
            out = out / c.logits_scaling
        logits.append(_softcap(out, getattr(c, "logits_softcap", None)))
        after.append([[[position for position, _, _ in rows] for rows in layer] for layer in H])
    return torch.stack(logits), after, mass


def _projections(c, p, x):
    """Return queries, keys and values of all heads, before the rotation."""
    normed = x if c.family == "olmo2" else _norm(c, x, p["attention_norm.weight"])
    q, k, v = (p[f"{name}.weight"] @ normed for name in "qkv")
    if c.family == "qwen2":
        q, k, v = q + p["q_bias"], k + p["k_bias"], v + p["v_bias"]
    if c.family == "olmo2":
        q, k = _norm(c, q, p["q_norm.weight"]), _norm(c, k, p["k_norm.weight"])
    q, k, v = (heads.split(c.head_dim) for heads in (q, k, v))
    if c.family in ("qwen3", "gemma3"):
        q, k = [_norm(c, head, p["q_norm.weight"]) for head in q], [_norm(c, head, p["k_norm.weight"]) for head in k]
    return q, k, v


def _after_attention(c, p, x, attn_output):
    out = p["o.weight"] @ attn_output
    if c.family in GEMMA:
        x = x + _norm(c, out, p["attention_output_norm.weight"])
        return x + _norm(c, _mlp(c, p, _norm(c, x, p["ffn_norm.weight"])), p["ffn_output_norm.weight"])
    if c.family == "olmo2":
        x = x + _norm(c, out, p["attention_norm.weight"])
        return x + _norm(c, _mlp(c, p, x), p["ffn_norm.weight"])
    factor = c.residual_multiplier if c.family in GRANITE else 1.0
    x = x + factor * out
    return x + factor * _mlp(c, p, _norm(c, x, p["ffn_norm.weight"]))


def _mlp(c, p, x):
    gate, up = p["gate.weight"] @ x, p["up.weight"] @ x
    if c.family in GEMMA:  # GELU in its tanh form
        gate = 0.5 * gate * (1 + (math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)).tanh())
    else:
        gate = gate / (1 + (-gate).exp())
    return p["down.weight"] @ (gate * up)


def _norm(c, x, weight):
    gain = 1 + weight if c.family in GEMMA else weight
    return x / math.sqrt(sum(a * a for a in x.tolist()) / len(x) + c.norm_eps) * gain


def _rotated(head, position, rope):
    """Return a head ``(D,)``, rotated by pairs of elements i and i + D/2."""
    if rope is None:
        return head
    half = len(head) // 2
    if type(rope) in (Rope, LinearRope):
        frequencies = [rope.theta ** (-i / half) / getattr(rope, "factor", 1.0) for i in range(half)]
    else:  # YaRN, which tests/layers/test_rotary.py compares with transformers
        frequencies = rope.frequencies(torch.tensor(0), len(head), torch.float64).tolist()
    angle = position * torch.tensor(frequencies, dtype=head.dtype)
    cos, sin, (a, b) = angle.cos(), angle.sin(), head.split(half)
    return torch.cat((a * cos - b * sin, b * cos + a * sin)) * rope.attention_scaling


def _logit(c, query, key):
    scale = 1 / math.sqrt(len(query))
    if c.family in GEMMA:
        scale = 1 / math.sqrt(c.query_pre_attn_scalar)
    if c.family in GRANITE:
        scale = c.attention_multiplier
    return _softcap(scale * (query @ key), getattr(c, "attention_softcap", None))


def _softcap(x, bound):
    return x if bound is None else bound * (x / bound).tanh()


def _softmax(logits, sink):
    """Return the weights of the rows; a ``sink`` is one more logit, without a row."""
    powers = [logit.exp() for logit in logits]
    total = sum(powers) + (0 if sink is None else sink.exp())
    return [power / total for power in powers]
