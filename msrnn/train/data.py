"""A text as contiguous streams side by side, and which part of it is held out.

What is read at a step follows from the seed and the number of the step alone, so a run that goes on needs no other bookmark.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import Error
from ..storage.digest import digest
from .config import Recipe
from .tokenizer import Vocabulary, vocabulary


class Piece(NamedTuple):
    """What one step reads."""

    tokens: Tensor
    """``(B, T)`` int64."""
    targets: Tensor
    """``(B, T)`` int64, what is to be predicted at each; ``IGNORED`` where nothing is."""
    fresh: bool
    """Whether H begins anew."""


IGNORED = -100


@dataclass(frozen=True, eq=False)
class Streams:
    """``(n,)`` ids as B streams, each a stretch of the text that is read on from chunk to chunk; then comes the next epoch.

    Attributes:
        ids: the text.
        batch, chunk: B and T.
        carry: chunks after which H begins anew.
        seed: of where in the first chunk an epoch begins; None is always at its first token.
    """

    ids: Tensor
    batch: int
    chunk: int
    carry: int
    seed: int | None = None

    @property
    def n_chunks(self) -> int:
        """Of each stream in an epoch."""
        return (len(self.ids) - self.chunk) // (self.batch * self.chunk)

    def __getitem__(self, index: int) -> Piece:
        """What step ``index`` reads."""
        epoch, place = divmod(index, self.n_chunks)
        first = 0 if self.seed is None else random.Random(f"{self.seed} {epoch}").randrange(self.chunk)
        starts = first + self.chunk * (self.n_chunks * torch.arange(self.batch) + place)
        both = self.ids[starts[:, None] + torch.arange(self.chunk + 1)]  # (B, T + 1)
        return Piece(both[:, :-1], both[:, 1:], place % self.carry == 0)


@dataclass(frozen=True, eq=False)
class Data:
    """What a run learns from, and what it is measured on.

    Attributes:
        learnt: the streams to learn from.
        held: those of the text's end.
        vocabulary: the tokenizer.
        digest: a few letters that tell this text from others.
    """

    learnt: Streams
    held: Streams
    vocabulary: Vocabulary
    digest: str

    @classmethod
    def of(cls, text: str, recipe: Recipe, tokens: Vocabulary | None = None) -> "Data":
        """The data of a recipe; ``tokens`` is the tokenizer where there is one already.

        Raises:
            Error: a text that is too short.
        """
        text_digest = digest(text)
        cut = len(text) - int(recipe.held_out * len(text))
        tokens = tokens or vocabulary(recipe.tokenizer, text[:cut])
        ids, held, B, T = tokens.encode(text[:cut]), tokens.encode(text[cut:]), recipe.batch, recipe.chunk
        learnt = Streams(ids, B, T, recipe.carry, recipe.seed)
        rows = min(B, (len(held) - T) // T)
        if rows < 1 or not learnt.n_chunks:
            least = f"{(B + 1) * T} to learn from (batch {B}, chunk {T}) and {2 * T} held out (held_out {recipe.held_out:g})"
            raise Error(f"the text has {len(ids)} tokens and {len(held)} at its end; expected at least {least}")
        return cls(learnt, Streams(held, rows, T, recipe.carry), tokens, text_digest)
