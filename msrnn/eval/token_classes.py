"""What kind of token each token of a text is: by its letters, or by the part of speech of the word that it is in."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import Error

KINDS = ("punctuation", "white space", "number", "word start", "inside word", "other")
WORD = re.compile(r"\w+?(?=n['’]t\b)|n['’]t\b|['’]\w+|\w+|[^\w\s]")
"""As the British National Corpus cuts words, whose tags (C5) the tagger gives: captain 's, did n't."""
PLAIN = str.maketrans("’‘“”", "''\"\"")


def kinds(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """One of ``KINDS`` for each token, by the characters that it stands for.

    Punctuation has no letter and no digit; a number has digits and no letter; of tokens with letters, a word starts where no
    letter, digit or apostrophe stands before. Tokens without characters of their own (marks, bytes of a character) are other.
    """
    return [_kind(text, *span) for span in spans]


def _kind(text: str, begin: int, end: int) -> str:
    piece = text[begin:end]
    if not piece:
        return "other"
    if not (word := piece.strip()):
        return "white space"
    if any(c.isalpha() for c in word):
        before = text[begin - 1] if begin and word[0] == piece[0] else " "
        return "inside word" if before.isalnum() or before in "'’" else "word start"
    if any(c.isdigit() for c in word):
        return "number"
    return "punctuation" if all(unicodedata.category(c)[0] in "PS" for c in word if not c.isspace()) else "other"


def parts_of_speech(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """For each token the part of speech of the word that it ends in, by HanTa's English model (the extra ``eval``); "–" where
    there is none.

    Raises:
        Error: the package is not there.
    """
    if not spans:
        return []
    low, high = spans[0][0], spans[-1][1]
    tags: dict[int, str] = {}
    for sentence in re.finditer(r"[^.!?]*(?:[.!?]+|$)", text[low:high]):
        words = list(WORD.finditer(sentence.group()))
        if words:
            tagged = _tagger().tag_sent([word.group().translate(PLAIN) for word in words])
            for word, (_, _, tag) in zip(words, tagged, strict=True):
                where = range(low + sentence.start() + word.start(), low + sentence.start() + word.end())
                tags |= dict.fromkeys(where, tag)
    return [tags.get(end - 1, "–") if end > begin else "–" for begin, end in spans]


@cache
def _tagger() -> Any:
    try:
        from HanTa import HanoverTagger
    except ImportError:
        raise Error("the package HanTa is not installed; pip install 'msrnn[eval]'") from None
    # It unpickles its model, which is as much to be trusted as the package it lies in; by a bare name it would take one that
    # lies where the command was called.
    return HanoverTagger.HanoverTagger(str(Path(HanoverTagger.__file__).with_name("morphmodel_en.pgz")))


def check_tagger() -> None:
    """Refuse, before any work, to tag words without the tagger.

    Raises:
        Error: the package is not there.
    """
    _tagger()
