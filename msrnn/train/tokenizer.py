"""A text as tokens: its bytes, or byte-level BPE trained on it; either as a ``tokenizer.json`` that the package ``tokenizers``
(the extra ``text``) reads.

Byte-level: every byte has a character that prints (GPT-2's table), so that nothing is unknown and nothing is lost. That is also
why a token's length in bytes is the length of its name.
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
class Vocabulary:
    """A tokenizer, as far as training needs it.

    Attributes:
        json: what goes along as ``tokenizer.json``.
        n_bytes: ``(V,)`` int64, how many bytes each token stands for.
        plain: whether each byte is the token of its own number.
    """

    json: bytes
    n_bytes: Tensor
    plain: bool

    def encode(self, text: str) -> Tensor:
        """``(T,)`` int64."""
        if self.plain:
            return torch.tensor(list(text.encode()), dtype=torch.int64)
        return torch.tensor(_package().Tokenizer.from_buffer(self.json).encode(text).ids, dtype=torch.int64)

    @classmethod
    def read(cls, content: bytes) -> "Vocabulary":
        """From a ``tokenizer.json`` that :func:`vocabulary` made.

        Raises:
            Error: something else.
        """
        try:
            vocab = parse_json(content, "tokenizer.json")["model"]["vocab"]
            names = sorted(vocab, key=vocab.__getitem__)
        except (KeyError, TypeError, AttributeError):
            raise Error("tokenizer.json is not what a training run has written, or it is damaged") from None
        return cls(content, torch.tensor([len(name) for name in names]), names == _names())


def vocabulary(kind: str, text: str) -> Vocabulary:
    """The tokenizer of a recipe; a trained one is trained on ``text``.

    Raises:
        Error: no package ``tokenizers`` to train one with.
    """
    if kind == BYTES:
        return Vocabulary.read(json.dumps(_byte_level({name: i for i, name in enumerate(_names())})).encode())
    tokenizers, size = _package(), int(kind.partition(":")[2])
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([text], trainer)
    return Vocabulary.read(trained.to_str().encode())


def _names() -> list[str]:
    """The characters that stand for the bytes: those that print for themselves, the others from 256 on
    (github.com/openai/gpt-2, ``src/encoder.py``)."""
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


def _byte_level(vocab: dict[str, int]) -> dict[str, Any]:
    """A ``tokenizer.json`` without merges: every byte stays by itself."""
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


def _package() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise Error("the package tokenizers is not installed; pip install 'msrnn[text]'") from None
    return tokenizers
