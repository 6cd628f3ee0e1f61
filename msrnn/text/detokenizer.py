"""Streaming detokenizer: token ids to text, one id at a time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

CONTEXT_TOKENS = 64
"""Number of earlier tokens that are decoded again with a new one, at most."""
INVALID = "\N{REPLACEMENT CHARACTER}"


class StreamingDetokenizer:
    """A decoder of one id at a time. Special tokens are omitted.

    The joined texts, with :meth:`flush` at the end, are ``decode(context + ids)`` without ``decode(context)``. Text that a
    later token can still change is held back: an incomplete character, and a run of byte tokens such as ``<0x0A>``, of which
    ``tokenizers`` decodes either all bytes or none.

    Args:
        tokenizer: the tokenizer.
        context: the ids before the first one. At the start of a text, decoders remove a space.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer", context: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._window = [i for i in context[-CONTEXT_TOKENS:] if self._has_text(i)]  # decoded again at each call
        self._returned = self._decode()  # the part of the window's text that is not returned any more

    def __call__(self, token: int) -> str:
        """Return the text that ``token`` completes; invalid bytes become U+FFFD."""
        if not self._has_text(token):
            return ""
        self._window.append(token)
        if self._is_byte(token):
            return ""
        text = self._decode()
        complete = text.removesuffix(INVALID)
        new = self._return(complete)
        if complete == text:
            self._window, self._returned = [token], self._tokenizer.decode([token])
        elif len(self._window) > CONTEXT_TOKENS:  # invalid bytes only; a character has at most 4 of them
            self._window = self._window[-4:]
            self._returned = self._decode().removesuffix(INVALID)
        return new

    @property
    def pending(self) -> str:
        """The text that is held back, as it is if no further token follows."""
        text = self._decode()
        return text[self._common(text) :]

    def flush(self) -> str:
        """Return the text that is held back, because no further token follows."""
        return self._return(self._decode())

    def _return(self, text: str) -> str:
        new = text[self._common(text) :]
        if new:  # otherwise the context ends with an incomplete character, which `text` does not contain
            self._returned = text
        return new

    def _common(self, text: str) -> int:
        """Return the length of the common prefix of ``text`` and the text that was returned."""
        pairs = zip(self._returned, text, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self._returned), len(text)))

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window)

    def _has_text(self, token: int) -> bool:
        return token not in self._special and self._tokenizer.id_to_token(token) is not None

    def _is_byte(self, token: int) -> bool:
        """Return True for ``<0x0A>`` and the like, if the decoder replaces them by bytes."""
        name = self._tokenizer.id_to_token(token) or ""
        return len(name) == 6 and name.startswith("<0x") and self._tokenizer.decode([token]) != name
