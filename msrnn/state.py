r"""The multi-state: what a decoder-only transformer remembers, as a value the caller owns.

Layer l carries a matrix $H_t^l$ whose rows each remember one token (arXiv:2401.06104, eq. 5): its rotated key, its
value, its position, and whatever numbers the layer's reduction keeps about it. Row order carries no meaning and rows
are reused; ``positions`` says what a row is. B sequences, K key/value heads, S rows, D head dimension.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .error import Error, check_device, check_dtype

if TYPE_CHECKING:
    from .fingerprint import Fingerprint
    from .reduction import Reduction

EMPTY = -1
"""The position of a row that holds nothing."""


@dataclass(frozen=True, eq=False)
class MultiState:
    """One layer's H and its clock.

    Attributes:
        keys, values: ``(B, K, S, D)``, keys rotated at their absolute positions.
        positions: ``(B, K, S)`` int64, −1 where a row is empty.
        clock: ``(B,)`` int64, tokens read so far.
        reduction: the operator that bounds this layer, its ``size`` an int or None.
        numbers: what the operator keeps per row, by name, ``(B, K, S)`` or ``(B, K, S, n)`` each in at least float32.
        room: where this state owns storage beyond its rows, the tensors ``(B, K, S + …)`` whose first rows keys, values
            and positions are; a step in place writes the next row there.
        gapless: that no row is empty is known, and need not be looked for.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    clock: Tensor
    reduction: "Reduction"
    numbers: dict[str, Tensor] = field(default_factory=dict)
    room: tuple[Tensor, ...] | None = None
    gapless: bool = False

    @property
    def rows(self) -> dict[str, Tensor]:
        """Everything that is row-aligned, by name."""
        return {"keys": self.keys, "values": self.values, "positions": self.positions, **self.numbers}

    @property
    def empty(self) -> Tensor:
        """``(B, K, S)`` bool: rows that hold nothing."""
        return self.positions == EMPTY

    def with_rows(self, rows: dict[str, Tensor], clock: Tensor, *, gapless: bool = False) -> "MultiState":
        """The same layer with other rows, named as in ``rows``, no room beyond them, and another clock."""
        numbers = {name: rows[name] for name in self.numbers}
        return MultiState(rows["keys"], rows["values"], rows["positions"], clock, self.reduction, numbers, None, gapless)

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
            in_place: whether the row may be written into this state's room. Otherwise the rows are copied. Where there
                is no room left they are too, and the result has room for the tokens to come.
        """
        S = self.keys.shape[2]
        rows: tuple[Tensor, ...] = (self.keys, self.values, self.positions)
        new = (key, value, self.clock[:, None].expand(key.shape[:2]))
        numbers = {name: torch.cat((x, x.new_zeros(*x.shape[:2], 1, *x.shape[3:])), dim=2) for name, x in self.numbers.items()}
        if not in_place:
            rows = tuple(torch.cat((x, row.unsqueeze(2)), dim=2) for x, row in zip(rows, new, strict=True))
            return MultiState(rows[0], rows[1], rows[2], self.clock, self.reduction, numbers, rows, self.gapless)
        room = self.room
        if room is None or room[0].shape[2] == S:
            spare = [x.new_empty(*x.shape[:2], self._spare(), *x.shape[3:]) for x in rows]
            room = tuple(torch.cat(pair, dim=2) for pair in zip(rows, spare, strict=True))
        for x, row in zip(room, new, strict=True):
            x[:, :, S] = row
        rows = room if room[0].shape[2] == S + 1 else tuple(x[:, :, : S + 1] for x in room)
        return MultiState(rows[0], rows[1], rows[2], self.clock, self.reduction, numbers, room, self.gapless)

    def ordered(self) -> "MultiState":
        """The same rows in order of position, in as few columns as the fullest head needs. Waits for the device."""
        S, least, most = self.positions.shape[2], 0, 0
        if self.gapless:
            least = most = S
        elif self.positions.numel():
            least, most = map(int, (~self.empty).sum(-1).aminmax())
        if most == S and bool((self.positions[..., 1:] > self.positions[..., :-1]).all()):
            return self if self.gapless == (least == most) else replace(self, gapless=least == most)
        last = torch.iinfo(torch.int64).max
        order = self.positions.masked_fill(self.empty, last).argsort(dim=-1)[..., :most]  # (B, K, most)
        first = torch.arange(order.shape[0] * order.shape[1], device=order.device) * S  # of each head, all rows in line
        return self._picked((order.flatten(0, 1) + first[:, None]).flatten(), gapless=least == most)

    def keep(self, stay: Tensor, *, even: bool) -> "MultiState":
        """The rows where ``stay (B, 1 or K, S)``, in the order of this state, which is that of position, in as few columns as
        the fullest head needs. ``even``: as many in each head. Waits for the device."""
        if not even:
            return replace(self, positions=self.positions.masked_fill(~stay, EMPTY), gapless=False).ordered()
        return self._picked(stay.expand_as(self.positions).flatten().nonzero()[:, 0], gapless=True)

    def _picked(self, index: Tensor, *, gapless: bool) -> "MultiState":
        """The rows ``index``, counted through all heads, as many of each."""
        B, K, _ = self.positions.shape

        def picked(x: Tensor) -> Tensor:
            return x.flatten(0, 2).index_select(0, index).view(B, K, len(index) // (B * K), *x.shape[3:])

        return self.with_rows({name: picked(x) for name, x in self.rows.items()}, self.clock, gapless=gapless)

    def _spare(self) -> int:
        """Rows to make room for: a sixteenth more, so that appending a row copies no more than sixteen; never more than
        ``size + 1`` in all."""
        S, size = self.keys.shape[2], self.reduction.size
        spare = 1 + S // 16
        return min(spare, size + 1 - S) if isinstance(size, int) else spare


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


class State:
    """One :class:`MultiState` per layer: all that a cell remembers.

    ``len``, iteration and indexing give the layers. A step never edits the state it is given (``step_`` does, and says
    so), so keeping a variable is undo, and using it twice is a branch.
    """

    def __init__(self, layers: Iterable[MultiState], fingerprint: "Fingerprint"):
        self._layers = tuple(layers)
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[MultiState]:
        return iter(self._layers)

    def __getitem__(self, layer: int) -> MultiState:
        return self._layers[layer]

    @property
    def clock(self) -> Tensor:
        """``(B,)`` int64, tokens read."""
        return self[0].clock

    @property
    def nbytes(self) -> int:
        """Bytes really held: keys, values, positions, the operators' numbers, the clock, and room for the next rows."""
        return _nbytes(self)

    @property
    def carries_graph(self) -> bool:
        """Whether a gradient could flow back into this state."""
        return any(x.requires_grad for H in self for x in H.rows.values())

    def with_layers(self, layers: Iterable[MultiState]) -> "State":
        """The same cell's state with other layers."""
        return State(layers, self.fingerprint)

    def become(self, other: "State") -> "State":
        """Hold what ``other`` holds (the one way a state changes; for transitions in place)."""
        self._layers = other._layers
        return self

    def map(self, change: Callable[[Tensor], Tensor]) -> "State":
        """``change`` applied to every tensor; the layers go on sharing one clock."""
        clock = change(self.clock)
        return self.with_layers(replace(H.map(change), clock=clock) for H in self)

    def clone(self) -> "State":
        """A copy that shares nothing with this state."""
        return self.map(torch.clone)

    __copy__ = clone  # two states on one storage would step over each other

    def detach(self) -> "State":
        """The same numbers without their graph (storage is shared, as with a tensor's ``detach``)."""
        return self.map(torch.Tensor.detach)

    def to(self, *args, **kwargs) -> "State":
        """As ``Tensor.to``: a device, a floating dtype, or both; always a copy that shares nothing with this state.

        Integers keep their type, and an operator's numbers stay in at least float32.
        """
        try:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError) as wrong:
            raise Error(f"to: {str(wrong).splitlines()[0]}") from None
        check_device(device)
        check_dtype(dtype)
        numbers = dtype and torch.promote_types(dtype, torch.float32)

        def moved(H: MultiState, clock: Tensor) -> MultiState:
            types = {"keys": dtype, "values": dtype, "positions": None}
            rows = {name: x.to(device=device, dtype=types.get(name, numbers), copy=True) for name, x in H.rows.items()}
            return H.with_rows(rows, clock, gapless=H.gapless)

        clock = self.clock.to(device=device, copy=True)
        return self.with_layers(moved(H, clock) for H in self)

    def select(self, rows: Tensor | Sequence[int] | slice) -> "State":
        """The state of the batch rows named: picked, repeated or reordered, as a copy.

        Args:
            rows: int64 indices ``(B',)`` as a tensor or a list, or a slice.
        """
        batch = self.clock.shape[0]
        if isinstance(rows, slice):
            rows = range(batch)[rows]
        if not isinstance(rows, Tensor | Sequence | range):
            raise Error(f"select: rows are {rows!r}; expected a tensor, a list or a slice of batch rows")
        try:
            index = torch.as_tensor(rows if isinstance(rows, Tensor) else list(rows), device=self.clock.device)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            raise Error(f"select: rows are {rows!r:.60}; expected whole numbers") from None
        if index.numel() == 0:
            index = index.long()
        if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
            raise Error(f"select: rows are {index.dtype} of shape {tuple(index.shape)}; expected integers of shape (B',)")
        if index.device.type == "cpu" and ((index < -batch) | (index >= batch)).any():
            raise Error(f"select: rows {index.tolist()} reach outside the batch of {batch}")
        index = torch.where(index < 0, index + batch, index)
        return self.map(lambda x: x.index_select(0, index))

    def save(self, path: str | Path) -> None:
        """Write the state to one safetensors file, operators and their numbers included (see :mod:`msrnn.snapshot`)."""
        from .snapshot import save_state  # deferred: this file knows torch only

        save_state(self, path)

    def __repr__(self) -> str:
        """A small table: operator, rows per layer, oldest position, bytes; like layers share a line."""
        clocks = self.clock.tolist()
        read = _span(sorted(set(clocks))) or "no"
        head = f"State: {len(self)} layers, batch {len(clocks)}, {read} tokens read, {_bytes(self.nbytes)}"
        table = [("layers", "operator", "rows", "oldest", "bytes")]
        kinds = groupby(enumerate(self), lambda item: (str(item[1].reduction), item[1].keys.shape[2]))
        for (operator, rows), group in kinds:
            indices, layers = zip(*group, strict=True)
            held = [H.positions[H.positions >= 0] for H in layers]
            oldest = sorted({int(x.min()) for x in held if x.numel()})
            table.append((_span(indices), operator, str(rows), _span(oldest), _bytes(_nbytes(layers))))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join([head, *("  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in table)])


def _nbytes(layers: Iterable[MultiState]) -> int:
    held = (x.untyped_storage() for H in layers for x in (*H.rows.values(), H.clock))
    return sum({storage._cdata: storage.nbytes() for storage in held}.values())  # what views share counts once


def _span(ordered: Sequence[int]) -> str:
    return "" if not ordered else str(ordered[0]) if ordered[0] == ordered[-1] else f"{ordered[0]}…{ordered[-1]}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
