"""Preallocated storage for the rows of a state, so that appending a row copies nothing most of the time."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class RowBuffer:
    """Tensors ``(B, K, S + spare, …)`` that hold the first S rows of a state, or of several, by the names of its rows.

    A bounded H overwrites rows, so its buffer has one owner. An unbounded H never overwrites a row, so states share common
    rows. Only the state that ends at the last claimed row may append to a shared buffer.
    """

    rows: dict[str, Tensor]
    n_claimed: InitVar[int]
    """Number of rows that belong to some state, the first ones."""

    def __post_init__(self, n_claimed: int) -> None:
        self._unclaimed = dict.fromkeys(range(n_claimed, self.rows["keys"].shape[2]), True)

    def claim(self, S: int, shared: bool, n: int = 1) -> bool:
        """Claim the n rows from S on for a state that has the S rows before; return False if they are not available.

        A shared buffer gives one row at a time.

        Two threads that append to one state get different answers, because ``pop`` is one operation. A lock could stay locked
        after an interrupt or a fork. Processes do not see one another's claims. So no row of shared memory is available, and a
        step copies the rows.
        """
        keys = self.rows["keys"]
        if keys.shape[2] < S + n:
            return False
        if not torch.compiler.is_compiling():
            if keys.is_inference() and not torch.is_inference_mode_enabled():
                return False  # inference tensors cannot be written outside of inference mode
            if keys.is_cpu and keys.untyped_storage().is_shared():
                return False
        return not shared or self._unclaimed.pop(S, False)

    def prefix(self, S: int) -> dict[str, Any]:
        """Return the first S rows, as views."""
        return {name: x[:, :, :S] for name, x in self.rows.items()}


def spare_rows(S: int, capacity: int | None, n: int = 1) -> int:
    """Return the number of rows to allocate beyond S: n + S / 16, for rare copies; at most ``capacity + n`` in total."""
    return n + S // 16 if capacity is None else min(n + S // 16, capacity + n - S)


def copy_to_buffer(parts: Sequence[dict[str, Tensor]], capacity: int | None, n: int = 1) -> RowBuffer:
    """Copy the rows of several H with equally many rows into one buffer, batch after batch.

    ``parts``: their rows by name; capacity, n: as of :func:`spare_rows`, n rows for each token.
    """
    S = parts[0]["keys"].shape[2]

    def copied(tensors: list[Tensor]) -> Tensor:
        B, K, _, *rest = tensors[0].shape
        out = tensors[0].new_empty(len(tensors), B, K, S + spare_rows(S, capacity, n), *rest)
        for part, x in zip(out.unbind(), tensors, strict=True):
            part[:, :, :S] = x
        return out.flatten(0, 1)

    return RowBuffer({name: copied([part[name] for part in parts]) for name in parts[0]}, S)
