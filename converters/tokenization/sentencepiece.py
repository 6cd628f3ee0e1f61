"""Read SentencePiece's file ``tokenizer.model``, the tokenizer of LLaMA 1 and 2 and of Mistral up to v0.3.

The file is a protobuf message (github.com/google/sentencepiece, ``sentencepiece_model.proto``). The few relevant fields are
translated to the metadata keys of a GGUF file with the same tokenizer.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn import Error
from msrnn.storage.files import read_bytes

from .bpe import USER_DEFINED, build_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.model"
# Field numbers of the protobuf messages, and the value of MODEL for BPE.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, PIECE_TYPE = 1, 2, 3
MODEL, BOS_ID, EOS_ID, BPE = 3, 41, 42, 2
CHARACTERS, DUMMY_PREFIX, REMOVE_EXTRA_SPACES = 2, 3, 4


def read_tokenizer(path: Path) -> "Tokenizer":
    """Return the tokenizer of the file ``path``; raises as :func:`parse_tokenizer`, or if the file cannot be read."""
    return parse_tokenizer(read_bytes(path), path)


def parse_tokenizer(data: bytes, path: Path) -> "Tokenizer":
    """Return the tokenizer of the message ``data``. It adds the begin token to every text, as LLaMA and Mistral do.

    Raises:
        Error: another format (Llama 3 has another one in a file of this name), a model that is no BPE, or a normalisation of
            texts; ``path`` is named in the message.
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
        raise Error(f"{path} normalises texts before it splits them; expected a model without normalisation, as LLaMA's")
    prefix = bool(normalizer.get(DUMMY_PREFIX, 1))
    if prefix and USER_DEFINED in types:  # tokenizers would add a space after each of these tokens too
        raise Error(f"{path} has user-defined tokens and a space before every text; expected only one of the two")
    metadata: dict[str, Any] = {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": types,
        "add_space_prefix": prefix,
        "bos_token_id": trainer.get(BOS_ID, 1),
        "eos_token_id": trainer.get(EOS_ID, 2),
    }
    return build_tokenizer({f"tokenizer.ggml.{name}": value for name, value in metadata.items()}, path)


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
