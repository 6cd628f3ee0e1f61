"""One table of operators: language modelling, retrieval, reasoning and the bytes of H, within a number of minutes.

Every operator is measured on the same chunks and questions, in rounds. The differences from the unbounded model and from
one operator (--against) are paired, item by item. When the minutes are over, the table has the items that are finished for all
operators. The same command with the same folder continues, so several short runs give the table of one long run
(docs/retrieval.md).
"""

import argparse
import time
from collections.abc import Mapping

from ..argtypes import check_distinct, count_int, positive_int, seed_int
from ..errors import Error
from ..reporting.report import Report
from ..reporting.sweep import Sweep
from .conditions import (
    Condition,
    add_condition_arguments,
    check_affected,
    describe_several_sizes,
    parse_paired_conditions,
    unaffected,
)
from .inputs import EvalInputs, add_text_arguments
from .reference import add_against_argument, choose_reference
from .table_plan import LM, REASONING, RETRIEVAL, TASKS, Unit, plan
from .table_report import Measured, report
from .tasks.difficulty import DIFFICULTIES
from .texts import Chunk, text_digest

DEFAULT_TASKS = ("needle", "multikey", "text-needle", "variables", "arithmetic", "lists")
"""Retrieval tasks that ask for single facts, because small models cannot do the others, and the reasoning tasks."""


class TimeBudget:
    """The time that is left, and the longest time that a unit of each kind took.

    Args:
        minutes: number of minutes from now.
    """

    def __init__(self, minutes: int):
        self._end, self._longest, self._begin = time.monotonic() + 60 * minutes, dict[str, float](), 0.0

    def fit(self, kind: str) -> bool:
        """Return True if a unit that takes as long as the longest one of this kind would end in time. Its time begins now.

        The first unit always fits: short runs continue each other, also if the questions take all of the time.
        """
        self._begin = time.monotonic()
        return not self._longest or self._begin + self._longest.get(kind, 0.0) < self._end

    def add(self, kind: str) -> None:
        """Record that the unit of the last call of :meth:`fit` has ended."""
        self._longest[kind] = max(self._longest.get(kind, 0.0), time.monotonic() - self._begin)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval table``."""
    add_text_arguments(parser, chunk=1024)
    add_condition_arguments(parser, ("full", "window", "sinks:SIZE:4", "h2o", "tova"), (128, 256))
    parser.add_argument("--minutes", type=positive_int, metavar="M", default=30, help="time for this run (default: 30)")
    add_against_argument(parser)
    parser.add_argument("--rounds", type=count_int, metavar="N", default=4, help="rounds of the whole table (default: 4)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        metavar="TASK",
        default=list(DEFAULT_TASKS),
        help=f"retrieval and reasoning tasks (default: {' '.join(DEFAULT_TASKS)})",
    )
    parser.add_argument(
        "--length", type=positive_int, metavar="N", default=512, help="tokens of a retrieval prompt (default: 512)"
    )
    parser.add_argument(
        "--difficulty", choices=DIFFICULTIES, default="small", help="sizes of the retrieval tasks (default: small)"
    )
    parser.add_argument("--steps", type=count_int, metavar="N", default=2, help="steps of a problem (default: 2)")
    parser.add_argument("--shots", type=count_int, metavar="N", default=4, help="solved problems in a prompt (default: 4)")
    parser.add_argument(
        "--max-new-tokens", type=positive_int, metavar="N", default=128, help="maximum tokens of a solution (default: 128)"
    )
    parser.add_argument("--seed", metavar="N", type=seed_int, default=1, help="seed of the questions (default: 1)")


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Measure rounds until the minutes are over, and report the units that all conditions have.

    Raises:
        Error: an argument is invalid, or a quality has no finished unit yet.
    """
    budget = TimeBudget(args.minutes)
    conditions = parse_paired_conditions(args.operators, args.sizes)
    against = choose_reference(args.against, conditions)
    check_distinct(args, "tasks")
    chunks = inputs.chunks(args)
    units = plan(args, inputs, chunks)
    longest = {quality: max(u.length for u in units if u.quality == quality) for quality in _qualities(units)}
    check_affected(conditions, max(longest.values()), "the longest text")
    inputs.check_memory(4, [c.reduction for c in conditions], max(longest.values()) + 1)
    names = ("chunk", "tasks", "length", "difficulty", "steps", "shots", "max_new_tokens", "seed")
    sweep = inputs.sweep(args.out, "table", text=text_digest(chunks), **{name: getattr(args, name) for name in names})
    rows = {(c, i): dict(zip(u.keys(c), u.items, strict=True)) for i, u in enumerate(units) for c in conditions}
    for (condition, i), pending in inputs.pending(sweep, rows, max(len(u.items) for u in units)):
        unit = units[i]
        if not budget.fit(unit.quality):
            continue  # not a break: under torchrun all processes end the loop together
        values = unit.measure(inputs.cell, inputs.tokenizer, condition)
        for key, value in zip(unit.keys(condition), values, strict=True):
            if key in pending:
                sweep[key] = {"value": value}
        budget.add(unit.quality)
    finished = [u for u in units if all(key in sweep for c in conditions for key in u.keys(c))]
    if missing := [quality for quality in _qualities(units) if quality not in _qualities(finished)]:
        hint = "run the command again to continue" if args.out else "expected more --minutes, or --out FOLDER to continue later"
        raise Error(f"--minutes {args.minutes} was too short for a unit of {missing[0]} under all operators; {hint}")
    remarks = [_bytes_of(chunks[0]), describe_several_sizes(conditions), *_without_effect(conditions, longest)]
    remarks.append(_progress(units, finished))
    return report(_results(sweep, conditions, finished), against, " ".join(filter(None, remarks)))


def _bytes_of(chunk: Chunk) -> str:
    return f"MB of H: the state after the {len(chunk.ids):,} tokens of the chunk {chunk.name}."


def _without_effect(conditions: list[Condition], longest: Mapping[str, int]) -> list[str]:
    """Return a sentence for each quality that some conditions do not change; ``longest`` are its maximum numbers of tokens."""
    found = {quality: (length, unaffected(conditions, length)) for quality, length in longest.items()}
    return [
        f"In {quality} ({length:,} tokens at most) nothing is evicted that a later query would see: {', '.join(names)}."
        for quality, (length, names) in found.items()
        if names
    ]


def _results(sweep: Sweep, conditions: list[Condition], units: list[Unit]) -> list[Measured]:
    return [
        Measured(c.operator, c.size, u.quality, item, sweep[key]["value"])
        for c in conditions
        for u in units
        for key, item in zip(u.keys(c), u.items, strict=True)
    ]


def _progress(units: list[Unit], finished: list[Unit]) -> str:
    """Return a sentence on how much of the plan is finished; empty if all of it is."""
    if len(finished) == len(units):
        return ""
    parts = [f"{_count(finished, quality)} of {_count(units, quality)} of {quality}" for quality in _qualities(units)]
    return f"The time was over. Finished items: {', '.join(parts)}. The same command continues."


def _qualities(units: list[Unit]) -> list[str]:
    """Return the qualities that have units, in the order of the table."""
    return [quality for quality in (LM, RETRIEVAL, REASONING) if any(u.quality == quality for u in units)]


def _count(units: list[Unit], quality: str) -> int:
    return sum(len(u.items) for u in units if u.quality == quality)
