"""A byte-level BPE trained on the texts, and GGUF files that contain it."""

import json

import pytest
import tokenizers
from support.gguf_files import write
from support.tokenizer_texts import TEXTS


@pytest.fixture(scope="module")
def trained():
    """Vocabulary and merges trained on the texts, and one word that no merges produce."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator([text[:30_000] for text in TEXTS.values()], trainer)
    model = json.loads(learner.to_str())["model"]
    tokens = ["<s>", "</s>", *sorted(model["vocab"], key=model["vocab"].get), "ĠArgumentParser", "<tool>"]
    return tokens, [" ".join(merge) for merge in model["merges"]]


@pytest.fixture
def write_tokenizer(tmp_path, trained):
    def make(**changes):
        tokens, merges = trained
        metadata = {
            "model": "gpt2",
            "pre": "gpt-2",
            "tokens": tokens,
            "token_type": [3, 3, *[1] * (len(tokens) - 3), 4],
            "merges": merges,
            "bos_token_id": 0,
            "eos_token_id": 1,
        } | changes
        return write(tmp_path / "byte.gguf", {f"tokenizer.ggml.{key}": x for key, x in metadata.items() if x is not None}, {})

    return make
