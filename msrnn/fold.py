r"""The fold of the step, many tokens at once, and exact.

Within a layer the recurrence over time touches nothing but that layer's own queries, keys and values. So a chunk of T tokens
is projected at once, its queries meet all rows that any of them could see (S carried over, T new) in one product, the
operator decides token by token on those numbers alone, and one more product with the values ends it. The weights of the model
are read once a chunk instead of once a token; memory is T × (S + T), never the whole text squared.
"""

import torch
from torch import Tensor

from .reduction import Seen
from .state import EMPTY, MultiState
from .transition import dearness, lowest, updated

CHUNK = 128
"""Tokens folded at once: enough to keep the processor busy, few enough to keep T × (S + T) small."""


def fold(q: Tensor, k: Tensor, v: Tensor, H: MultiState, active: Tensor | None) -> tuple[Tensor, MultiState]:
    """What each of T tokens reads, and H after the last; the same as T times append, attend, reduce. Waits for the device.

    Args:
        q: ``(B, N, T, D)``; k, v: ``(B, K, T, D)``; rotated.
        H: the layer before the first token, S rows.
        active: ``(B, T)`` bool; tokens where it is false are not read. None: all are.

    Returns:
        ``(B, N, T, D)``, meaningless where a token is not read, and the new H.
    """
    T = k.shape[2]
    keys, values = torch.cat((H.keys, k), dim=2), torch.cat((H.values, v), dim=2)  # (B, K, R, D), R = S + T
    logits = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3) @ keys.mT  # (B, K, G T, R)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * q.shape[-1] ** -0.5
    logits = logits.unflatten(2, (-1, T))  # (B, K, G, T, R)
    size, S = H.reduction.size, H.keys.shape[2]
    assert not isinstance(size, tuple), "per_layer gives each layer an int"
    if H.reduction.numbers or (size is not None and size < S + T):
        weights, positions, numbers = _decide(logits, H, active, size)
    else:
        weights, positions, numbers = _causal(logits, H, active), _entered(H, T, active), H.numbers
    read = weights.to(values.dtype).flatten(2, 3) @ values  # (B, K, G T, D)
    clock = H.clock + T if active is None else H.clock + active.sum(-1)
    H = MultiState(keys, values, positions, clock, H.reduction, numbers)
    return read.unflatten(2, (-1, T)).flatten(1, 2), H.compact()


def _causal(logits: Tensor, H: MultiState, active: Tensor | None) -> Tensor:
    """The weights where nothing leaves, ``(B, K, G, T, R)``: all rows carried over, and of the new ones those up to each."""
    T, S = logits.shape[-2], H.keys.shape[2]
    late = torch.ones(T, T, dtype=torch.bool, device=logits.device).triu(1)[None]  # (1, T, T)
    if active is not None:
        itself = torch.eye(T, dtype=torch.bool, device=logits.device)
        late = late | (~active[:, None] & ~itself)  # (B, T, T)
    late = late[:, None].expand(*H.empty.shape[:2], T, T)
    hidden = torch.cat((H.empty[:, :, None].expand(-1, -1, T, S), late), dim=-1)  # (B, K, T, R)
    return logits.masked_fill(hidden[:, :, None], -torch.inf).softmax(dim=-1)


def _entered(H: MultiState, T: int, active: Tensor | None) -> Tensor:
    """``(B, K, R)``: the positions once all T tokens have entered, EMPTY where one is not read."""
    new = H.clock[:, None] + torch.arange(T, device=H.clock.device)  # (B, T)
    new = new if active is None else new.masked_fill(~active, EMPTY)
    return torch.cat((H.positions, new[:, None].expand(-1, H.positions.shape[1], -1)), dim=-1)


def _decide(logits: Tensor, H: MultiState, active: Tensor | None, size: int | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Token by token, which row leaves: the weights of every token ``(B, K, G, T, R)``, and the positions and numbers
    ``(B, K, R)`` after the last; a row that has left, or is still to come, has position EMPTY."""
    T, S = logits.shape[-2], H.keys.shape[2]
    shape = (*H.positions.shape[:2], T)
    positions = torch.cat((H.positions, H.positions.new_full(shape, EMPTY)), dim=-1)  # (B, K, R)
    numbers = {name: torch.cat((x, x.new_zeros(shape)), dim=-1) for name, x in H.numbers.items()}
    held, clock, index = (~H.empty).sum(-1), H.clock, torch.arange(S + T, device=logits.device)  # (B, K), (B,), (R,)
    weights = []
    for t in range(T):
        now = None if active is None else active[:, t, None]  # (B, 1)
        positions[..., S + t] = clock[:, None]
        weights.append(logits[:, :, :, t].masked_fill((positions == EMPTY)[:, :, None], -torch.inf).softmax(dim=-1))
        look = Seen(weights[-1].detach(), positions, clock, {name: x.clone() for name, x in numbers.items()})
        after = updated(H.reduction, look)
        entered = index <= S + t if now is None else (index <= S + t) & now[..., None]
        numbers = {name: torch.where(entered, x, numbers[name]) for name, x in after.items()}
        held = held + 1 if now is None else held + now
        if size is not None and S + t >= size:
            score = dearness(H.reduction, look._replace(numbers=after))
            gone = positions == EMPTY  # or still to come: neither can leave
            score = score.masked_fill(gone[:, : score.shape[1]], torch.inf)
            row = lowest(score, positions.masked_fill(gone, torch.iinfo(torch.int64).max - 1))
            leaves = held > size if now is None else (held > size) & now
            held = held - leaves.long()
            row = row.expand(held.shape)[..., None]  # (B, K, 1)
            kept = positions.gather(-1, row).masked_fill(leaves[..., None], EMPTY)
            positions.scatter_(-1, row, kept)
        if now is not None:
            positions[..., S + t].masked_fill_(~now, EMPTY)
        clock = clock + 1 if now is None else clock + now[:, 0]
    return torch.stack(weights, dim=3), positions, numbers
