r"""The fold of the step, many tokens at once, and exact.

Within a layer the recurrence over time touches nothing but that layer's own queries, keys and values. So the queries of a block
of tokens meet all rows that any of them could see (S carried over, T new) in one product, the operator decides on those numbers
alone who leaves when (``decide.py``), and one more product with the values ends it. The weights of the model are read once for
many tokens instead of once a token; memory is T × (S + T), never the whole text squared.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..layers.attention import attention_logits, mask_logits
from ..layers.linear import upcast_if_emulated
from ..reductions.contract import EMPTY, Observation
from ..state.multistate import MultiState
from .block_layout import Frame
from .eviction import Block, Look, decide, left
from .operator_calls import merge_evicted_value
from .transition import advance

BLOCK, BLIND_BLOCK = 64, 256
"""Tokens decided on at once: a longer block has fewer products and more wrong guesses. Whoever is blind guesses right."""


KEYS = 2**24
"""Numbers of keys that a block may lay side by side for an operator that looks at them: 64 MB in float32."""

FEW = 32
"""Tokens, such as guesses are, after each of which the operator's numbers are worth keeping."""


class Event(NamedTuple):
    """One block of one layer: what went in, and what happened."""

    q: Tensor
    """``(B, N, T, D)``, rotated, as are k and v ``(B, K, T, D)``."""
    k: Tensor
    v: Tensor
    active: Tensor
    """``(B, T)`` bool."""
    row_stats: dict[str, Tensor]
    """The operator's before the first token, ``(B, K, S)`` each."""
    rows: Tensor
    """``(B, K, S + T)`` int64, positions; −1 where there is no row. The last T are ``entered``."""
    until: Tensor
    """``(B, 1 or K, S + T)`` int64, the last token to see each row, as of a :class:`Block`."""
    score: Tensor | None
    """``(B, 1 or K, T, S + T)``, NaN on rows that a token did not see; None unless asked for."""
    after: dict[str, Tensor] | None
    """The operator's numbers after each token, ``(B, T, K, S + T, …)`` each; None where T is more than ``FEW``."""
    held: tuple[Tensor, Tensor] | None
    """Keys and values of all ``rows``, where this is the only block; otherwise None."""

    @property
    def entered(self) -> Tensor:
        """``(B, K, T)`` int64."""
        return self.rows[..., -self.q.shape[2] :]

    @property
    def left(self) -> Tensor:
        """``(B, K, T)`` int64, the position that left at each token, −1 none."""
        return left(self.rows, self.until, self.q.shape[2])


class Events(list[Event]):
    """What happened in one layer, block by block.

    Attributes:
        scores: whether the operator's scores are wanted too.
        last: whether no more is to be read: the H after these tokens is not made.
    """

    def __init__(self, scores: bool = False):
        super().__init__()
        self.scores, self.last = scores, False


@dataclass
class Before:
    """What the layers before this one found that may be the same here, by the block's first token."""

    frames: dict[tuple[int, int, int, int | None], Frame] = field(default_factory=dict)
    """Where all rows are there: by the number of rows and their bound as well."""
    blind: dict[int, Block] = field(default_factory=dict)
    """What a blind operator decided."""
    own: bool = False
    """Whether nobody needs the H before these tokens any more: it is written over."""


def fold(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    H: MultiState,
    active: Tensor | None,
    events: Events | None = None,
    before: Before | None = None,
) -> tuple[Tensor, MultiState]:
    """What each of T tokens reads, and H after the last; the same as T times append, attend, reduce. Waits for the device.

    Args:
        q: ``(B, N, T, D)``; k, v: ``(B, K, T, D)``; rotated, unless H has places.
        H: the layer before the first token, S rows.
        active: ``(B, T)`` bool; tokens where it is false are not read. None: all are.
        events: where given, what happened in each block is added to it.
        before: of the same tokens in the layers before; written to.

    Returns:
        ``(B, N, T, D)``, meaningless where a token is not read, and the new H; an old one where ``events.last``.
    """
    if H.places and events is None and not _at_once(H):
        return _by_steps(q, k, v, H, active)
    length, read, T = _length(H), [], k.shape[2]
    H, before = H.sorted_by_position(), Before() if before is None else before
    graph = any(x.requires_grad for x in (q, k, v, H.keys, H.values))  # it may keep the rows
    for start in range(0, T, length):
        cut = slice(start, min(start + length, T))
        now = None if active is None else active[:, cut]
        key = (start, cut.stop, H.positions.shape[2], H.capacity)
        frame = before.frames.get(key) if H.no_empty_rows else None
        if frame is None:
            frame = Frame.of(H, now, cut.stop - start)
            if H.no_empty_rows:
                before.frames[key] = frame
        last = cut.stop == T and events is not None and events.last
        own = not graph and (before.own or start > 0)
        x, H = _block(q[:, :, cut], k[:, :, cut], v[:, :, cut], H, frame, events, before, start, last, own)
        read.append(x)
    return (torch.cat(read, dim=2) if len(read) != 1 else read[0]) if T else q[:, :, :0], H


def _by_steps(q: Tensor, k: Tensor, v: Tensor, H: MultiState, active: Tensor | None) -> tuple[Tensor, MultiState]:
    """:func:`fold` token by token, as the step does it."""
    read = [q[:, :, :0]]
    for t in range(k.shape[2]):
        now = None if active is None else active[:, t]
        clock = H.clock + (1 if now is None else now)
        x, H = advance(q[:, :, t], k[:, :, t], v[:, :, t], H, clock, now, in_place=t > 0)
        read.append(x[:, :, None])
    return torch.cat(read, dim=2), H


def _at_once(H: MultiState) -> bool:
    """Whether the places of many tokens' rows can be counted at once: nobody has to look to know who leaves."""
    o = H.reduction
    looks = o.needs_weights or o.needs_keys or o.merges_values or o.stat_names
    return H.places is not None and H.places.rope.relative and not (looks or H.n_learned)


def _length(H: MultiState) -> int:
    """How many tokens to decide on at once."""
    operator = H.reduction
    if H.places and _at_once(H):
        return BLOCK
    if operator.merges_values or H.places:
        return 1  # what the next token reads is not known before
    if operator.needs_keys:
        return min(BLOCK, max(1, KEYS // max(1, H.keys.numel())))
    return BLOCK if operator.needs_weights else BLIND_BLOCK


def _block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    H: MultiState,
    frame: Frame,
    events: Events | None,
    before: Before,
    start: int,
    last: bool,
    own: bool,
) -> tuple[Tensor, MultiState]:
    """:func:`fold` of one block, which begins at token ``start``, H in order before and after; not after the ``last``.
    ``own``: whether the H before is written over."""
    K, T = k.shape[1:3]
    kept, values = torch.cat((H.keys, k), dim=2), torch.cat((H.values, v), dim=2)  # (B, K, R, D)
    new = frame.clock if frame.even else frame.clock.masked_fill(~frame.active, EMPTY)
    positions = torch.cat((H.positions, new[:, None].expand(-1, K, -1)), dim=-1)  # (B, K, R)
    one = H.places and not _at_once(H)  # token, at its place
    turned, keys = H.places.rotate(q[:, :, 0], kept, positions, H.n_learned) if H.places and one else (q, kept)
    queries = turned.reshape(*q.shape).unflatten(1, (K, -1))  # (B, K, G, T, D)
    block, known, looks = _entered(queries, keys, positions, H, frame), before.blind.get(start), list[Look]()
    if known and known.reduction == H.reduction and known.positions.equal(block.positions) and events is None:
        block = known
    else:
        block, looks = decide(block, events is not None and events.scores)
        if not H.reduction.needs_weights and not (H.reduction.needs_keys or H.reduction.merges_values or H.row_stats):
            before.blind[start] = block
    if H.places and not one:
        hidden = block.hidden(0, T)
        logits = mask_logits(H.places.attention_logits(queries, keys, positions, hidden), ~hidden[:, :, None])
        read = logits.softmax(dim=-1).to(values.dtype).flatten(2, 3) @ values  # (B, K, G T, D)
    elif not H.reduction.needs_weights:
        seen = ~block.hidden(0, T)[:, :, None].expand(-1, -1, queries.shape[2], -1, -1).flatten(2, 3)  # (B, 1 or K, G T, R)
        wide_q, wide_k, wide_v = map(upcast_if_emulated, (queries.flatten(2, 3), keys, values))
        read = scaled_dot_product_attention(wide_q, wide_k, wide_v, seen)
    else:
        weights = torch.cat([look.weights for look in looks], dim=3) if len(looks) > 1 else looks[0].weights
        if torch.is_grad_enabled() and (q.requires_grad or keys.requires_grad):  # only the choice of rows is not differentiated
            weights = mask_logits(_logits(queries, keys), ~block.hidden(0, T)[:, :, None]).softmax(dim=-1)
        wide = upcast_if_emulated(values)
        read = weights.to(wide.dtype).flatten(2, 3) @ wide  # (B, K, G T, D)
    if events is not None:
        score = None
        if events.scores:
            score = torch.cat([look.score.masked_fill(look.hidden, torch.nan) for look in looks], dim=1).transpose(1, 2)
        after = {name: torch.cat([look.row_stats[name] for look in looks], dim=1) for name in H.row_stats} if T <= FEW else None
        held = (kept, values) if last and not events else None
        events.append(Event(q, k, v, frame.active, H.row_stats, block.positions, block.until, score, after, held))
    read = read.to(q.dtype).unflatten(2, (-1, T)).flatten(1, 2)  # (B, N, T, D)
    if last:
        return read, H
    clock, row_stats = H.clock + (T if frame.even else frame.active.sum(1)), looks[-1].last() if looks else {}
    if H.reduction.merges_values:
        values = _merged(block, looks[-1], values)
    rows = {"keys": kept, "values": values, "positions": positions, **row_stats}
    grown = H.with_rows(rows, clock, no_empty_rows=frame.even)
    if frame.still and frame.even:
        return read, grown
    return read, grown.keep_rows(block.until == T, uniform=frame.even, out=H if own else None)


def _merged(block: Block, look: Look, values: Tensor) -> Tensor:
    """The values after a block of one token."""
    positions = block.positions.masked_fill(block.hidden(0, 1)[:, :, 0], EMPTY)
    seen = Observation(look.weights[..., 0, :], positions, block.frame.clock[:, 0], look.last(), block.keys)
    gone = (block.until == 0) & (positions != EMPTY)  # (B, K, R), one row at most
    return merge_evicted_value(block.reduction, seen, values, gone.byte().argmax(-1), gone.any(-1))


def _logits(q: Tensor, keys: Tensor) -> Tensor:
    """``(B, K, G, T, D), (B, K, R, D) -> (B, K, G, T, R)`` in at least float32."""
    return attention_logits(upcast_if_emulated(q.flatten(2, 3)), upcast_if_emulated(keys)).unflatten(2, q.shape[2:4])


def _entered(q: Tensor, keys: Tensor, positions: Tensor, H: MultiState, frame: Frame) -> Block:
    """The block if nobody leaves."""
    (B, K, R), T = positions.shape, frame.clock.shape[1]
    if not H.reduction.needs_weights:
        wide = torch.promote_types(keys.dtype, torch.float32)
        logits = torch.zeros(1, dtype=wide, device=keys.device).expand(B, K, q.shape[2], T, R)
    else:
        logits = _logits(q, keys).detach().add_(frame.veil)
    row_stats = {name: torch.cat((x, x.new_zeros(B, K, T, *x.shape[3:])), dim=2) for name, x in H.row_stats.items()}
    seen = keys.detach() if H.reduction.needs_keys else None
    return Block(H.reduction, frame, logits, positions, frame.until, row_stats, seen, H.n_learned)
