"""The sections of ``msrnn bench``, by name and in order."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from . import agreement, busy, captured, decoding, eviction_iterations, memory, messages, scaling, step, unroll
from .result import Result, SkipBenchmark
from .settings import Bench


class Section(NamedTuple):
    """Heading of the table, and the function that measures the results."""

    table: str
    measure: Callable[[Bench], Iterable[Result]]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring, for the help text."""
        line = (self.measure.__doc__ or "").partition("\n")[0].replace("``", "").rstrip(".")
        return line[:1].lower() + line[1:]


READING, STEP, MEMORY, SPECULATIVE = "Reading a text", "One token", "Memory", "Speculative decoding"
AGREEMENT, RANKS = "Equality of the paths", "Ranks"
SECTIONS = {
    "unroll": Section(READING, unroll.operators),
    "long": Section(READING, unroll.long),
    "bfloat16": Section(READING, unroll.bfloat16),
    "ragged": Section(READING, unroll.ragged),
    "iterations": Section(READING, eviction_iterations.iterations),
    "step": Section(STEP, step.step),
    "busy": Section(STEP, busy.busy),
    "captured": Section(STEP, captured.captured),
    "kvpress": Section(STEP, step.kvpress),
    "llama-cpp": Section(STEP, step.llama),
    "bandwidth": Section(STEP, step.bandwidth),
    "pure-step": Section(STEP, step.pure_step),
    "small-unroll": Section(STEP, step.small_unroll),
    "batch": Section(STEP, step.batch),
    "peak": Section(MEMORY, memory.peak),
    "far-position": Section(MEMORY, memory.far_position),
    "state-bytes": Section(MEMORY, memory.state_bytes),
}
SPECULATIVE_SECTIONS = {
    "passes": Section(SPECULATIVE, decoding.passes),
    "decode": Section(SPECULATIVE, decoding.decode),
    "phrases": Section(SPECULATIVE, decoding.phrases),
}
"""Sections that do not run by default, because they generate two thousand tokens several times."""

OTHER_SECTIONS = {
    "agreement": Section(AGREEMENT, agreement.agreement),
    "messages": Section(RANKS, messages.messages),
    "scaling": Section(RANKS, scaling.scaling),
}
"""Sections that run only by name; with several ranks ``messages`` runs by default."""

RANK_SECTIONS = (
    "unroll",
    "long",
    "ragged",
    "iterations",
    "step",
    "pure-step",
    "small-unroll",
    "batch",
    "state-bytes",
    "messages",
)
"""Sections that run by default with several ranks."""
OTHER_RANK_SECTIONS = ("bfloat16", "agreement", "scaling")
"""Further sections that can run with several ranks."""


def section(name: str) -> Section:
    """Return the section called ``name``."""
    return next(sections[name] for sections in (SECTIONS, SPECULATIVE_SECTIONS, OTHER_SECTIONS) if name in sections)


def measure(bench: Bench, name: str) -> Iterator[Result]:
    """Yield the results of a section; if the section fails, the last result states the reason in ``note``."""
    try:
        if bench.ranks > 1 and name not in (*RANK_SECTIONS, *OTHER_RANK_SECTIONS):
            raise SkipBenchmark("measures one process")
        with torch.no_grad():
            yield from section(name).measure(bench)
    except SkipBenchmark as reason:
        yield Result(name, note=str(reason))
    except (MemoryError, RuntimeError) as error:  # mostly torch out of memory; the other sections can still be measured
        yield Result(name, note=f"{type(error).__name__}: {(str(error) or 'out of memory').splitlines()[0]}")
