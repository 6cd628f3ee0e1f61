"""Drafters of speculative decoding: a Jacobi block, and n-grams with the trajectories of lookahead decoding."""

from random import Random

from .ngram_pool import Draft, NgramPool


class JacobiDrafter:
    """One block of drafted tokens, which every forward pass replaces by the model's predictions (Jacobi iteration).

    Args:
        length: number of drafted tokens.
    """

    def __init__(self, length: int):
        self.length, self._draft = length, list[int]()

    def propose(self, token: int, room: int) -> list[Draft]:
        """Return the block as a draft of at most ``room`` tokens after ``token``."""
        self._draft += [self._draft[-1] if self._draft else token] * (self.length - len(self._draft))
        return [Draft(self._draft[:room], 0)] if self.length and room > 0 else []

    def update(self, accepted: list[int], predictions: list[list[int]]) -> None:
        """Move the block to the end of the accepted tokens.

        Args:
            accepted: the drafted tokens that were accepted.
            predictions: the most likely tokens after the token and after each drafted token; empty if no draft was read.
        """
        # One more token is skipped, because the next call of `propose` gets it as `token`.
        self._draft = (predictions[0] if predictions else self._draft)[len(accepted) + 1 :]


class NgramDrafter:
    """Drafts from an n-gram pool, to which the text and the model's trajectories are added (arXiv:2402.02057).

    A trajectory starts at a random token of the text. Every forward pass reads the last tokens of each trajectory after the
    newest token and appends the model's prediction. A trajectory that ends like another one is replaced by a new one.

    Args:
        text: the prompt ids.
        window: number of trajectories.
        length: number of tokens of a draft; also the number of tokens at the end of a trajectory that are read.
        max_drafts: maximum number of drafts from the pool per forward pass.
        pool: the pool.
    """

    def __init__(self, text: list[int], window: int, length: int, max_drafts: int, pool: NgramPool):
        self.text, self.window, self.length, self.max_drafts, self.pool = text, window, length, max_drafts, pool
        self._trajectories: list[list[int]] = []
        self._random = Random(0)  # a fixed seed, so that equal calls draft equally
        pool.add(text)

    def propose(self, token: int, room: int) -> list[Draft]:
        """Append ``token`` to the text; return drafts of at most ``room`` tokens, the ends of the trajectories first."""
        self._append(token)
        if room <= 0:
            return []
        self._trajectories += [[self._random.choice(self.text)] for _ in range(self.window - len(self._trajectories))]
        ends = [Draft(trajectory[-self.length :], 0) for trajectory in self._trajectories]
        if any(len(end.tokens) > room for end in ends):
            ends = []  # the model may have no position beyond the last requested token
        return ends + self.pool.lookup(self.text, self.max_drafts, min(self.length, room))

    def update(self, accepted: list[int], predictions: list[list[int]]) -> None:
        """Append the accepted tokens to the text, and one predicted token to each trajectory.

        Args:
            accepted: the drafted tokens that were accepted.
            predictions: for each trajectory the most likely tokens after each token that was read; empty if none was read.
        """
        for token in accepted:
            self._append(token)
        by_end = dict[tuple[int, ...], list[int]]()
        for trajectory, predicted in zip(self._trajectories, predictions, strict=False):
            trajectory.append(predicted[-1])
            self.pool.add(trajectory, len(trajectory) - 1)
            by_end.setdefault(tuple(trajectory[-self.length :]), trajectory)
        if predictions:
            self._trajectories = list(by_end.values())

    def _append(self, token: int) -> None:
        self.text.append(token)
        self.pool.add(self.text, len(self.text) - 1)
