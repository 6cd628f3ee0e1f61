"""Decision whether the next forward pass reads drafts, from measured times and measured gains.

A forward pass with drafts takes longer than a plain one. It saves time only if enough drafted tokens are accepted. Time lost on
rejected drafts is charged to a budget. If the budget is used up, speculation stops. The loss is therefore bounded by about 3 %
of the time of plain decoding.
"""

from collections import defaultdict
from collections.abc import Sequence

MAX_OVERHEAD = 0.03
"""Maximum share of the time of plain decoding that may be lost on rejected drafts."""
INITIAL_BUDGET = 1.5
"""Time that may be lost in advance while a gain is expected, in plain forward passes."""
PRIOR_GAIN: dict[int | None, float] = {None: 0.0, 0: 1.0, 1: 0.5, 2: 1.5}
"""Expected number of accepted tokens before any draft was verified, by match length; None: there is no draft."""
PRIOR_GAIN_LONG = 4.0
"""The same for longer matches."""
EMA_WEIGHT = 0.25
"""Weight of a new value in an exponential moving average."""


class SpeculationController:
    """The decision to read drafts, from their measured time and gain."""

    def __init__(self) -> None:
        self._plain = self._speculative = 0.0  # seconds per forward pass
        self._time_budget = 0.0  # seconds; negative after a loss
        self._expected_gain = defaultdict(lambda: PRIOR_GAIN_LONG, PRIOR_GAIN)

    def should_speculate(self, match_lengths: Sequence[int | None]) -> bool:
        """Return True if the drafts should be read.

        Drafts are read if they are expected to save time. Otherwise they are read as often as the budget allows, because the
        expectation must be measured again.

        Args:
            match_lengths: for each unfinished sequence the longest match of its drafts; None if it has no draft.
        """
        if not self._plain or all(length is None for length in match_lengths):
            return False  # the first forward pass measures the plain time
        gain = sum(self._expected_gain[length] for length in match_lengths) / len(match_lengths) * self._plain
        return self._time_budget - self._extra_cost >= (-INITIAL_BUDGET * self._plain if gain > self._extra_cost else 0)

    def record_plain(self, seconds: float) -> None:
        """Record the time of a plain forward pass."""
        self._plain = _moving_average(self._plain, seconds)
        limit = INITIAL_BUDGET * self._plain + self._extra_cost
        self._time_budget = min(self._time_budget + MAX_OVERHEAD * self._plain, limit)

    def record_speculative(self, seconds: float, match_lengths: Sequence[int | None], gains: Sequence[int]) -> None:
        """Record the time of a forward pass with drafts, and the number of accepted draft tokens of each sequence."""
        seconds = min(seconds, 2 * (self._speculative or self._plain))
        self._speculative = _moving_average(self._speculative, seconds)
        for length, gain in zip(match_lengths, gains, strict=True):
            if length is not None:
                self._expected_gain[length] += EMA_WEIGHT * (gain - self._expected_gain[length])
        profit = (1 + MAX_OVERHEAD + sum(gains) / len(gains)) * self._plain - seconds
        if profit < 0:
            self._time_budget += profit
        elif self._time_budget < 0:  # a profit only repays a loss, so that a long profitable text earns no budget
            self._time_budget = min(self._time_budget + profit, 0)

    @property
    def _extra_cost(self) -> float:
        """Seconds that a forward pass with drafts takes in addition to a plain one; before the first one, a plain pass."""
        return max(self._speculative - self._plain, 0.1 * self._plain) if self._speculative else self._plain


def _moving_average(mean: float, seconds: float) -> float:
    """Return the updated average. A value counts at most twice the average, because other work may delay one forward pass."""
    return mean + EMA_WEIGHT * (min(seconds, 2 * mean) - mean) if mean else seconds
