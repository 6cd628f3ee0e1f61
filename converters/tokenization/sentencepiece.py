"""Read SentencePiece's file ``tokenizer.model``, the tokenizer of LLaMA 1 and 2 and of Mistral up to v0.3.

The file is a protobuf message (github.com/google/sentencepiece, ``sentencepiece_model.proto``). The few relevant fields are
translated to the metadata keys of a GGUF file with the same tokenizer.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn import Error

from .bpe import UNKNOWN, USER_DEFINED, build_tokenizer
from .llama import set_pipeline

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.model"
# Field numbers of the protobuf messages, and the value of MODEL for BPE.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, PIECE_TYPE = 1, 2, 3
MODEL, BOS_ID, EOS_ID, BPE = 3, 41, 42, 2
CHARACTERS, DUMMY_PREFIX, REMOVE_EXTRA_SPACES = 2, 3, 4


def parse_tokenizer(data: bytes, path: Path, prepend_scheme: str | None = None) -> tuple["Tokenizer", dict[str, str]]:
    """Return the tokenizer of the message ``data``, and its special tokens by transformers' names.

    Args:
        data: the content of the file.
        path: the file, named in error messages.
        prepend_scheme: where a space is put before a text (:func:`.llama.prepend_scheme`); None is SentencePiece's rule,
            which keeps the spaces of the text and puts one before each part of it, if the file requests it.

    Raises:
        Error: another format, a model that is no BPE, or a normalization of texts.
    """
    try:
        fields = [(n, value) for n, value in _fields(data) if n in (PIECES, TRAINER, NORMALIZER)]
        pieces = [dict(_fields(value)) for n, value in fields if n == PIECES]
        trainer, normalizer = (dict(_fields(b"".join(v for n, v in fields if n == part))) for part in (TRAINER, NORMALIZER))
        tokens = [piece[PIECE].decode() for piece in pieces]
        scores = [struct.unpack("<f", piece.get(SCORE, bytes(4)))[0] for piece in pieces]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
        raise Error(f"{path} is not a SentencePiece model, or is damaged; expected one, or a tokenizer.json") from None
    types = [piece.get(PIECE_TYPE, 1) for piece in pieces]
    if not tokens or trainer.get(MODEL, 1) != BPE:
        raise Error(f"{path} is a SentencePiece model of kind {trainer.get(MODEL, 1)}; expected {BPE}, BPE")
    if normalizer.get(CHARACTERS) or normalizer.get(REMOVE_EXTRA_SPACES, 1):
        raise Error(f"{path} normalizes texts before it splits them; expected a model without normalization, as LLaMA's")
    prefix = bool(normalizer.get(DUMMY_PREFIX, 1)) if prepend_scheme is None else prepend_scheme == "always"
    if prefix and USER_DEFINED in types:  # tokenizers would add a space after each of these tokens too
        raise Error(f"{path} has user-defined tokens and a space before every text; expected only one of the two")
    metadata: dict[str, Any] = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types}
    metadata |= {"add_space_prefix": prefix, "add_bos_token": False}
    result = build_tokenizer({f"tokenizer.ggml.{name}": value for name, value in metadata.items()}, path)
    if prepend_scheme is not None:
        set_pipeline(result, prepend_scheme)
    ids = {"bos_token": trainer.get(BOS_ID, 1), "eos_token": trainer.get(EOS_ID, 2)}
    ids["unk_token"] = types.index(UNKNOWN) if UNKNOWN in types else len(tokens)
    return result, {name: tokens[n] for name, n in ids.items() if n < len(tokens)}  # an id of -1 is a large number here


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message: the number, and an int (for a varint) or the bytes (for any other type)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}[key & 7]
        if at + length > len(data):
            raise ValueError("ends inside a field")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at byte ``at`` (seven bits per byte, lowest first) and the byte after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if not byte & 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than ten bytes")
