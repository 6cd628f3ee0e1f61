"""Preallocated storage for the rows of a state, so that appending a row copies nothing most of the time."""

from dataclasses import InitVar, dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class RowBuffer:
    """Tensors ``(B, K, S + spare, …)`` that hold the first S rows of a state, or of several.

    A bounded H overwrites rows, so its buffer has one owner. An unbounded H never overwrites a row, so states share common
    rows. Only the state that ends at the last claimed row may append to a shared buffer.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    n_claimed: InitVar[int]
    """Number of rows that belong to some state, the first ones."""

    def __post_init__(self, n_claimed: int) -> None:
        self._unclaimed = dict.fromkeys(range(n_claimed, self.keys.shape[2]), True)

    def claim(self, S: int, shared: bool) -> bool:
        """Claim row S for a state that has the S rows before it; return False if the row is not available.

        Two threads that append to one state get different answers, because ``pop`` is one operation. A lock could stay locked
        after an interrupt or a fork. Processes do not see one another's claims. So no row of shared memory is available, and a
        step copies the rows.
        """
        if self.keys.shape[2] == S:
            return False
        if not torch.compiler.is_compiling():
            if self.keys.is_inference() and not torch.is_inference_mode_enabled():
                return False  # inference tensors cannot be written outside of inference mode
            if self.keys.is_cpu and self.keys.untyped_storage().is_shared():
                return False
        return not shared or self._unclaimed.pop(S, False)

    def prefix(self, S: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys, values and positions of the first S rows, as views."""
        return self.keys[:, :, :S], self.values[:, :, :S], self.positions[:, :, :S]


def spare_rows(S: int, capacity: int | None) -> int:
    """Return the number of rows to allocate beyond S: 1 + S / 16, for rare copies; at most ``capacity + 1`` in total."""
    return 1 + S // 16 if capacity is None else min(1 + S // 16, capacity + 1 - S)


def copy_to_buffer(parts: "list[tuple[Tensor, Tensor, Tensor]]", capacity: int | None) -> RowBuffer:
    """Copy keys, values and positions of several H with equally many rows into one buffer, batch after batch."""
    S = parts[0][0].shape[2]

    def copied(tensors: tuple[Tensor, ...]) -> Tensor:
        B, K, _, *rest = tensors[0].shape
        out = tensors[0].new_empty(len(tensors), B, K, S + spare_rows(S, capacity), *rest)
        for part, x in zip(out.unbind(), tensors, strict=True):
            part[:, :, :S] = x
        return out.flatten(0, 1)

    keys, values, positions = (copied(tensors) for tensors in zip(*parts, strict=True))
    return RowBuffer(keys, values, positions, S)
