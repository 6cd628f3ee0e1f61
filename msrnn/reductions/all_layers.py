"""An operator for all layers of a model, also for those that the published model bounds itself."""

from dataclasses import dataclass, field
from typing import Any

from ..errors import Error
from .contract import FLAG_OF_FIELD, SAFE_FLAGS, Reduction

PREFIX = "all-layers:"
"""Before the spec string of the operator: ``all-layers:tova:512``."""


@dataclass(frozen=True)
class AllLayers(Reduction):
    """An operator that replaces the windows of the published model too (:mod:`.per_layer`). It has the flags of the operator.

    Attributes:
        operator: the operator of every layer.
    """

    size: Any = field(init=False)
    operator: Reduction

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Reduction) or isinstance(self.operator, AllLayers):
            raise Error(f"AllLayers: operator is {self.operator!r:.60}; expected a Reduction, such as TOVA(512)")
        object.__setattr__(self, "size", self.operator.size)
        for name in (*SAFE_FLAGS, *FLAG_OF_FIELD.values(), "merges_values", "stat_names", "tie_tolerance"):
            object.__setattr__(self, name, getattr(self.operator, name))

    def for_layer(self, layer: int) -> Reduction:
        return self.operator.for_layer(layer)

    def __str__(self) -> str:
        return f"{PREFIX}{self.operator}"
