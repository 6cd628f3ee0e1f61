r"""H of one layer, as a value that the caller owns.

Layer l has a matrix $H_t^l$ with one row per cached token (arXiv:2401.06104, eq. 5): rotated key, value, position, and the
statistics that the operator keeps. Row order has no meaning and storage is reused; ``positions`` identifies a row.
B sequences, K key/value heads, S rows, D head dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.context import get_spawning_popen
from typing import Any

import torch
from torch import Tensor

from ..distributed.heads import RankHeads
from ..layers.differentiation import is_differentiated
from ..reductions.contract import EMPTY, Reduction
from ..reductions.head_budgets import HeadBudget
from .position_remapping import PositionRemapping
from .quantised_rows import QUANTISED_DTYPE, SCALES, dequantise_rows, encode_rows
from .row_buffer import RowBuffer, copy_to_buffer


@dataclass(frozen=True, eq=False)
class MultiState:
    """H of one layer, and its clock.

    Attributes:
        keys, values: ``(B, K, S, D)``, floating-point, or int8 with scales; keys are rotated at their absolute positions, or
            with ``places`` not at all.
        positions: ``(B, K, S)`` int64; −1 for an empty row, −2 for a learned row.
        clock: ``(B,)`` int64, number of tokens read.
        reduction: the operator that bounds this layer; its ``size`` is an int or None.
        row_stats: the statistics of the operator by name, ``(B, K, S)`` or ``(B, K, S, n)`` each, in at least float32.
        buffer: storage with spare rows, if there is any; the next row is written there.
        no_empty_rows: True if it is known that no row is empty. False if there may be empty rows.
        n_learned: number of learned rows: the first rows of every head, never evicted and not counted in ``size``.
        places: the position remapping at attention time; None: absolute positions.
        key_scales, value_scales: ``(B, K, S)`` float32, factors of int8 keys and values; None for floating-point ones.
        heads: the heads that these K are, in a cell that is split over several processes; None: all heads of the model.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    clock: Tensor
    reduction: Reduction
    row_stats: dict[str, Tensor] = field(default_factory=dict)
    buffer: RowBuffer | None = None
    no_empty_rows: bool = False
    n_learned: int = 0
    places: PositionRemapping | None = None
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    heads: RankHeads | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: copies of the rows, without spare rows.

        The arguments of a process that is spawned are not copied, because they have to live until it has started. They are
        moved to shared memory, where no step writes (:meth:`RowBuffer.claim`).
        """
        H = self if get_spawning_popen() is not None else self.map(torch.clone)
        return {**vars(H), "buffer": None}

    @property
    def capacity(self) -> int | None:
        """Maximum number of rows of a head after a step, learned rows included; None if unbounded."""
        if isinstance(self.reduction, HeadBudget):
            rows = self.reduction.max_rows(self.positions.shape[1] if self.heads is None else self.heads.n_kv_heads)
            return None if rows is None else rows + self.n_learned
        assert not isinstance(self.reduction.size, tuple), "per_layer gives each layer an int"
        return None if self.reduction.size is None else self.reduction.size + self.n_learned

    @property
    def rows_per_token(self) -> int:
        """Number of rows that a token appends."""
        return 1

    @property
    def is_quantised(self) -> bool:
        """True if keys and values are int8."""
        return self.key_scales is not None

    @property
    def stored(self) -> dict[str, Any]:
        """Keys, values, positions, and scales if there are any, by name: what a step writes for a row."""
        rows: dict[str, Any] = {"keys": self.keys, "values": self.values, "positions": self.positions}
        if self.key_scales is not None and self.value_scales is not None:
            rows.update(key_scales=self.key_scales, value_scales=self.value_scales)
        return rows

    @property
    def rows(self) -> dict[str, Tensor]:
        """All tensors that are aligned by row, by name."""
        return {**self.stored, **self.row_stats}

    @property
    def empty(self) -> Tensor:
        """``(B, K, S)`` bool, True for empty rows."""
        return self.positions == EMPTY

    @property
    def visible(self) -> Tensor | None:
        """``(B, K, S)`` bool, False for empty rows; None if it is known that there are none."""
        return None if self.no_empty_rows else ~self.empty

    def with_rows(self, rows: dict[str, Tensor], clock: Tensor, *, no_empty_rows: bool = False) -> "MultiState":
        """Return the same layer with other rows, named as in ``rows``, another clock, and no spare rows."""
        stored: dict[str, Any] = {name: rows[name] for name in self.stored}
        row_stats = {name: rows[name] for name in self.row_stats}
        return replace(self, **stored, clock=clock, row_stats=row_stats, buffer=None, no_empty_rows=no_empty_rows)

    def map(self, change: Callable[[Tensor], Tensor]) -> "MultiState":
        """Return H with ``change`` applied to every tensor that is aligned by row and to the clock, without spare rows."""
        rows = {name: change(x) for name, x in self.rows.items()}
        return self.with_rows(rows, change(self.clock), no_empty_rows=self.no_empty_rows)

    def dequantised(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return keys and values ``(B, K, S, D)`` in ``dtype`` if they are int8, otherwise as they are stored."""
        return dequantise_rows(self.keys, self.key_scales, dtype), dequantise_rows(self.values, self.value_scales, dtype)

    def to(self, device: torch.device | None, dtype: torch.dtype | None, clock: Tensor) -> "MultiState":
        """Return a copy with ``clock`` and with keys and values in ``dtype``; int8 quantises them.

        Positions keep their dtype, and statistics stay in at least float32. None for ``device`` or ``dtype`` changes nothing.
        """
        stored: dict[str, Any]
        if dtype is None or dtype == self.keys.dtype:
            stored = {name: x.to(device=device, copy=True) for name, x in self.stored.items() if name != "positions"}
        else:
            stored = encode_rows(*self.dequantised(dtype), quantised=dtype == QUANTISED_DTYPE)
            stored = {n: x.to(device, x.dtype if dtype == QUANTISED_DTYPE else dtype, copy=True) for n, x in stored.items()}
        wide = None if dtype is None or dtype == QUANTISED_DTYPE else torch.promote_types(dtype, torch.float32)
        row_stats = {name: x.to(device=device, dtype=wide, copy=True) for name, x in self.row_stats.items()}
        scales: dict[str, Any] = {name: stored.pop(name, None) for name in SCALES.values()}
        positions = self.positions.to(device=device, copy=True)
        return replace(self, **stored, **scales, positions=positions, clock=clock, row_stats=row_stats, buffer=None)

    def select(self, rows: Tensor) -> "MultiState":
        """Return a copy of the batch rows ``rows (B',)`` int64. Columns that are empty in all of them stay."""
        return self.map(lambda x: x.index_select(0, rows))

    def append(self, key: Tensor, value: Tensor, *, in_place: bool) -> "MultiState":
        """Return H with the current token's row last, and with the same clock.

        Args:
            key, value: ``(B, K, D)``. The position of the row is the clock.
            in_place: True if the row may be written into the buffer of this state. Otherwise the rows are copied, unless the
                operator never overwrites a row and the next row of the buffer is free.
        """
        new = encode_rows(key, value, self.is_quantised)
        if not is_differentiated(self.keys, self.values, key, value) and (in_place or self.reduction.size is None):
            grown = self.extended(in_place=True)
            stored = grown.stored
            for name, row in new.items():
                stored[name].data[:, :, -1] = row  # ``data``, because a graph may have saved the earlier rows
            return grown
        new["positions"] = self.clock[:, None].expand(key.shape[:2])
        rows: dict[str, Any] = {name: torch.cat((x, new[name].unsqueeze(2)), dim=2) for name, x in self.stored.items()}
        return replace(self, **rows, row_stats=self._extended_stats(), buffer=RowBuffer(rows, rows["keys"].shape[2]))

    def extended(self, *, in_place: bool) -> "MultiState":
        """Return H with the row of a token at the position of the clock. Its key, value and scales are still to be written.

        ``in_place``: True if the row may be written into the buffer of this state. Otherwise, and if the buffer is full, the
        rows are copied to a new buffer with spare rows.
        """
        S, n, buffer = self.keys.shape[2], self.rows_per_token, self.buffer
        if buffer is None or not in_place or not buffer.claim(S, shared=self.reduction.size is None, n=n):
            buffer = copy_to_buffer([self.stored], self.capacity, n)
            buffer.claim(S, shared=True)
        buffer.rows["positions"].data[:, :, S : S + n] = self.clock[:, None, None]
        return replace(self, **buffer.prefix(S + n), row_stats=self._extended_stats(), buffer=buffer)

    def _extended_stats(self) -> dict[str, Tensor]:
        """Return the statistics with the row of a token, which is 0."""
        n = self.rows_per_token
        return {name: torch.cat((x, x.new_zeros(*x.shape[:2], n, *x.shape[3:])), dim=2) for name, x in self.row_stats.items()}

    def sorted_by_position(self) -> "MultiState":
        """Return the rows in order of position, in as few columns as the fullest head needs. Synchronises with the device."""
        S, fewest, most = self.positions.shape[2], 0, 0
        if self.no_empty_rows:
            fewest = most = S
        elif self.positions.numel():
            fewest, most = map(int, (~self.empty).sum(-1).aminmax())
        last = torch.iinfo(torch.int64).max
        key = self.positions if self.no_empty_rows else self.positions.masked_fill(self.empty, last)
        uniform = fewest == most
        if most == S and bool((key[..., 1:] >= key[..., :-1]).all()):
            return self if self.no_empty_rows == uniform else replace(self, no_empty_rows=uniform)
        order = key.argsort(dim=-1, stable=True)[..., :most]  # (B, K, most)
        first = torch.arange(order.shape[0] * order.shape[1], device=order.device) * S  # index of the first row of each head
        return self._gather_rows((order.flatten(0, 1) + first[:, None]).flatten(), no_empty_rows=uniform)

    def keep_rows(self, mask: Tensor, *, uniform: bool, out: "MultiState | None" = None) -> "MultiState":
        """Return the rows where ``mask (B, 1 or K, S)`` is True, in as few columns as the fullest head needs.

        The rows of this state have to be in order of position. This synchronises with the device.

        Args:
            uniform: True if every head keeps equally many rows.
            out: an H with keys and values that may be overwritten with the result.
        """
        if not uniform:
            positions = self.positions.masked_fill(~mask, EMPTY)
            return replace(self, positions=positions, no_empty_rows=False).sorted_by_position()
        return self._gather_rows(mask.expand_as(self.positions).flatten().nonzero()[:, 0], no_empty_rows=True, out=out)

    def _gather_rows(self, index: Tensor, *, no_empty_rows: bool, out: "MultiState | None" = None) -> "MultiState":
        """Return the rows ``index``, counted through all heads and equally many for each head."""
        B, K, _ = self.positions.shape
        targets = {} if out is None else {"keys": out.keys, "values": out.values}

        def gather(name: str, x: Tensor) -> Tensor:
            shape, target = (B, K, len(index) // max(1, B * K), *x.shape[3:]), targets.get(name)
            if target is None or target.shape != shape or not target.is_contiguous():
                return x.flatten(0, 2).index_select(0, index).view(shape)
            torch.index_select(x.flatten(0, 2), 0, index, out=target.view(-1, *x.shape[3:]))
            return target

        return self.with_rows({name: gather(name, x) for name, x in self.rows.items()}, self.clock, no_empty_rows=no_empty_rows)
