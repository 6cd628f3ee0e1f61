"""Text that is generated token by token, up to the first stop string."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import Error
from .detokenizer import CONTEXT_TOKENS, StreamingDetokenizer

if TYPE_CHECKING:
    import tokenizers


def as_stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return ``stop`` as a tuple of strings.

    Raises:
        Error: ``stop`` is not a non-empty str or a sequence of them.
    """
    strings = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) and s for s in strings):
        raise Error(f"stop is {stop!r:.60}; expected a string or a list of strings, none of them empty")
    return tuple(strings)


def context_tokens(stop: Sequence[str]) -> int:
    """Return the number of tokens that are enough to find the beginning of a stop string: a token has at least one byte."""
    return max([CONTEXT_TOKENS, *(len(s.encode(errors="replace")) for s in stop)])


class StreamedText:
    """The text of one sequence, token by token, up to the first stop string.

    A stop string may begin in the text of ``context``, and has to end in a later token. Special tokens are part of the text
    that is searched, and are omitted from the text that is returned. Text that may begin a stop string is held back.

    Args:
        tokenizer: the tokenizer.
        stop: stop strings; the text ends before the one that begins first.
        context: the ids before the first one.
        starts_text: decode the tokens as a text of their own: decoders remove a space at the start of a text.

    Attributes:
        stopped: True after the token that completes a stop string.
    """

    def __init__(
        self,
        tokenizer: "tokenizers.Tokenizer",
        stop: Sequence[str] = (),
        context: Sequence[int] = (),
        starts_text: bool = False,
    ):
        self.stopped, self._stop, self._tokenizer = False, stop, tokenizer
        self._detokenize = StreamingDetokenizer(tokenizer, context)
        self._alone = StreamingDetokenizer(tokenizer) if starts_text else None  # until the first text
        self._special = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        before = tokenizer.decode(context[-context_tokens(stop) :], skip_special_tokens=False) if stop else ""
        self._held = before[self._first_possible_stop(before) :]
        self._shown = [False] * len(self._held)  # for each held character: is it returned if no stop string begins with it?

    def __call__(self, token: int) -> str:
        """Return the text that ``token`` completes, without what may belong to a stop string."""
        if self.stopped:
            return ""
        start = len(self._held)
        alone, text = self._alone(token) if self._alone else "", self._detokenize(token)
        if self._alone and text:
            self._alone = None
            hidden = len(text) - len(alone) if text.endswith(alone) else 0
            self._hold(text[:hidden], shown=False)
            text = text[hidden:]
        self._hold(text, shown=True)
        if not self._stop:
            return self._release(len(self._held))
        if token in self._special:
            self._hold(self._detokenize.flush(), shown=True)
            self._hold(self._special[token], shown=False)
        pending = self._detokenize.pending
        text = self._held + pending
        found = [at for s in self._stop if (at := text.find(s, max(0, start - len(s) + 1))) >= 0]
        if found:
            self.stopped = True
            self._hold(pending, shown=True)
            return self._release(min(found))
        return self._release(min(len(self._held), self._first_possible_stop(text)))

    def flush(self) -> str:
        """Return the text that is held back, because no further token follows; nothing after a stop string."""
        if self.stopped:
            return ""
        self._hold(self._detokenize.flush(), shown=True)
        return self._release(len(self._held))

    def _hold(self, text: str, shown: bool) -> None:
        self._held += text
        self._shown += [shown] * len(text)

    def _release(self, end: int) -> str:
        """Remove the first ``end`` held characters, and return those that are shown."""
        text = "".join(c for c, shown in zip(self._held[:end], self._shown, strict=False) if shown)
        self._held, self._shown = self._held[end:], self._shown[end:]
        return text

    def _first_possible_stop(self, text: str) -> int:
        """Return the first index at which the rest of ``text`` is the beginning of a stop string."""
        longest = max(map(len, self._stop), default=1)
        starts = range(max(0, len(text) - longest + 1), len(text))
        return next((i for i in starts if any(s.startswith(text[i:]) for s in self._stop)), len(text))
