"""Operators × sizes, as they stand on the command line and in the tables."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from ..argtypes import positive_int
from ..errors import Error
from ..reductions.contract import Reduction
from ..reductions.core import Full
from ..reductions.registry import parse_reduction

CORE = ("full", "window", "sinks:SIZE:1", "sinks:SIZE:4", "h2o", "h2o-layer", "tova", "tova-head")
SIZES = (64, 128, 256, 512)
TRUNCATED = "truncated"


@dataclass(frozen=True)
class Entry:
    """One place of the table: the row's name, the column's size (None: the whole row), and the operator. The truncated baseline
    is the unbounded model that sees ``size`` tokens and no more."""

    row: str
    size: int | None
    reduction: Reduction

    @property
    def truncated(self) -> bool:
        """Whether the text is cut instead of the state."""
        return self.row == TRUNCATED

    def __str__(self) -> str:
        return f"{TRUNCATED}:{self.size}" if self.truncated else str(self.reduction)


def entries(rows: Sequence[str], sizes: Sequence[int]) -> list[Entry]:
    """Every operator at every size. A row is a name (``tova``), a form with SIZE in it (``sinks:SIZE:1``), a form that says its
    own size (``full``, ``tova:100``), or ``truncated``.

    Raises:
        Error: a form that does not parse, the same place twice.
    """
    found = list[Entry]()
    for row in rows:
        if row == TRUNCATED:
            found += [Entry(row, size, Full()) for size in sizes]
        elif operator := _whole(row):
            found.append(Entry(row, operator.size if isinstance(operator.size, int) else None, operator))
        else:
            form = row if "SIZE" in row else f"{row}:SIZE"
            found += [Entry(row, size, parse_reduction(form.replace("SIZE", str(size)))) for size in sizes]
    names = [str(entry) for entry in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Error(f"{twice[0]} is asked for twice; expected each operator and size once")
    return found


def _whole(row: str) -> Reduction | None:
    """The operator of a form that says all there is to say; None where a size is missing."""
    if "SIZE" in row:
        return None
    try:
        return parse_reduction(row)
    except Error:
        if ":" in row:
            raise
        return None


def add_arguments(parser: argparse.ArgumentParser, rows: Sequence[str] = CORE, sizes: Sequence[int] = SIZES) -> None:
    """``--operators`` and ``--sizes``."""
    shown = " ".join(rows)
    parser.add_argument(
        "--operators",
        nargs="+",
        metavar="FORM",
        default=list(rows),
        help=f"names, or forms with SIZE in them (default: {shown})",
    )
    shown = " ".join(map(str, sizes))
    parser.add_argument(
        "--sizes", nargs="+", type=positive_int, metavar="N", default=list(sizes), help=f"tokens carried (default: {shown})"
    )
