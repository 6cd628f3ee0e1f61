r"""One layer's H, as a value the caller owns.

Layer l carries a matrix $H_t^l$ whose rows each remember one token (arXiv:2401.06104, eq. 5): its rotated key, its
value, its position, and whatever numbers the layer's reduction keeps about it. Row order carries no meaning and rows
are reused; ``positions`` says what a row is. B sequences, K key/value heads, S rows, D head dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..reductions.contract import EMPTY, Reduction
from .position_remapping import Places


@dataclass(eq=False)
class Room:
    """The tensors ``(B, K, S + …)`` whose first rows are keys, values and positions of a state, or of several.

    Where rows are overwritten (a bounded H) a room has one owner. Where none ever is, states share the rows that they have in
    common, and who stands at the end of what is ``filled`` may write the next one.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    filled: int = 0

    def free(self, S: int, shared: bool) -> bool:
        """Whether row S may be written, by a state that has all rows before it."""
        if self.keys.shape[2] == S or (shared and self.filled != S):
            return False
        return torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not self.keys.is_inference()

    def first(self, S: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and positions of the first S rows."""
        return self.keys[:, :, :S], self.values[:, :, :S], self.positions[:, :, :S]


@dataclass(frozen=True, eq=False)
class MultiState:
    """One layer's H and its clock.

    Attributes:
        keys, values: ``(B, K, S, D)``, keys rotated at their absolute positions, or with ``places`` not at all.
        positions: ``(B, K, S)`` int64, −1 where a row is empty, −2 where it is learned.
        clock: ``(B,)`` int64, tokens read so far.
        reduction: the operator that bounds this layer, its ``size`` an int or None.
        numbers: what the operator keeps per row, by name, ``(B, K, S)`` or ``(B, K, S, n)`` each in at least float32.
        room: where there is storage beyond the rows; the next one is written there.
        gapless: that no row is empty is known, and need not be looked for.
        pinned: how many rows are learned: the first of every head, which never leave and are not counted in ``size``.
        places: where rows stand when they are read; None is at their positions.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    clock: Tensor
    reduction: Reduction
    row_stats: dict[str, Tensor] = field(default_factory=dict)
    room: "Room | None" = None
    gapless: bool = False
    pinned: int = 0
    places: "Places | None" = None

    @property
    def bound(self) -> int | None:
        """Rows carried to the next step at most, the pinned ones too."""
        assert not isinstance(self.reduction.size, tuple), "per_layer gives each layer an int"
        return None if self.reduction.size is None else self.reduction.size + self.pinned

    @property
    def rows(self) -> dict[str, Tensor]:
        """Everything that is row-aligned, by name."""
        return {"keys": self.keys, "values": self.values, "positions": self.positions, **self.row_stats}

    @property
    def empty(self) -> Tensor:
        """``(B, K, S)`` bool: rows that hold nothing."""
        return self.positions == EMPTY

    def with_rows(self, rows: dict[str, Tensor], clock: Tensor, *, gapless: bool = False) -> "MultiState":
        """The same layer with other rows, named as in ``rows``, no room beyond them, and another clock."""
        keys, values, positions = (rows[name] for name in ("keys", "values", "positions"))
        row_stats = {name: rows[name] for name in self.row_stats}
        return replace(
            self, keys=keys, values=values, positions=positions, clock=clock, row_stats=row_stats, room=None, gapless=gapless
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> "MultiState":
        """``change`` applied to every row-aligned tensor and to the clock; room beyond the rows is left behind."""
        return self.with_rows({name: change(x) for name, x in self.rows.items()}, change(self.clock), gapless=self.gapless)

    def select(self, rows: Tensor) -> "MultiState":
        """The batch rows ``rows (B',)`` int64, as a copy."""
        return self.map(lambda x: x.index_select(0, rows))

    def append(self, key: Tensor, value: Tensor, *, in_place: bool) -> "MultiState":
        """What the current query sees: H and, last, the token's own row. The clock has not moved yet.

        Args:
            key, value: ``(B, K, D)``; the position is the clock's.
            in_place: whether the row may be written into this state's room. Otherwise the rows are copied, unless none of them
                is ever overwritten and the room beyond them is free.
        """
        rows = (self.keys, self.values, self.positions)
        new = (key, value, self.clock[:, None].expand(key.shape[:2]))
        graph = any(x.requires_grad for x in (*rows[:2], *new[:2]))
        if not graph and (in_place or self.reduction.size is None):
            seen = self.opened(in_place=True)
            # through ``data``: a graph may have saved the rows before this one, which do not change
            seen.keys.data[:, :, -1], seen.values.data[:, :, -1] = key, value
            return seen
        keys, values, positions = (torch.cat((x, row.unsqueeze(2)), dim=2) for x, row in zip(rows, new, strict=True))
        room = Room(keys, values, positions, keys.shape[2])
        return replace(self, keys=keys, values=values, positions=positions, row_stats=self._one_more(), room=room)

    def opened(self, *, in_place: bool) -> "MultiState":
        """H and, last, a row at the clock's position whose key and value are still to be written.

        ``in_place``: whether it may lie in this state's room. Otherwise, and where there is no room left, the rows are copied,
        and the result has room for the tokens to come.
        """
        S, room = self.keys.shape[2], self.room
        if room is None or not in_place or not room.free(S, shared=self.reduction.size is None):
            room = _room([self])
        room.filled = S + 1  # before anything is written: another thread may stand at the same end
        room.positions.data[:, :, S] = self.clock[:, None]
        keys, values, positions = room.first(S + 1)
        return replace(self, keys=keys, values=values, positions=positions, row_stats=self._one_more(), room=room)

    def _one_more(self) -> dict[str, Tensor]:
        """The operator's numbers and, last, zeros."""
        return {name: torch.cat((x, x.new_zeros(*x.shape[:2], 1, *x.shape[3:])), dim=2) for name, x in self.row_stats.items()}

    def unstacked(self, n: int) -> "tuple[MultiState, ...]":
        """What :func:`stack` laid together: views, without room."""
        parts = zip(*(x.unflatten(0, (n, -1)).unbind() for x in self.rows.values()), strict=True)
        return tuple(self.with_rows(dict(zip(self.rows, p, strict=True)), self.clock, gapless=self.gapless) for p in parts)

    def ordered(self) -> "MultiState":
        """The same rows in order of position, in as few columns as the fullest head needs. Waits for the device."""
        S, least, most = self.positions.shape[2], 0, 0
        if self.gapless:
            least = most = S
        elif self.positions.numel():
            least, most = map(int, (~self.empty).sum(-1).aminmax())
        last = torch.iinfo(torch.int64).max
        place = self.positions if self.gapless else self.positions.masked_fill(self.empty, last)
        if most == S and bool((place[..., 1:] >= place[..., :-1]).all()):
            return self if self.gapless == (least == most) else replace(self, gapless=least == most)
        order = place.argsort(dim=-1, stable=True)[..., :most]  # (B, K, most)
        first = torch.arange(order.shape[0] * order.shape[1], device=order.device) * S  # of each head, all rows in line
        return self._picked((order.flatten(0, 1) + first[:, None]).flatten(), gapless=least == most)

    def keep(self, stay: Tensor, *, even: bool, over: "MultiState | None" = None) -> "MultiState":
        """The rows where ``stay (B, 1 or K, S)``, in the order of this state, which is that of position, in as few columns as
        the fullest head needs. ``even``: as many in each head; keys and values may then be written ``over`` those of an H that
        nobody needs any more. Waits for the device."""
        if not even:
            return replace(self, positions=self.positions.masked_fill(~stay, EMPTY), gapless=False).ordered()
        return self._picked(stay.expand_as(self.positions).flatten().nonzero()[:, 0], gapless=True, over=over)

    def _picked(self, index: Tensor, *, gapless: bool, over: "MultiState | None" = None) -> "MultiState":
        """The rows ``index``, counted through all heads, as many of each; ``over`` another H's where they fit."""
        B, K, _ = self.positions.shape
        places = {} if over is None else {"keys": over.keys, "values": over.values}

        def picked(name: str, x: Tensor) -> Tensor:
            shape, place = (B, K, len(index) // (B * K), *x.shape[3:]), places.get(name)
            if place is None or place.shape != shape or not place.is_contiguous():
                return x.flatten(0, 2).index_select(0, index).view(shape)
            torch.index_select(x.flatten(0, 2), 0, index, out=place.view(-1, *x.shape[3:]))
            return place

        return self.with_rows({name: picked(name, x) for name, x in self.rows.items()}, self.clock, gapless=gapless)


def _room(parts: Sequence[MultiState]) -> Room:
    """A copy of the rows of some H that are alike, one behind the other, with room for more."""
    S, spare = parts[0].keys.shape[2], _spare(parts[0], parts[0].keys.shape[2])

    def copied(some: list[Tensor]) -> Tensor:
        B, K, _, *rest = some[0].shape
        room = some[0].new_empty(len(some), B, K, S + spare, *rest)
        for place, x in zip(room.unbind(), some, strict=True):
            place[:, :, :S] = x
        return room.flatten(0, 1)

    return Room(copied([H.keys for H in parts]), copied([H.values for H in parts]), copied([H.positions for H in parts]), S)


def _spare(H: MultiState, S: int) -> int:
    """For how many rows beyond S there is to be room: a sixteenth, so that appending a row copies no more than sixteen; never
    for more than the bound and one in all."""
    return 1 + S // 16 if H.bound is None else min(1 + S // 16, H.bound + 1 - S)


def alike(parts: Sequence[MultiState]) -> bool:
    """Whether layers can be laid together: one bounded operator, and as many rows."""
    one = parts[0]
    alike = (one.reduction, one.keys.shape, one.pinned)
    bounded = one.bound is not None and not one.reduction.depends_on_row_layout  # such a class is called layer by layer
    return bounded and all((H.reduction, H.keys.shape, H.pinned) == alike for H in parts)


def stack(parts: Sequence[MultiState]) -> MultiState | None:
    """Layers as one H, their batches one behind the other ``(L B, …)``, as a copy with room of its own; None where they have
    different operators, are unbounded, or differ in the number of rows. The clock ``(B,)`` is the one that they share."""
    if not alike(parts):
        return None
    one, room = parts[0], _room(parts)
    row_stats = {name: torch.cat([H.row_stats[name] for H in parts]) for name in one.row_stats}
    gapless = all(H.gapless for H in parts)
    keys, values, positions = room.first(one.keys.shape[2])
    return replace(one, keys=keys, values=values, positions=positions, row_stats=row_stats, room=room, gapless=gapless)


def stack_kept(parts: Sequence[MultiState], stay: Tensor) -> MultiState:
    """:func:`stack` of ``H.keep(stay, even=True)`` for every layer of some that are :func:`alike`, copied once, not twice;
    ``stay (L, B, 1 or K, S)``, as many in every head."""
    one, L = parts[0], len(parts)
    B, K, S, _ = one.keys.shape
    n = int(stay[0, 0, 0].sum())
    row = stay.expand(L, B, K, S).nonzero()[:, -1].view(L, B * K, n)
    # what the room beyond the rows holds does not matter
    row = pad(row, (0, _spare(one, n))) + S * torch.arange(B * K, device=row.device)[:, None]

    def picked(name: str) -> Tensor:
        some = [H.rows[name].flatten(0, 2) for H in parts]
        room = some[0].new_empty(L, row[0].numel(), *some[0].shape[1:])
        for x, index, place in zip(some, row.flatten(1), room, strict=True):
            torch.index_select(x, 0, index, out=place)
        return room.view(L * B, K, -1, *some[0].shape[1:])

    room = Room(picked("keys"), picked("values"), picked("positions"), n)
    keys, values, positions = room.first(n)
    row_stats = {name: picked(name)[:, :, :n].contiguous() for name in one.row_stats}
    return replace(one, keys=keys, values=values, positions=positions, row_stats=row_stats, room=room, gapless=True)


def join(parts: Sequence[MultiState]) -> MultiState:
    """The batches of several H of one layer, one after the other, as a copy; shorter ones get empty rows."""
    S = max(H.keys.shape[2] for H in parts)

    def padded(H: MultiState, name: str) -> Tensor:
        x = H.rows[name]
        fill = x.new_full((*x.shape[:2], S - x.shape[2], *x.shape[3:]), EMPTY if name == "positions" else 0)
        return torch.cat((x, fill), dim=2)

    rows = {name: torch.cat([padded(H, name) for H in parts]) for name in parts[0].rows}
    gapless = all(H.gapless and H.keys.shape[2] == S for H in parts)
    return parts[0].with_rows(rows, torch.cat([H.clock for H in parts]), gapless=gapless)
