"""The operator that the others of an experiment are compared with: ``--against``."""

import argparse
from collections.abc import Mapping, Sequence

from ..errors import Error, did_you_mean
from .conditions import Condition, is_published


def add_against_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--against``, for :func:`choose_reference`."""
    text = "reference of the differences (default: tova, or the first operator with a size that another one has, or full)"
    parser.add_argument("--against", metavar="SPEC", help=text)


def choose_reference(against: str | None, conditions: Sequence[Condition]) -> str:
    """Return the operator that the others are compared with, each at its own size.

    Args:
        against: value of ``--against``. None: ``tova`` if it is one of the operators, otherwise the first bounded operator that
            has a size in common with another one, otherwise the unbounded model, otherwise the first operator. So the only
            bounded operator is compared with the unbounded model.
        conditions: the conditions.

    Raises:
        Error: ``against`` is none of the operators, or has no size in common with a bounded one.
    """
    sizes: dict[str, set[int | None]] = {}
    for condition in conditions:
        sizes.setdefault(condition.operator, set()).add(condition.size)
    if against is not None:
        _check(against, sizes)
        return against
    bounded = dict.fromkeys(c.operator for c in conditions if c.size is not None and not c.truncated)
    several = [operator for operator in bounded if sizes[operator] & _others(operator, sizes)]
    return next(iter([x for x in sizes if x == "tova"] + several + [x for x in sizes if is_published(x)] + list(sizes)))


def _check(against: str, sizes: Mapping[str, set[int | None]]) -> None:
    if against not in sizes:
        found = f"--against is {against!r:.60}{did_you_mean(against, sizes)}"
        raise Error(f"{found}; expected one of the operators, {', '.join(sizes)}")
    own, others = sizes[against], _others(against, sizes)
    if None not in own and others and not own & others:
        found = f"--against is {against}, with {_text(own)} rows, but the other operators have {_text(others)}"
        raise Error(f"{found}; expected an operator of one of these sizes, or full, which is compared with all")


def _others(operator: str, sizes: Mapping[str, set[int | None]]) -> set[int | None]:
    """Return the sizes of the other bounded operators."""
    return {size for other, found in sizes.items() if other != operator for size in found} - {None}


def _text(sizes: set[int | None]) -> str:
    return ", ".join(str(size) for size in sorted(size for size in sizes if size is not None))
