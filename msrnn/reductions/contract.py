"""The contract of eviction operators. ``recurrence/operator_calls.py`` calls an operator, ``recurrence/transition.py`` evicts.

A step appends the current token's row to the KV cache, attends, and reduces: of the S + 1 rows that the query attended to,
``size`` are retained (arXiv:2401.06104, section 3.2). An operator is a frozen value that scores rows. It owns no
tensors except constants (``calibrated.py``).
"""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import Error, check_bool, check_int, is_int
from .budgets import as_tuples, flat_sizes, size_of_layer, sizes_to_validate
from .spec_strings import SpecNames, format_spec, register_spec_names

EMPTY, LEARNED = -1, -2
"""Positions of a row that holds no token, and of a learned row, which is never evicted."""

MAX_SIZE = 10**18 - 1
"""Maximum number of rows."""

SAFE_FLAGS = {
    "needs_weights": True,
    "depends_on_other_positions": True,
    "depends_on_row_layout": True,
    "update_is_additive": False,
    "reads_heads": "all",
}
"""Values of the flags for a class that does not state them. Every other value allows a shortcut."""

FLAG_OF_FIELD = {
    "keys": "needs_keys",
    "values": "needs_values",
    "output": "needs_output",
    "queries": "needs_queries",
    "x": "needs_input",
}
"""The fields of :class:`Observation` that are None for a class that does not state a flag, each with its flag."""


class Observation(NamedTuple):
    """The rows that the current query of one layer attended to. R rows, of which the current token's row is one.

    For a class with ``depends_on_row_layout`` the tensors are copies with these R columns: learned rows (position −2) first,
    then the cached tokens in order of position, the current token last. In a step ``score`` is called only when a row has to be
    evicted, so R is ``n_learned + size + 1``. In ``update``, in ``msrnn.prefill`` and for the scores of ``cell.scan`` R is the
    number of rows that are there.

    For any other class R and the order of the columns depend on storage. Rows that are not there have position −1, weight 0
    and arbitrary keys, and their scores are ignored.
    """

    weights: Tensor
    """``(B, K, G, R)`` attention probabilities in at least float32; zeros for a class without ``needs_weights``."""
    positions: Tensor
    """``(B, K, R)`` int64."""
    clock: Tensor
    """``(B,)`` int64, the position of the current token."""
    row_stats: dict[str, Tensor]
    """Statistics by name, ``(B, K, R)`` or ``(B, K, R, n)`` each; 0 for the current row until ``update``."""
    keys: Tensor | None = None
    """``(B, K, R, D)``, rotated, in the dtype of ``weights``, for a class with ``needs_keys``; otherwise None."""
    values: Tensor | None = None
    """``(B, K, R, D)``, in the dtype of ``weights``, for a class with ``needs_values``; otherwise None."""
    output: Tensor | None = None
    """``(B, K, G, D)``, the attention output of the current query, the sum of the values by ``weights``, in the dtype of the
    query, for a class with ``needs_output``; otherwise None."""
    queries: Tensor | None = None
    """``(B, K, G, D)``, the current query as attention uses it, rotated, for a class with ``needs_queries``; otherwise None."""
    x: Tensor | None = None
    """``(B, E)``, the input of the layer for the current token, before the layer's norm, for a class with ``needs_input``;
    otherwise None."""


@dataclass(frozen=True)
class Reduction:
    """An eviction operator. A subclass is a frozen dataclass that defines ``score``, and ``update`` if it keeps statistics.

    The row with the lowest score is evicted. Of equal scores the oldest position is evicted. NaN counts as the lowest score. A
    row of score +inf is evicted only if all rows score +inf. Entries of the batch must not affect each other.

    The flags of ``SAFE_FLAGS`` are not inherited, because they describe one implementation of ``update`` and ``score``: a class
    that does not state a flag has the safe value. The other class attributes are inherited. ``msrnn.check_operator`` tests an
    operator.

    Attributes:
        size: number of rows that are retained: an int, or a tuple with one entry per layer. An entry is an int, or a tuple with
            one int per key/value head. None retains all rows of a layer or a head.
    """

    size: int | tuple[int | tuple[int | None, ...], ...] | None
    spec_names: ClassVar[SpecNames] = {}
    """Names in spec strings, each with the fields that it fixes; the other fields follow in order (``spec_strings.py``).
    A class that states none is called by its class name in kebab case."""
    stat_names: ClassVar[tuple[str, ...]] = ()
    """Names of the statistics that are kept for each row."""
    needs_weights: ClassVar[bool] = True
    """False: ``update`` and ``score`` do not read ``weights``, so the library does not compute them."""
    needs_keys: ClassVar[bool] = False
    """True: ``update`` or ``score`` read ``keys``. This flag is inherited, and so are the next four."""
    needs_values: ClassVar[bool] = False
    """True: ``update`` or ``score`` read ``values``."""
    needs_output: ClassVar[bool] = False
    """True: ``update`` or ``score`` read ``output``. Such a class also has ``needs_weights``."""
    needs_queries: ClassVar[bool] = False
    """True: ``update`` or ``score`` read ``queries``."""
    needs_input: ClassVar[bool] = False
    """True: ``update`` or ``score`` read ``x``."""
    update_is_additive: ClassVar[bool] = False
    """True: ``update`` adds terms that do not depend on the statistics, so the terms of many tokens are summed at once."""
    depends_on_other_positions: ClassVar[bool] = True
    """False: the result for a row does not depend on the positions of other rows, so absent rows may have a position."""
    depends_on_row_layout: ClassVar[bool] = True
    """False: results do not depend on the number or the order of the columns, and received tensors are not edited in place.
    The library then passes its own tensors, many tokens at once."""
    reads_heads: ClassVar[str] = "all"
    """The heads that the result for one head depends on, for a cell that is split over several processes. ``own``: only that
    head, and not its index. ``mean``: ``update`` is ``own``, and the score is ``(B, 1, R)``, the mean of the scores that
    ``score`` gives for equal parts of the heads. ``all``: any others."""
    merges_values: ClassVar[bool] = False
    """True: ``merge`` changes values. A class that defines ``merge`` has True unless it states False."""
    tie_tolerance: ClassVar[float] = 0.0
    """Relative gap to the lowest score up to which a score counts as equal, because ties may differ by rounding."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for flag, safe in SAFE_FLAGS.items():
            if flag not in vars(cls):
                setattr(cls, flag, safe)
        if "merge" in vars(cls) and "merges_values" not in vars(cls):
            cls.merges_values = True
        if cls.score is not Reduction.score or vars(cls).get("spec_names"):
            register_spec_names(cls)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_tuples(self.size))
        if not flat_sizes(self.size):
            raise Error(f"{type(self).__name__}: size is {self.size!r:.60}; expected one int per layer")
        self._check_stat_names()
        for size in sizes_to_validate(self.size):
            self.validate(size)

    def validate(self, size: int | None) -> None:
        """Refuse settings that make no sense with ``size`` rows in a layer."""
        self._check_int("size", size, at_least=1)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        """Return the statistics of all rows after this step, the current row's included, ``(B, K, R)`` each."""
        return observation.row_stats

    def stat_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of statistic ``name`` per row: ``()`` for one value, ``(n,)`` for n values."""
        return ()

    def score(self, observation: Observation) -> Tensor:
        """Return the score of each row, ``(B, K, R)``, or ``(B, 1, R)`` for one decision for all heads of the layer.

        ``observation.row_stats`` are the updated statistics.
        """
        raise Error(f"{type(self).__name__} defines no score; expected a method score(observation) -> (B, 1 or K, R)")

    def merge(self, observation: Observation, values: Tensor, row: Tensor) -> Tensor:
        """Return the values of all rows after row ``row (B, K)`` is evicted, a new tensor ``(B, K, R, D)`` like ``values``.

        ``observation`` is the one that ``score`` received. The result is ignored for a head in which no row is evicted.
        """
        return values

    def for_layer(self, layer: int) -> "Reduction":
        """Return the operator of one layer, with an int ``size``, or ``((64, 32, None),)`` with sizes per key/value head."""
        return replace(self, size=size_of_layer(self.size, layer)) if isinstance(self.size, tuple) else self

    def check_contract(self) -> None:
        """Refuse a class that breaks the contract in a way that shows without calling it.

        Raises:
            Error: no ``score``; another ``reads_heads`` than the three; ``needs_output`` without ``needs_weights``;
                ``stat_names`` or ``stat_shape`` of a wrong type; an ``update`` without ``stat_names``; a size that is no int,
                although ``validate`` accepts it; a ``tie_tolerance`` that is no finite number of at least 0.
        """
        kind, names = type(self).__name__, self.stat_names
        if self.size is not None:
            self._check_int("size", self.size, at_least=0)
        if not 0 <= self.tie_tolerance < float("inf"):
            raise Error(f"{kind}: tie_tolerance is {self.tie_tolerance!r:.60}; expected a finite number of at least 0")
        if self.reads_heads not in ("own", "mean", "all"):
            raise Error(f"{kind}: reads_heads is {self.reads_heads!r:.60}; expected 'own', 'mean' or 'all'")
        if type(self).score is Reduction.score:
            raise Error(f"{kind} defines no score; expected a method score(observation) -> (B, 1 or K, R)")
        if self.needs_output and not self.needs_weights:
            raise Error(f"{kind} has needs_output without needs_weights; expected both, because the output is their product")
        self._check_stat_names()
        if not names and type(self).update is not Reduction.update:
            raise Error(f"{kind} defines update and no stat_names; expected the names of the statistics that update returns")
        for name in names:
            shape = self.stat_shape(name)
            if not isinstance(shape, tuple) or len(shape) > 1 or not all(is_int(n) and n > 0 for n in shape):
                raise Error(f"{kind}: stat_shape({name!r}) is {shape!r:.60}; expected () or a tuple of one int of at least 1")

    def _check_stat_names(self) -> None:
        kind, names = type(self).__name__, self.stat_names
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name.isidentifier() for name in names):
            raise Error(f"{kind}: stat_names are {names!r:.60}; expected a tuple of names")
        if len(set(names)) < len(names):
            raise Error(f"{kind}: stat_names are {names!r:.60}; expected each name once")
        if taken := {"keys", "values", "positions", "key_scales", "value_scales"} & set(names):
            raise Error(f"{kind}: stat_names contain {min(taken)!r}, the name of a cached tensor; expected another name")

    def __str__(self) -> str:
        """Return the spec string, which :func:`parse_reduction` reads."""
        return format_spec(self)

    def _check_int(self, name: str, value: object, at_least: int, at_most: int | None = None) -> None:
        if at_most is None and is_int(value) and value > MAX_SIZE:  # type: ignore[operator]
            at_most = MAX_SIZE
        check_int(f"{type(self).__name__}: {name}", value, at_least, at_most)

    def _check_bool(self, name: str, value: object) -> None:
        check_bool(f"{type(self).__name__}: {name}", value)


def is_same_operator(one: Reduction, other: Reduction) -> bool:
    """Return True if two operators are of one class and no attribute differs, also none that ``==`` leaves out.

    Layers with the same operator are evaluated together.
    """

    def settings(operator: Reduction) -> dict[str, Any]:
        return {**vars(operator), **{f.name: getattr(operator, f.name) for f in fields(operator)}}  # slots are not in ``vars``

    return one is other or (type(one) is type(other) and one == other and settings(one) == settings(other))


def is_recent(observation: Observation, count: int) -> Tensor:
    """Return ``(B, K, R)`` bool, True for the rows of the last ``count`` tokens, the current token included."""
    return observation.positions > observation.clock[:, None, None] - count


def constant_score(observation: Observation, value: float) -> Tensor:
    """Return the same score for every row, ``(B, 1, R)``."""
    return torch.full_like(observation.positions[:, :1], value, dtype=observation.weights.dtype)
