"""A decoder with learned rows as naive attention over one matrix."""

import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from msrnn.layers.positional import alibi_slopes
from msrnn.layers.rotary import Rope, apply_rotary


def naive_layers(cell, x, position):
    """All of ``x (B, T, E)`` at once, causal, at ``position (T,)``, NaN for no place: what leaves the last layer. Persistent
    rows are columns of one matrix, seen by all, without a place."""
    c, (B, T, _) = cell.config, x.shape
    N, K, D, P = c.n_heads, c.n_kv_heads, c.head_dim, c.persistent
    mask = torch.zeros(N, T, P + T, dtype=torch.float64)
    mask[..., P:].masked_fill_(torch.ones(T, T).triu(1).bool(), -torch.inf)
    if c.positions == "alibi":
        distance = (position[:, None] - position).nan_to_num(0)  # near to all
        distance = torch.where(position.isnan(), 0, distance)
        mask[..., P:] -= alibi_slopes(N, torch.float64)[:, None, None] * distance
    if isinstance(c.positions, Rope):
        rotation = c.positions.cos_sin(position.nan_to_num(0).long(), D, x.dtype)
    for l, layer in enumerate(cell.layers):
        y = layer.attention_norm(x)
        q, k, v = (m(y).view(B, T, -1, D) for m in (layer.q, layer.k, layer.v))
        if isinstance(c.positions, Rope):
            q, k = apply_rotary(q, rotation), apply_rotary(k, rotation)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if P:
            k = torch.cat((cell.persistent_keys[l].expand(B, -1, -1, -1), k), dim=2)
            v = torch.cat((cell.persistent_values[l].expand(B, -1, -1, -1), v), dim=2)
        k, v = (rows.repeat_interleave(N // K, dim=1) for rows in (k, v))
        x = x + layer.o(scaled_dot_product_attention(q.transpose(1, 2), k, v, mask).transpose(1, 2).flatten(2))
        if c.ffn != "none":
            y = layer.ffn_norm(x)
            x = x + layer.down(silu(layer.gate(y)) * layer.up(y))
    return x


def naive_logits(cell, text):
    m, T = cell.config.memory_tokens, text.shape[1]
    x = cell.embed_tokens(text, torch.arange(T).expand_as(text))
    position = torch.cat((torch.full((m,), torch.nan), torch.arange(T)))
    if m:
        x = torch.cat((cell.memory.expand(len(text), -1, -1), x), dim=1)
    return cell.compute_logits(naive_layers(cell, x, position)[:, m:])
