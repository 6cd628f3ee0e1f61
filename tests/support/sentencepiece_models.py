"""Tiny SentencePiece models like LLaMA's, trained by the sentencepiece package."""

import io
import random

import sentencepiece

TEXTS = [
    "the sea was calm that morning, and the boat",
    "über die See; naïve café 123 4567",
    "def f(x):\n\treturn x + 1",
    "世界 hello 世",
]
LLAMA = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}


def trained(path, **more):
    """Train a model like LLaMA's on a few words; return its processor."""
    rng, written = random.Random(0), io.BytesIO()
    words = " ".join(TEXTS).split()
    texts = [" ".join(rng.choices(words, k=8)) for _ in range(200)]
    settings = {**LLAMA, "vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2, **more}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=written, **settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
