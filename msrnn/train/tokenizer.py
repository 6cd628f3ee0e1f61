"""Tokenizers for training: bytes, or a byte-level BPE trained on the text.

Both are stored as a ``tokenizer.json`` that the package ``tokenizers`` reads. Every byte is represented by a
printable character (the table of GPT-2). Every text can therefore be encoded without loss, and the length of a token in bytes
is the length of its name.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import Error
from ..storage.files import parse_json
from .config import BYTES


@dataclass(frozen=True, eq=False)
class TrainTokenizer:
    """A tokenizer, reduced to what training needs.

    Attributes:
        json: content of ``tokenizer.json``.
        n_bytes: ``(V,)`` int64, length of each token in bytes.
        is_bytes: True if the token ids are the byte values.
    """

    json: bytes
    n_bytes: Tensor
    is_bytes: bool

    def encode(self, text: str) -> Tensor:
        """Return the token ids ``(T,)`` int64 of ``text``."""
        if self.is_bytes:
            return torch.tensor(list(text.encode()), dtype=torch.int64)
        from tokenizers import Tokenizer  # deferred, because bytes do not need the package

        return torch.tensor(Tokenizer.from_buffer(self.json).encode(text).ids, dtype=torch.int64)

    @classmethod
    def read(cls, content: bytes) -> "TrainTokenizer":
        """Parse a ``tokenizer.json`` that :func:`build_tokenizer` made.

        Raises:
            Error: the content is something else.
        """
        try:
            vocab = parse_json(content, "tokenizer.json")["model"]["vocab"]
            names = sorted(vocab, key=vocab.__getitem__)
        except (KeyError, TypeError, AttributeError):
            raise Error("tokenizer.json is damaged; expected a file that `msrnn train` has written") from None
        return cls(content, torch.tensor([len(name) for name in names]), names == _byte_names())


def build_tokenizer(kind: str, text: str) -> TrainTokenizer:
    """Return the tokenizer ``kind`` (``bytes`` or ``bpe:SIZE``); a BPE is trained on ``text``."""
    if kind == BYTES:
        return TrainTokenizer.read(json.dumps(_byte_tokenizer({name: i for i, name in enumerate(_byte_names())})).encode())
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    size, alphabet = int(kind.partition(":")[2]), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return TrainTokenizer.read(tokenizer.to_str().encode())


def _byte_names() -> list[str]:
    """Return the character of each byte: printable bytes are themselves, the others are characters from 256 on
    (github.com/openai/gpt-2, ``src/encoder.py``)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _byte_tokenizer(vocab: dict[str, int]) -> dict[str, Any]:
    """Return a ``tokenizer.json`` without merges: every byte is one token."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
