"""Byte-level BPE from a list of byte strings in the order of their merges, as tiktoken and Mistral store it."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from msrnn import Error

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKEN_BYTES = 1000
"""Real tokens have at most some hundreds, in runs of spaces."""


def build_tokenizer(ranks: Sequence[bytes], first_id: int, special: Mapping[str, int], words: str, path: Path) -> "Tokenizer":
    """Return byte-level BPE.

    Args:
        ranks: tokens as bytes; of all neighbours, those that join to the earliest token are merged first, and a
            word that is a token is not split.
        first_id: the id of the first of ``ranks``.
        special: ids of the special tokens, which are matched in the text before it is split.
        words: the regular expression that splits a text into words.
        path: the file, named in error messages.

    Raises:
        Error: a byte string is empty, too long or occurs twice, or one of the 256 bytes is missing.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    order = {token: rank for rank, token in enumerate(ranks)}
    if len(order) != len(ranks) or not all(bytes([n]) in order for n in range(256)):
        raise Error(f"{path}: {len(order)} of {len(ranks)} tokens differ; expected each token once, and all 256 bytes")
    if not all(0 < len(token) <= MAX_TOKEN_BYTES for token in order):
        raise Error(f"{path}: a token is empty or long; expected 1 to {MAX_TOKEN_BYTES} bytes")
    letters = _letters()
    text = {token: "".join(letters[byte] for byte in token) for token in order}
    merges = []
    for token in ranks:
        pairs = ((token[:n], token[n:]) for n in range(1, len(token)))
        known = [(order[a], order[b], a, b) for a, b in pairs if a in order and b in order]
        merges += [(text[a], text[b]) for *_, a, b in sorted(known)]
    vocab = {text[token]: first_id + rank for token, rank in order.items()}
    if vocab.keys() & special.keys() or len({*vocab.values(), *special.values()}) != len(vocab) + len(special):
        raise Error(f"{path}: special tokens and other tokens share a text or an id; expected distinct ones")
    result = Tokenizer(models.BPE(vocab=vocab | dict(special), merges=merges, ignore_merges=True))
    result.pre_tokenizer = Sequence([Split(Regex(words), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    result.decoder = decoders.ByteLevel()
    by_id = sorted(special, key=special.__getitem__)
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in by_id])
    return result


def _letters() -> list[str]:
    """Return the printable character of each byte, as GPT-2 writes it: bytes without one get those from 256 on."""
    printable = [*chain(range(33, 127), range(161, 173), range(174, 256))]
    others = iter(range(256, 512))
    return [chr(n) if n in printable else chr(next(others)) for n in range(256)]
