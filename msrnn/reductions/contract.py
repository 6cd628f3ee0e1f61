r"""What leaves H: the operators and their contract (``transition.py`` applies them).

A step appends the current token's row, attends, and then *reduces*: of the S + 1 rows just seen, all but ``size`` go
(arXiv:2401.06104, sec. 3.2). An operator is a frozen value that only says how dear a row is; it owns no tensors and
touches none. Of the rows with the lowest score the one at the oldest position goes; a score of +inf may not go.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import ClassVar, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from ..errors import Error

EMPTY, LEARNED = -1, -2
"""Positions of a row that holds no token, and of a learned row, which is never evicted."""

MOST = 10**18 - 1
"""Of rows: what 18 digits can say, and a clock can count."""


SpecNames = Mapping[str, Mapping[str, object]]
"""Text forms by name, each with the fields that it fixes."""


class Observation(NamedTuple):
    """What the current query of one layer saw: the rows carried over and, last, its own. R = S + 1 rows."""

    weights: Tensor
    """``(B, K, G, R)`` attention probabilities in at least float32; 0 on empty rows."""
    positions: Tensor
    """``(B, K, R)`` int64; −1 on empty rows."""
    clock: Tensor
    """``(B,)`` int64: the current token's position."""
    row_stats: dict[str, Tensor]
    """The operator's own, ``(B, K, R)`` each, or ``(B, K, R, n)`` of ``shape (n,)``; 0 for the current row until ``update``."""
    keys: Tensor | None = None
    """``(B, K, R, D)``, rotated, whatever on empty rows; of an operator that is ``keyed``, otherwise None."""


@dataclass(frozen=True)
class Reduction:
    """The contract. To write an operator, subclass this as a frozen dataclass and say ``score`` (and, for numbers
    remembered with each row, ``numbers`` and ``update``); it then works wherever the ones below do.

    ``size``: rows carried to the next step, an int or one per layer; None is unbounded.
    """

    size: int | tuple[int, ...] | None
    spec_names: ClassVar[SpecNames] = {}
    """What text forms call it, and the fields that each name fixes; the other fields follow as whole numbers, in order."""
    stat_names: ClassVar[tuple[str, ...]] = ()
    update_is_additive: ClassVar[bool] = False
    """Whether ``update`` adds to the numbers what does not depend on them: the fold then sums many tokens at once."""
    needs_weights: ClassVar[bool] = True
    """Whether ``update`` and ``score`` do without weights: those they get may be zeros."""
    depends_on_other_positions: ClassVar[bool] = True
    """Whether what ``update`` and ``score`` say of a row depends on the ``seen.positions`` of others; if not, rows that are not
    there may have one. Each class speaks for itself: a subclass that does not say so is taken to depend on them."""
    needs_keys: ClassVar[bool] = False
    """Whether ``update`` or ``score`` look at ``seen.keys``."""
    merges_values: ClassVar[bool] = False
    """Whether ``merge`` changes values: such an operator folds token by token."""

    def __post_init__(self) -> None:
        if isinstance(self.size, list):
            object.__setattr__(self, "size", tuple(self.size))
        if taken := {"keys", "values", "positions"} & set(self.stat_names):
            raise Error(f"{type(self).__name__}: a number is called {min(taken)!r}, as the rows of H are")
        if self.size == ():
            raise Error(f"{type(self).__name__}: size is (); expected one for each layer")
        for size in self.size if isinstance(self.size, tuple) else (self.size,):
            self.validate(size)

    def validate(self, size: int | None) -> None:
        """Refuse a ``size`` (one layer's) that makes no sense for this operator."""
        self._check_int("size", size, at_least=1)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        """The numbers of every row after this step, the current one's included, ``(B, K, R)`` each."""
        return observation.row_stats

    def stat_shape(self, name: str) -> tuple[int, ...]:
        """What a row has of the number ``name``: () is one value, ``(n,)`` are n."""
        return ()

    def score(self, observation: Observation) -> Tensor:
        """How dear each row is, ``(B, K, R)``, or ``(B, 1, R)`` for one decision for the layer; ``seen.numbers`` are
        the updated ones."""
        raise NotImplementedError(f"{type(self).__name__} does not say how dear a row is")

    def merge(self, observation: Observation, values: Tensor, row: Tensor) -> Tensor:
        """The values of all rows once ``row (B, K)`` has gone, ``(B, K, R, D)`` as ``values`` are, a new tensor.

        ``seen`` is what ``score`` saw. Where nothing leaves a head, what is given for it is not used.
        """
        return values

    def for_layer(self, layer: int) -> "Reduction":
        """This operator as one layer has it, with an int ``size``."""
        return replace(self, size=self.size[layer]) if isinstance(self.size, tuple) else self

    def __str__(self) -> str:
        """The text form, as :func:`parse_reduction` reads it where it can be said there."""
        for name, fixed in self.spec_names.items():
            if all(getattr(self, key) == value for key, value in fixed.items()):
                said = self.spec_fields(fixed)
                while len(said) > 1 and getattr(self, said[-1].name) == said[-1].default:
                    said.pop()
                return ":".join([name, *(str(getattr(self, f.name)) for f in said)])
        return f"{type(self).__name__}:{self.size}"

    @classmethod
    def spec_fields(cls, fixed: Mapping[str, object]) -> list[Field]:
        """The fields that a text form gives as whole numbers, in order; not those ``fixed``, nor what only a keyword sets."""
        types = get_type_hints(cls)
        whole = [f for f in fields(cls) if int in (types[f.name], *get_args(types[f.name]))]
        return [f for f in whole if f.name not in fixed and not f.kw_only]

    def _check_int(self, name: str, value: object, at_least: int, at_most: int | None = None) -> None:
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or value < at_least
            or value > (MOST if at_most is None else at_most)
        ):
            bound = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
            raise Error(f"{type(self).__name__}: {name} is {value!r:.60}; expected a whole number {bound}")

    def _check_bool(self, name: str, value: object) -> None:
        if not isinstance(value, bool):
            raise Error(f"{type(self).__name__}: {name} is {value!r:.60}; expected a bool")


@dataclass(frozen=True)
class Full(Reduction):
    """Nothing leaves: the transformer as it was trained, g(t) = t."""

    size: None = None
    spec_names: ClassVar[SpecNames] = {"full": {}}
    needs_weights: ClassVar[bool] = False

    def validate(self, size: int | None) -> None:
        if size is not None:
            raise Error(f"Full: size is {size!r:.60}; a full state has none")

    def score(self, observation: Observation) -> Tensor:
        return torch.full_like(observation.positions[:, :1], torch.inf, dtype=observation.weights.dtype)


@dataclass(frozen=True)
class Window(Reduction):
    """The oldest goes. ``Window(W - 1)`` is a sliding window that counts the current token among its W."""

    spec_names: ClassVar[SpecNames] = {"window": {}}
    needs_weights: ClassVar[bool] = False

    def validate(self, size: int | None) -> None:
        self._check_int("size", size, at_least=0)

    def score(self, observation: Observation) -> Tensor:
        return torch.zeros_like(observation.positions[:, :1], dtype=observation.weights.dtype)  # all tie: the oldest goes


@dataclass(frozen=True)
class Sinks(Reduction):
    """The first ``sinks`` tokens never go, of the rest the oldest (Window+i; arXiv:2309.17453, positions absolute)."""

    sinks: int = 4
    spec_names: ClassVar[SpecNames] = {"sinks": {}}
    needs_weights: ClassVar[bool] = False

    def validate(self, size: int | None) -> None:
        super().validate(size)
        assert isinstance(size, int)
        self._check_int("sinks", self.sinks, at_least=1, at_most=size - 1)

    def score(self, observation: Observation) -> Tensor:
        positions = observation.positions[:, :1]
        return torch.zeros_like(positions, dtype=observation.weights.dtype).masked_fill(positions < self.sinks, torch.inf)

    def __str__(self) -> str:
        return f"sinks:{self.size}:{self.sinks}"


@dataclass(frozen=True)
class H2O(Reduction):
    """Heavy-hitter oracle (arXiv:2306.14048): a row's score is the probability it has received since it entered.

    The ``recent`` newest rows (half of ``size`` unless said), the current one included, may not go. Per key/value
    head, by the mean over the query heads that share it; ``per_head=False`` takes one decision for the layer.
    """

    recent: int | None = None
    per_head: bool = True
    spec_names: ClassVar[SpecNames] = {"h2o": {"per_head": True}, "h2o-layer": {"per_head": False}}
    stat_names: ClassVar[tuple[str, ...]] = ("accumulated_attention",)
    update_is_additive: ClassVar[bool] = True
    depends_on_other_positions: ClassVar[bool] = False

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_bool("per_head", self.per_head)
        assert isinstance(size, int)
        if self.recent is not None:
            self._check_int("recent", self.recent, at_least=0, at_most=size)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        return {"accumulated_attention": observation.row_stats["accumulated_attention"] + observation.weights.mean(2)}

    def score(self, observation: Observation) -> Tensor:
        assert isinstance(self.size, int)
        recent = self.size // 2 if self.recent is None else self.recent
        newest = observation.positions > observation.clock[:, None, None] - recent
        received = observation.row_stats["accumulated_attention"]
        if not self.per_head:
            received, newest = received.mean(1, keepdim=True), newest[:, :1]
        return torch.where(newest, torch.inf, received)


@dataclass(frozen=True)
class TOVA(Reduction):
    """Token omission via attention (arXiv:2401.06104, eq. 9): the row the current query attends to least goes.

    One decision for the layer, by the mean over all query heads; the current token may go. ``per_head=True``: one per
    key/value head, by the mean over the query heads that share it.
    """

    per_head: bool = False
    depends_on_other_positions: ClassVar[bool] = False
    spec_names: ClassVar[SpecNames] = {"tova": {"per_head": False}, "tova-head": {"per_head": True}}

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_bool("per_head", self.per_head)

    def score(self, observation: Observation) -> Tensor:
        return observation.weights.mean(2) if self.per_head else observation.weights.mean((1, 2))[:, None]
