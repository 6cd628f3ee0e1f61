"""Classes of tokens: by their characters, or by the part of speech of their word."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import missing_package

TOKEN_CLASSES = ("punctuation", "white space", "number", "word start", "inside word", "other")
WORD = re.compile(r"\w+?(?=n['’]t\b)|n['’]t\b|['’]\w+|\w+|[^\w\s]")
"""Words as the British National Corpus separates them, for its tags (C5): captain 's, did n't."""
ASCII_QUOTES = str.maketrans("’‘“”", "''\"\"")


def character_classes(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """Return one of ``TOKEN_CLASSES`` for each token, given its span of characters in ``text``.

    Punctuation has no letter and no digit. A number has digits and no letter. A token with letters starts a word if no letter,
    digit or apostrophe precedes it. Tokens with an empty span (special tokens, single bytes of a character) are other.
    """
    return [_character_class(text, *span) for span in spans]


def _character_class(text: str, begin: int, end: int) -> str:
    token = text[begin:end]
    if not token:
        return "other"
    if not (word := token.strip()):
        return "white space"
    if any(c.isalpha() for c in word):
        before = text[begin - 1] if begin and word[0] == token[0] else " "
        return "inside word" if before.isalnum() or before in "'’" else "word start"
    if any(c.isdigit() for c in word):
        return "number"
    return "punctuation" if all(unicodedata.category(c)[0] in "PS" for c in word if not c.isspace()) else "other"


def parts_of_speech(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """Return the part of speech of the word in which each token ends, by HanTa's English model (extra ``eval``).

    Tokens outside words are "–".

    Raises:
        Error: the package HanTa is missing.
    """
    if not spans:
        return []
    low, high = spans[0][0], spans[-1][1]
    tags: dict[int, str] = {}
    for sentence in re.finditer(r"[^.!?]*(?:[.!?]+|$)", text[low:high]):
        words = list(WORD.finditer(sentence.group()))
        if words:
            tagged = _tagger().tag_sent([word.group().translate(ASCII_QUOTES) for word in words])
            for word, (_, _, tag) in zip(words, tagged, strict=True):
                characters = range(low + sentence.start() + word.start(), low + sentence.start() + word.end())
                tags |= dict.fromkeys(characters, tag)
    return [tags.get(end - 1, "–") if end > begin else "–" for begin, end in spans]


@cache
def _tagger() -> Any:
    try:
        from HanTa import HanoverTagger
    except ImportError:
        raise missing_package("HanTa", "eval") from None
    # HanTa unpickles its model. The full path prevents HanTa from loading a file of the same name in the current folder.
    return HanoverTagger.HanoverTagger(str(Path(HanoverTagger.__file__).with_name("morphmodel_en.pgz")))


def check_tagger() -> None:
    """Check, before any work, that the tagger is installed.

    Raises:
        Error: the package HanTa is missing.
    """
    _tagger()
