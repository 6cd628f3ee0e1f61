"""What can be measured, by name and in order; a section is a function ``(Bench) -> rows``."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from . import decoding, eviction_passes, memory, step, unroll
from .result import Row, Unmeasured
from .settings import Bench


class Section(NamedTuple):
    table: str
    """The heading its rows stand under."""
    rows: Callable[[Bench], Iterable[Row]]


READ, STEP, HELD, GUESSES = "Reading a text", "One token", "Memory", "Guesses"
SECTIONS = {
    "fold": Section(READ, unroll.operators),
    "long": Section(READ, unroll.long),
    "half": Section(READ, unroll.half),
    "ragged": Section(READ, unroll.ragged),
    "guesses": Section(READ, eviction_passes.guesses),
    "step": Section(STEP, step.step),
    "kvpress": Section(STEP, step.kvpress),
    "bandwidth": Section(STEP, step.bandwidth),
    "pure": Section(STEP, step.pure),
    "few": Section(STEP, step.few),
    "batch": Section(STEP, step.batch),
    "peak": Section(HELD, memory.peak),
    "far": Section(HELD, memory.far),
    "held": Section(HELD, memory.held),
}
GUESSING = {
    "passes": Section(GUESSES, decoding.passes),
    "decode": Section(GUESSES, decoding.decode),
    "phrases": Section(GUESSES, decoding.phrases),
}
"""These are measured where they are asked for: they write two thousand tokens again and again."""


def section(name: str) -> Section:
    return SECTIONS[name] if name in SECTIONS else GUESSING[name]


def measure(bench: Bench, name: str) -> Iterator[Row]:
    """The rows of a section as they come; one that says why where it cannot go on."""
    try:
        with torch.no_grad():
            yield from section(name).rows(bench)
    except Unmeasured as reason:
        yield Row(name, note=str(reason))
    except (MemoryError, RuntimeError) as wrong:  # torch's, mostly for want of room; the other sections can still be measured
        yield Row(name, note=f"{type(wrong).__name__}: {(str(wrong) or 'out of memory').splitlines()[0]}")
