"""Streaming detokenizer: token ids to text, one id at a time."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


class StreamingDetokenizer:
    """A decoder of one id at a time. Characters are returned once they are complete; special tokens are omitted."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer"):
        self._tokenizer = tokenizer
        self._restart()

    def __call__(self, token: int) -> str:
        """Return the text that ``token`` completes; invalid bytes become U+FFFD."""
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception:  # tokenizers raises a bare Exception for invalid bytes
            self._restart()
            return "\N{REPLACEMENT CHARACTER}"

    def _restart(self) -> None:
        from tokenizers.decoders import DecodeStream  # deferred, because the package is an extra

        self._stream = DecodeStream(skip_special_tokens=True)
