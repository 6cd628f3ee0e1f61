"""Guesses at how one text goes on: a window that the model itself refines pass by pass, and a pool of what followed what."""

from .pool import Guess, Pool


class Guesser:
    """What may follow a text that is being written.

    The window is a run of tokens ahead of the text. Every pass reads it, and each of its tokens becomes what the model says
    after the ones before (Jacobi's iteration); so at each place ahead a text of its own grows, a token a pass: a trajectory.
    The pool is given these texts, and the written one.

    Args:
        text: the prompt.
        window: tokens of the window.
        length: tokens of a guess out of the pool.
        guesses: how many of these.
        pool: what followed what.
    """

    def __init__(self, text: list[int], window: int, length: int, guesses: int, pool: Pool | None):
        self.text, self.window, self.length, self.guesses, self.pool = text, window, length, guesses, pool
        self._ahead: list[int] = []  # the window's tokens, and the trajectories that end in them
        self._trajectories: list[list[int]] = []
        if pool is not None:
            pool.add(text)

    def branches(self, token: int, room: int) -> list[Guess]:
        """``token`` is written; ways in which at most ``room`` more may follow. The window is the first, if there is one."""
        self._write(token)
        self._ahead += [self._ahead[-1] if self._ahead else token] * (self.window - len(self._ahead))
        self._trajectories += [[x] for x in self._ahead[len(self._trajectories) :]]
        found = [Guess(self._ahead[:room], 0)] if self.window and room > 0 else []
        if self.pool is not None:
            found += self.pool.after(self.text, self.guesses, min(self.length, room))
        return found

    def learn(self, right: list[int], said: list[int]) -> None:
        """``right`` were found to follow, and are written; ``said`` is what the model says after the last token and after each
        of the window; nothing where the window was not read."""
        for token in right:
            self._write(token)
        if said:
            lines = [[self.text[-1 - len(right)]], *self._trajectories[: len(said) - 1]]
            for line, token in zip(lines, said, strict=True):
                line.append(token)
                if self.pool is not None:
                    self.pool.add(line, len(line) - 1)
            self._ahead, self._trajectories = said, lines
        gone = len(right) + 1  # with what follows the last of them, which is the next to be written
        self._ahead, self._trajectories = self._ahead[gone:], self._trajectories[gone:]

    def _write(self, token: int) -> None:
        self.text.append(token)
        if self.pool is not None:
            self.pool.add(self.text, len(self.text) - 1)
