"""A user-defined operator that merges values."""

from dataclasses import dataclass
from typing import ClassVar

from msrnn import TOVA


@dataclass(frozen=True)
class EvictedToAll(TOVA):
    """A user-defined operator: the evicted value is merged into all other rows."""

    merges_values: ClassVar[bool] = True

    def merge(self, seen, values, row):
        return values + values.gather(2, row[..., None, None].expand(-1, -1, 1, values.shape[3]))
