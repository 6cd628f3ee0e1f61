"""Tokens as they come, spelt as text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


class Spelling:
    """Text piece by piece: ids go in one at a time, characters come out once they are whole; special tokens are left out."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer"):
        self._tokenizer = tokenizer
        self._restart()

    def __call__(self, token: int) -> str:
        """What ``token`` adds to the text; bytes that make no character become U+FFFD."""
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception:  # tokenizers raises nothing narrower where bytes make no text
            self._restart()
            return "\N{REPLACEMENT CHARACTER}"

    def _restart(self) -> None:
        from tokenizers.decoders import DecodeStream  # deferred: the package is an extra

        self._stream = DecodeStream(skip_special_tokens=True)
