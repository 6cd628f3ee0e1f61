"""The base class of operators with constants: vectors per layer and head that are calibrated or trained on a text."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from ..errors import Error
from .constants import Constants
from .contract import Reduction


class ModelSizes(NamedTuple):
    """The sizes of a model that shapes of constants depend on: L, N, K, D and E."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    width: int


@dataclass(frozen=True)
class CalibratedReduction(Reduction):
    """Base class: an operator with constants, which can be read from a file of ``msrnn calibrate``.

    Attributes:
        constants: :class:`Constants`, or the path of their file, which is read.
    """

    constants: Constants
    needs_text_positions: ClassVar[bool] = False
    """True: ``score`` rotates keys by positions in the text, so the positions of rows cannot be remapped."""

    def __post_init__(self) -> None:
        if isinstance(self.constants, str | Path):
            object.__setattr__(self, "constants", Constants.load(self.constants))
        if not isinstance(self.constants, Constants):
            kind = type(self).__name__
            raise Error(f"{kind}: constants are {self.constants!r:.60}; expected Constants or the path of their file")
        super().__post_init__()

    def constant_shapes(self, sizes: ModelSizes) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the constants by name, ``(L, …)`` each, for a model of these sizes."""
        raise Error(f"{type(self).__name__} defines no constant_shapes; expected a method constant_shapes(sizes)")

    def for_layer(self, layer: int) -> Reduction:
        return replace(super().for_layer(layer), constants=self.constants.of_layer(layer))  # type: ignore[call-arg]
