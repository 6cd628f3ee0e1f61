"""The result of Jacobi and lookahead decoding, with counts per forward pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..state.state import State
from .prompt import Start
from .verification import Accepted


@dataclass(frozen=True)
class SpeculationStats:
    """Counts per forward pass after the prompt, called a step here.

    Attributes:
        accepted: new tokens, ``(steps, B)`` int64; 0 once a row is finished.
        tokens_read: tokens read, drafts included, ``(steps, B)`` int64.
        accepted_from_pool: new tokens that were drafted from the pool, ``(steps, B)`` int64.
    """

    accepted: Tensor
    tokens_read: Tensor
    accepted_from_pool: Tensor

    @property
    def steps(self) -> int:
        """Number of forward passes."""
        return len(self.accepted)

    @property
    def tokens_per_step(self) -> float:
        """Mean number of new tokens per forward pass of an unfinished row; 1 for plain decoding."""
        return float(self.accepted.sum()) / max(1, int((self.accepted > 0).sum()))

    @property
    def hits(self) -> int:
        """Number of forward passes, summed over the rows, that accepted a draft from the pool."""
        return int((self.accepted_from_pool > 0).sum())


class SpeculativelyGenerated(NamedTuple):
    """Result of :func:`jacobi` and :func:`lookahead`.

    Attributes:
        tokens, state, logits: see :class:`~msrnn.decoding.generate.Generated`.
        record: counts per forward pass.
    """

    tokens: Tensor
    state: State
    logits: Tensor
    record: SpeculationStats


def collect(start: Start, passes: Iterator[Accepted]) -> SpeculativelyGenerated:
    """Run all forward passes; return the new tokens ``(B, N)``, the last state and logits, and the counts."""
    B, state, logits, clock = len(start.context), start.state, start.logits, start.state.clock
    new, counts = [list[int]() for _ in range(B)], list[list[list[int]]]()
    for accepted in passes:
        state, logits = accepted.state, accepted.logits
        for row, added in zip(new, accepted.tokens, strict=True):
            row += added
        counts.append([[len(tokens) for tokens in accepted.tokens], accepted.tokens_read, accepted.accepted_from_pool])
    N = max(map(len, new), default=0)
    last = [(row or text or [0])[-1] for row, text in zip(new, start.context, strict=True)]  # repeated by a finished row
    padded = [row + [token] * (N - len(row)) for row, token in zip(new, last, strict=True)]
    tokens, columns = clock.new_tensor(padded).view(B, N), clock.new_tensor(counts).view(len(counts), 3, B).unbind(1)
    return SpeculativelyGenerated(tokens, state, logits, SpeculationStats(*columns))
