"""Preallocated storage for the rows of a state, so that appending a row copies nothing most of the time."""

from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

CLAIM_LOCK = Lock()


@dataclass(eq=False)
class RowBuffer:
    """Tensors ``(B, K, S + spare, …)`` that hold the first S rows of a state, or of several.

    A bounded H overwrites rows, so its buffer has one owner. An unbounded H never overwrites a row, so states share common
    rows. Only the state that ends at the last claimed row may append to a shared buffer.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    n_claimed: int = 0
    """Number of rows that belong to some state, the first ones."""

    def claim(self, S: int, shared: bool) -> bool:
        """Claim row S for a state that has the S rows before it; return False if the row is not available.

        Two threads that append to one state get different answers, because the check and the claim are one operation.
        """
        if torch.compiler.is_compiling():
            return self._claim(S, shared)
        with CLAIM_LOCK:
            return self._claim(S, shared)

    def _claim(self, S: int, shared: bool) -> bool:
        if self.keys.shape[2] == S or (shared and self.n_claimed != S):
            return False
        if not torch.compiler.is_compiling() and self.keys.is_inference() and not torch.is_inference_mode_enabled():
            return False  # inference tensors cannot be written outside of inference mode
        self.n_claimed = S + 1
        return True

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
