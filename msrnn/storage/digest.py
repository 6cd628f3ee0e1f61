"""Digests of text."""

import hashlib

from ..errors import Error


def digest(text: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of ``text``.

    Raises:
        Error: the text contains lone surrogates, which UTF-8 cannot encode.
    """
    try:
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    except UnicodeEncodeError as error:
        raise Error(f"the text is not valid Unicode ({error.reason})") from None
