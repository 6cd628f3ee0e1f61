"""The end of a row: an eos token, or a stop string in its text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, is_int
from ..text.stop_strings import StreamedText, as_stop_strings, context_tokens
from .prompt import Start
from .sampling import as_python_number

if TYPE_CHECKING:
    import tokenizers


class Endings:
    """What ends a row, and which rows have ended.

    Args:
        cell: the cell.
        eos_token_id, stop, tokenizer: see :func:`msrnn.generate`.

    Attributes:
        eos: ``(n,)`` int64.

    Raises:
        Error: an id is not an int or is outside the vocabulary, ``stop`` is not a string or a list of strings, or there is no
            tokenizer for it.
    """

    def __init__(
        self,
        cell: Cell,
        eos_token_id: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
        tokenizer: "tokenizers.Tokenizer | None" = None,
    ):
        self.eos, self._stop = _eos_ids(cell, eos_token_id), as_stop_strings(stop)
        self._eos = frozenset(self.eos.tolist())
        self._tokenizer = _find_tokenizer(cell, tokenizer) if self._stop else None
        self._limit = context_tokens(self._stop) if self._stop else 1
        self._recent, self._texts = list[list[int]](), list[StreamedText]()

    def start(self, start: Start) -> list[int | None]:
        """Begin a call; return for each row its last token if it has ended in an earlier call, otherwise None."""
        self._recent = [row[-self._limit :] for row in start.context]
        ended = [start.ended and bool(row) and row[-1] in self._eos for row in self._recent]
        if self._tokenizer is not None:
            for b, row in enumerate(self._recent):
                known = row[:-1] if start.ended else row
                self._texts.append(StreamedText(self._tokenizer, self._stop, known))
                for token in row[len(known) :]:
                    self._texts[b](token)
                ended[b] |= self._texts[b].stopped
        return [row[-1] if done else None for row, done in zip(self._recent, ended, strict=True)]

    def ends(self, b: int, token: int) -> bool:
        """Append a token to row b; return True if it ends the row."""
        self._recent[b] = [*self._recent[b], token][-self._limit :]
        if self._texts:
            self._texts[b](token)
        return token in self._eos or (bool(self._texts) and self._texts[b].stopped)

    def update(self, token: Tensor, finished: Tensor | None) -> Tensor | None:
        """Append ``token (B,)`` to the rows that are not ``finished``; return the finished rows, None if there are none."""
        if self._texts:
            before = [False] * len(token) if finished is None else finished.tolist()
            ended = [done or self.ends(b, i) for b, (i, done) in enumerate(zip(token.tolist(), before, strict=True))]
            return torch.tensor(ended, device=token.device) if any(ended) else None
        if not self._eos:
            return None
        is_eos = torch.isin(token, self.eos.to(token.device))
        if finished is not None:
            return finished | is_eos
        return is_eos if is_eos.any() else None

    def is_eos(self, token: int) -> bool:
        """Return True for an eos id."""
        return token in self._eos

    def recent_tokens(self, token: Tensor | None, device: torch.device) -> Tensor | None:
        """Return ``recent_tokens`` of the state that has read all appended tokens; None if no row can end.

        Args:
            token: ``(B,)``, the last argument of :meth:`update`; None after :meth:`ends`.
            device: the device of the result.
        """
        if not self._eos and not self._texts:
            return None
        if token is not None and not self._texts:
            return token[:, None]
        n = max(1, *map(len, self._recent))
        return torch.tensor([[-1] * (n - len(row)) + row for row in self._recent], device=device)


def _eos_ids(cell: Cell, eos_token_id: Any) -> Tensor:
    """Return ``eos_token_id`` as ``(n,)`` int64."""
    if isinstance(eos_token_id, Tensor):
        eos_token_id = eos_token_id.flatten().tolist()
    values = [] if eos_token_id is None else list(eos_token_id) if isinstance(eos_token_id, Sequence) else [eos_token_id]
    ids = [as_python_number(value) for value in values]
    for i in ids:
        if not is_int(i) or not 0 <= i < cell.config.vocab_size:
            raise Error(f"eos_token_id is {i!r}; expected ids below {cell.config.vocab_size}, the vocabulary size")
    return torch.tensor(ids, dtype=torch.int64)


def _find_tokenizer(cell: Cell, tokenizer: "tokenizers.Tokenizer | None") -> "tokenizers.Tokenizer":
    """Return ``tokenizer``, or the one of the model's ``tokenizer.json``."""
    from tokenizers import Tokenizer  # deferred, because only stop strings need the package

    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    file = cell.extra_files.get("tokenizer.json")
    if tokenizer is not None or file is None:
        raise Error(
            f"tokenizer is {tokenizer!r:.60}; expected the tokenizers.Tokenizer of the model for stop (converters.tokenizer)"
        )
    try:
        return Tokenizer.from_buffer(file)
    except Exception as error:  # tokenizers raises a bare Exception for a damaged file
        raise Error(f"the tokenizer.json of the model is damaged ({error}); pass tokenizer=…") from None
