"""Conditions of an experiment: operators at sizes, as on the command line and in the tables."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..argtypes import positive_int
from ..errors import Error
from ..reductions.all_layers import PREFIX, AllLayers
from ..reductions.budgets import flat_sizes, mean_size
from ..reductions.contract import Reduction
from ..reductions.registry import is_name_only, parse_reduction
from ..reductions.spec_strings import SPEC_NAMES, is_complete
from ..reductions.tova_paper import Full, Window
from ..reporting.sweep import Sweep
from .digests import code_digest

CORE = ("full", "window", "sinks:SIZE:1", "sinks:SIZE:4", "h2o", "h2o-layer", "tova", "tova-head")
SIZES = (64, 128, 256, 512)
TRUNCATED = "truncated"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Condition:
    """An operator at one size.

    Attributes:
        operator: name of the table row, as given on the command line.
        size: table column: the size, the value of SIZE, or the mean of several given sizes, rounded; None for a state that
            grows with the text, because all of its heads or some of them are unbounded.
        reduction: the operator.
        code: digest of the code of the operator and of this library.
    """

    operator: str
    size: int | None
    reduction: Reduction
    code: str

    @classmethod
    def of(cls, operator: str, size: int | None, reduction: Reduction) -> "Condition":
        """Return the condition with the digest of the code as it is now.

        Raises:
            Error: the operator has a setting that its spec string cannot contain, so that unequal operators could share table
                cells.
        """
        if not is_complete(str(reduction)):
            raise Error(
                f"--operators has {operator}, which is {reduction!r:.200}; expected settings that a spec string can contain: "
                "None, bool, int, float, str or flat tuples of these"
            )
        return cls(operator, size, reduction, code_digest(reduction))

    @property
    def truncated(self) -> bool:
        """True for the truncated baseline: the unbounded model with at most ``size`` visible tokens."""
        return self.operator == TRUNCATED

    @property
    def rows(self) -> Reduction:
        """An operator that retains as many rows in each layer as this condition needs."""
        return AllLayers(Window(self.size)) if self.truncated else self.reduction

    @property
    def bounds(self) -> tuple[int, ...]:
        """The sizes of the bounded layers and heads; empty for the unbounded model."""
        if self.truncated:
            assert self.size is not None
            return (self.size,)
        return tuple(size for size in flat_sizes(self.reduction.size) if size is not None)

    @property
    def key(self) -> str:
        """First part of the keys of its table cells: operator, size and code."""
        return f"{self} {self.code}"

    def __str__(self) -> str:
        return f"{TRUNCATED}:{self.size}" if self.truncated else str(self.reduction)


def parse_conditions(operators: Sequence[str], sizes: Sequence[int]) -> list[Condition]:
    """Return every operator at every size.

    Args:
        operators: names (``tova``), spec strings with SIZE (``sinks:SIZE:1``), spec strings with their own sizes (``full``,
            ``tova:100``, ``tova-head:192/128/64``), or ``truncated``.
        sizes: the sizes.

    Raises:
        Error: a spec string is invalid, a condition occurs twice, or an operator is called truncated.
    """
    if TRUNCATED in SPEC_NAMES:
        raise Error(f"an operator is called {TRUNCATED!r}, the name of a baseline; expected another class name or spec name")
    found = list[Condition]()
    for operator in operators:
        if operator == TRUNCATED:
            found += [Condition.of(operator, size, Full()) for size in sizes]
        elif reduction := _complete(operator):
            mean = mean_size(reduction.size)
            found.append(Condition.of(operator, None if mean is None else int(mean + 0.5), reduction))
        else:
            spec = operator if "SIZE" in operator else f"{operator}:SIZE"
            found += [Condition.of(operator, size, parse_reduction(spec.replace("SIZE", str(size)))) for size in sizes]
    names = [str(condition) for condition in found]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise Error(f"--operators has {repeated[0]} twice; expected each operator and size once")
    return found


def parse_paired_conditions(operators: Sequence[str], sizes: Sequence[int]) -> list[Condition]:
    """Return :func:`parse_conditions` with the unbounded model, for experiments that decode and compare with it.

    Raises:
        Error: as :func:`parse_conditions`; the truncated baseline is among the operators.
    """
    conditions = parse_conditions(operators, sizes)
    if truncated := [condition for condition in conditions if condition.truncated]:
        raise Error(f"--operators has {truncated[0]}, which has no state to continue from; expected operators")
    if any(is_published(condition.operator) for condition in conditions):
        return conditions
    return parse_conditions(["full", *operators], sizes)


def unaffected(conditions: Iterable[Condition], length: int) -> list[str]:
    """Return the names of the bounded conditions that give the results of the unbounded model for ``length`` tokens.

    A query sees ``size`` + 1 rows, so an eviction changes results only if more tokens are read. The truncated baseline sees
    ``size``. Of several sizes the smallest decides.
    """
    return [str(c) for c in conditions if c.bounds and min(c.bounds) + (not c.truncated) >= length]


def check_affected(conditions: Iterable[Condition], length: int, texts: str) -> None:
    """Refuse conditions that change nothing in any text of an experiment.

    Args:
        conditions: the conditions.
        length: number of tokens that are read of the longest text.
        texts: what the texts are, for the message.

    Raises:
        Error: a size is too large for the texts.
    """
    if names := unaffected(conditions, length):
        why = "" if names[0].startswith(TRUNCATED) else ", because a query sees size + 1 rows"
        found = f"{names[0]} changes nothing in {texts} of {length:,} tokens{why}"
        raise Error(f"--sizes: {found}; expected a smaller size, or longer texts")


def is_published(operator: str) -> bool:
    """Return True for ``full``, the reference of other operators: no eviction except for the windows of the published model."""
    return operator.strip().lower() == "full"


def describe_several_sizes(conditions: Iterable[Condition]) -> str:
    """Return sentences on the sizes at which operators with several sizes are compared; empty if there are none."""
    means = {str(c): mean_size(c.reduction.size) for c in conditions if isinstance(c.reduction.size, tuple)}
    bounded = [f"{name} ({mean:.4g})" for name, mean in means.items() if mean is not None]
    unbounded = [name for name, mean in means.items() if mean is None]
    rules = {
        "Operators with several sizes are compared at their mean size, rounded, or at SIZE": bounded,
        "Operators with unbounded heads have no such size and are not compared with a bounded reference": unbounded,
    }
    return " ".join(f"{rule}: {', '.join(names)}." for rule, names in rules.items() if names)


def is_unbounded(operator: str) -> bool:
    """Return True for the model without any eviction, or with those of its published windows only."""
    return is_published(operator.strip().removeprefix(PREFIX))


def condition_name(operator: str, size: int | None) -> str:
    """Return the name of an operator at a size, such as ``tova:64``; ``operator`` and ``size`` are those of a condition."""
    if "SIZE" in operator or size is None:
        return operator.replace("SIZE", str(size))
    return f"{operator}:{size}" if is_name_only(operator) else operator


def has_several_sizes(operator: str, size: int | None) -> bool:
    """Return True if layers or heads have different sizes; ``operator`` and ``size`` are those of a condition."""
    return isinstance(parse_reduction(condition_name(operator, size)).size, tuple)


def _complete(operator: str) -> Reduction | None:
    """Return the operator of a complete spec string, or None if the size is missing."""
    if "SIZE" in operator:
        return None
    has_settings = not is_name_only(operator)
    try:
        reduction = parse_reduction(operator)
        by_default = not has_settings and reduction.size is not None  # a name stands for every size
        return None if by_default else reduction
    except Error:
        if has_settings:
            raise
        return None


def load_results(kind: Callable[..., Result], sweep: Sweep, rows: Mapping[Any, Iterable[str]]) -> list[Result]:
    """Return the finished table cells of a sweep as results.

    Args:
        kind: class of the results. The fields ``operator`` and ``size`` are taken from the condition, because equal operators
            with different spec strings share a cell.
        sweep: the cells.
        rows: cell keys by row; a row is a condition or a tuple that starts with a condition.
    """
    pairs = [(row[0] if isinstance(row, tuple) else row, key) for row, keys in rows.items() for key in keys]
    return [kind(**{**sweep[key], "operator": c.operator, "size": c.size}) for c, key in pairs]


def by_condition(results: Iterable[Result]) -> dict[tuple[str, int | None], list[Result]]:
    """Group results by their ``operator`` and ``size``, in the order of first occurrence."""
    groups: dict[tuple[str, int | None], list[Any]] = {}
    for result in results:
        groups.setdefault((result.operator, result.size), []).append(result)  # type: ignore[attr-defined]
    return groups


def add_condition_arguments(
    parser: argparse.ArgumentParser, operators: Sequence[str] = CORE, sizes: Sequence[int] = SIZES
) -> None:
    """Add ``--operators`` and ``--sizes``."""
    parser.add_argument(
        "--operators",
        nargs="+",
        metavar="SPEC",
        default=list(operators),
        help=f"names, spec strings with SIZE, or complete spec strings (default: {' '.join(operators)})",
    )
    default = " ".join(map(str, sizes))
    parser.add_argument(
        "--sizes", nargs="+", type=positive_int, metavar="N", default=list(sizes), help=f"rows carried (default: {default})"
    )
