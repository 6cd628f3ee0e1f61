"""A text as parallel contiguous streams, split into training and validation data.

The tokens of a step follow from the seed and the step number alone, so a resumed run needs no other position in the text.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import Error
from ..storage.digest import digest
from .config import TrainConfig
from .tokenizer import TrainTokenizer, build_tokenizer

IGNORED = -100
"""Target of positions that are not predicted (PyTorch's ``ignore_index``)."""


class TrainBatch(NamedTuple):
    """Input of one step: ``tokens (B, T)`` int64, ``targets (B, T)`` int64 (or ``IGNORED``), and whether H is reset before."""

    tokens: Tensor
    targets: Tensor
    reset_state: bool


@dataclass(frozen=True, eq=False)
class Streams:
    """Token ids ``(n,)`` as B contiguous streams that are read chunk by chunk. After the last chunk the next epoch starts.

    Attributes:
        ids: the token ids of the text.
        batch_size, chunk_length: B and T.
        chunks_per_state: number of chunks after which H is reset.
        seed: seed of the offset at which an epoch starts, within the first chunk; None always starts at the first token.
        bos: ids that a state reads before its first chunk; they lengthen this chunk.
        device: of the batches.
    """

    ids: Tensor
    batch_size: int
    chunk_length: int
    chunks_per_state: int
    seed: int | None = None
    bos: Sequence[int] = ()
    device: torch.device | None = None

    @property
    def n_chunks(self) -> int:
        """Number of chunks per stream and epoch."""
        return (len(self.ids) - self.chunk_length) // (self.batch_size * self.chunk_length)

    def __getitem__(self, index: int) -> TrainBatch:
        """Return the batch of step ``index``."""
        epoch, chunk = divmod(index, self.n_chunks)
        offset = 0 if self.seed is None else random.Random(f"{self.seed} {epoch}").randrange(self.chunk_length)
        starts = offset + self.chunk_length * (self.n_chunks * torch.arange(self.batch_size) + chunk)
        ids = self.ids[starts[:, None] + torch.arange(self.chunk_length + 1)]  # (B, T + 1)
        reset_state = chunk % self.chunks_per_state == 0
        targets = ids[:, 1:]
        if reset_state and self.bos:
            bos = torch.tensor(self.bos).expand(self.batch_size, -1)
            targets = torch.cat((torch.full_like(bos[:, 1:], IGNORED), ids), dim=1)  # the last of them predicts the first token
            ids = torch.cat((bos, ids), dim=1)
        return TrainBatch(ids[:, :-1].to(self.device), targets.to(self.device), reset_state)


@dataclass(frozen=True, eq=False)
class TrainData:
    """Training and validation split of a text.

    Attributes:
        train, val: streams of the two splits; ``val`` is the end of the text.
        tokenizer: the tokenizer.
        digest: digest of the text.
    """

    train: Streams
    val: Streams
    tokenizer: TrainTokenizer
    digest: str

    @classmethod
    def of(cls, text: str, config: TrainConfig, tokenizer: TrainTokenizer | None = None) -> "TrainData":
        """Split and encode ``text``; ``tokenizer`` is built from the training split unless it is given.

        Raises:
            Error: the text is too short or not valid Unicode.
        """
        text_digest = digest(text)
        cut = len(text) - int(config.val_fraction * len(text))
        tokenizer = tokenizer or build_tokenizer(config.tokenizer, text[:cut])
        train_ids, val_ids = tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:])
        B, T = config.batch_size, config.chunk_length
        train = Streams(train_ids, B, T, config.chunks_per_state, config.seed)
        val_batch_size = min(B, (len(val_ids) - T) // T)
        if val_batch_size < 1 or not train.n_chunks:
            raise short_text(len(train_ids), len(val_ids), B, T, config.val_fraction)
        return cls(train, Streams(val_ids, val_batch_size, T, config.chunks_per_state), tokenizer, text_digest)


def short_text(n_training: int, n_held_out: int, batch_size: int, chunk_length: int, val_fraction: float) -> Error:
    """Return the error for a text with too few tokens in one of its parts; the last ``val_fraction`` of it is held out."""
    training, held_out = (batch_size + 1) * chunk_length, 2 * chunk_length
    length = ceil(min(1e15, max(training / (1 - val_fraction), held_out / val_fraction)))  # not inf
    found = f"the text has {n_training} tokens for training and {n_held_out} held out, its last {100 * val_fraction:.3g}%"
    expected = f"at least {training} and {held_out} (batch_size {batch_size}, chunk_length {chunk_length})"
    return Error(f"{found}; expected {expected}: a text of about {length:,} tokens, or a smaller chunk_length")
