"""SentencePiece's own file, ``tokenizer.model``, which lies beside Meta's and Mistral's models up to LLaMA 2 and v0.3.

It is a protobuf message (github.com/google/sentencepiece, ``sentencepiece_model.proto``); the few fields that matter are read
here into the metadata that a GGUF has of the same tokenizer, and built as from there.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn import Error
from msrnn.storage.files import read_bytes

from ..gguf.header import File
from ..gguf.tokenizer import USER_DEFINED, rebuild

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, KIND = 1, 2, 3
MODEL, BOS_ID, EOS_ID, BPE = 3, 41, 42, 2
CHARACTERS, DUMMY_PREFIX, FEWER_SPACES = 2, 3, 4


def tokenizer(path: Path, data: bytes | None = None) -> "Tokenizer":
    """The tokenizer in ``path`` (or in ``data``, its bytes), which puts the begin token before a text, as LLaMA and Mistral do.

    Raises:
        Error: not SentencePiece's format (Llama 3's file of the same name is not), no BPE, a text that is normalised first.
    """
    try:
        data = read_bytes(path) if data is None else data
        fields = [(n, value) for n, value in _fields(data) if n in (PIECES, TRAINER, NORMALIZER)]
        pieces = [dict(_fields(value)) for n, value in fields if n == PIECES]
        trainer, normalizer = (dict(_fields(b"".join(v for n, v in fields if n == kind))) for kind in (TRAINER, NORMALIZER))
        tokens = [piece[PIECE].decode() for piece in pieces]
        scores = [struct.unpack("<f", piece.get(SCORE, bytes(4)))[0] for piece in pieces]
    except Error:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
        raise Error(f"{path} is not a SentencePiece model, or is damaged; expected one (or tokenizer.json beside it)") from None
    kinds = [piece.get(KIND, 1) for piece in pieces]
    if not tokens or trainer.get(MODEL, 1) != BPE:
        raise Error(f"{path} is a SentencePiece model of kind {trainer.get(MODEL, 1)}; expected {BPE}, BPE")
    if normalizer.get(CHARACTERS) or normalizer.get(FEWER_SPACES, 1):
        raise Error(f"{path} normalises a text before it is split; expected one that takes it as it is, as LLaMA's does")
    prefix = bool(normalizer.get(DUMMY_PREFIX, 1))
    if prefix and USER_DEFINED in kinds:  # after one of them tokenizers would put a space too
        raise Error(f"{path} has user-defined tokens beside a space in front of a text; expected one or the other")
    facts: dict[str, Any] = {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": kinds,
        "add_space_prefix": prefix,
    }
    facts |= {"bos_token_id": trainer.get(BOS_ID, 1), "eos_token_id": trainer.get(EOS_ID, 2)}
    return rebuild(File(path, len(data), {f"tokenizer.ggml.{name}": value for name, value in facts.items()}, {}))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: number, and an int (of a varint) or the bytes (of anything else)."""
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
    """Seven bits a byte, the lowest first; and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if not byte & 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than ten bytes")
