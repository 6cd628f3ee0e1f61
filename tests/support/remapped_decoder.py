"""A decoder in complex numbers that rotates all retained rows again at every token; no code is shared with the library."""

import cmath
import math

import torch

from msrnn.layers.rotary import DynamicNTKRope


def remap(places, positions):
    """Return the remapped positions of rows at ``positions``, which are in ascending order."""
    if places == "inside":
        return list(range(len(positions)))
    remapped = [0.0]
    for i in range(1, len(positions)):
        gap = positions[i] - positions[i - 1]
        remapped.append(remapped[-1] + (math.log(math.log(gap)) if gap > 10 else gap))
    return remapped


def rotate(x, position, rope):
    """Return a head ``(D,)`` as D / 2 complex numbers; pair i is rotated by position · f_i."""
    half, theta = len(x) // 2, rope.theta
    if isinstance(rope, DynamicNTKRope):
        scale = max(position + 1, rope.original_length) / rope.original_length
        theta *= (rope.factor * scale - (rope.factor - 1)) ** (2 * half / (2 * half - 2))
    return [complex(x[i], x[half + i]) * cmath.rect(1, position * theta ** (-i / half)) for i in range(half)]


def remapped_decoder(cell, text, rule, places):
    """Run the decoder on one text.

    Args:
        text: T ids.
        rule: as in :func:`support.eviction_rules.dense_decoder`.
        places: "inside" or "compressed".

    Returns:
        Logits ``(T, V)`` and ``after[t][layer][head]``, the retained positions. A row is a tuple of its position, its
        unrotated key and its value.
    """
    c = cell.config
    K, G, D = c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim
    rules, H = [rule(l) for l in range(c.n_layers)], [[[] for _ in range(K)] for _ in range(c.n_layers)]
    logits, after = [], []

    def norm(x, gain):
        return x / (x.pow(2).mean() + c.norm_eps).sqrt() * gain

    for t, token in enumerate(text):
        x = cell.embed.weight[token]
        for l, layer in enumerate(cell.layers):
            normed, attn_output, seen = norm(x, layer.attention_norm.weight), [], []
            q, k, v = ((m.weight @ normed).view(-1, D) for m in (layer.q, layer.k, layer.v))
            for h in range(K):
                H[l][h].append((t, k[h].tolist(), v[h]))
                positions = remap(places, [p for p, _, _ in H[l][h]])
                keys = [rotate(key, position, c.rope) for position, (_, key, _) in zip(positions, H[l][h], strict=True)]
                weights = []
                for g in range(G):
                    query = rotate(q[h * G + g].tolist(), positions[-1], c.rope)
                    scores = [sum((a * b.conjugate()).real for a, b in zip(query, key, strict=True)) for key in keys]
                    weights.append((torch.tensor(scores, dtype=torch.float64) / math.sqrt(D)).softmax(-1))
                    attn_output.append(sum(w * value for w, (_, _, value) in zip(weights[-1], H[l][h], strict=True)))
                seen.append({p: [w[i].item() for w in weights] for i, (p, _, _) in enumerate(H[l][h])})
            retained = rules[l](t, seen)
            H[l] = [[row for row in rows if row[0] in stay] for rows, stay in zip(H[l], retained, strict=True)]
            x = x + layer.o.weight @ torch.cat(attn_output)
            normed = norm(x, layer.ffn_norm.weight)
            gate = layer.gate.weight @ normed
            x = x + layer.down.weight @ (gate * gate.sigmoid() * (layer.up.weight @ normed))
        logits.append((cell.embed if c.tied else cell.head).weight @ norm(x, cell.norm.weight))
        after.append([[[p for p, _, _ in rows] for rows in layer] for layer in H])
    return torch.stack(logits), after
