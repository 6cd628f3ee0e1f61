"""Guesses at how one text goes on: a block that the model itself refines, or phrases, the model's own and those of texts."""

from random import Random

from .ngram_pool import Guess, Pool


class Jacobi:
    """A block of tokens that may follow a text. Every pass reads it, and each token becomes what the model says after the ones
    before it."""

    def __init__(self, block: int):
        self.block, self._ahead = block, list[int]()

    def branches(self, token: int, room: int) -> list[Guess]:
        """``token`` is written; what may follow it, if there is room for more."""
        self._ahead += [self._ahead[-1] if self._ahead else token] * (self.block - len(self._ahead))
        return [Guess(self._ahead[:room], 0)] if self.block and room > 0 else []

    def learn(self, right: list[int], said: list[list[int]]) -> None:
        """``right`` followed. ``said``: what the model says after ``token`` and after each one of the block, if it was read."""
        self._ahead = (said[0] if said else self._ahead)[len(right) + 1 :]  # without the token that is written next


class Phrases:
    """What a pool knows to follow a text, and what feeds the pool: the text, and the model's own trajectories.

    A trajectory begins with some token of the text. Every pass reads its end behind the newest token, and it grows by what the
    model says there: a text that the model would write here, if it began so. One that reads like another begins anew.

    Args:
        text: the prompt.
        window: how many trajectories there are at a time.
        length: tokens of a guess, and of the end of a trajectory that is read.
        guesses: how many guesses out of the pool are read.
        pool: what followed what.
    """

    def __init__(self, text: list[int], window: int, length: int, guesses: int, pool: Pool):
        self.text, self.window, self.length, self.guesses, self.pool = text, window, length, guesses, pool
        self._trajectories: list[list[int]] = []
        self._random = Random(0)  # a guess may be anything; the same call makes the same ones
        pool.add(text)

    def branches(self, token: int, room: int) -> list[Guess]:
        """``token`` is written; ways in which at most ``room`` more may follow, first the ends of all trajectories."""
        self._write(token)
        if room <= 0:
            return []
        self._trajectories += [[self._random.choice(self.text)] for _ in range(self.window - len(self._trajectories))]
        ends = [Guess(line[-self.length :], 0) for line in self._trajectories]
        if any(len(end.tokens) > room for end in ends):
            ends = []  # a model may have no position beyond the last token asked for
        return ends + self.pool.after(self.text, self.guesses, min(self.length, room))

    def learn(self, right: list[int], said: list[list[int]]) -> None:
        """``right`` followed. ``said``: what the model says after each token of every end that was read."""
        for token in right:
            self._write(token)
        known = dict[tuple[int, ...], list[int]]()
        for line, after in zip(self._trajectories, said, strict=False):
            line.append(after[-1])
            self.pool.add(line, len(line) - 1)
            known.setdefault(tuple(line[-self.length :]), line)
        if said:
            self._trajectories = list(known.values())

    def _write(self, token: int) -> None:
        self.text.append(token)
        self.pool.add(self.text, len(self.text) - 1)
