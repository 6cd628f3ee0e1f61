"""Tokenizers of GGUF files as Gemma, Qwen and SmolLM3 have them, compared with SentencePiece and transformers."""

import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from support.gguf_files import write
from support.tokenizer_texts import TEXTS
from transformers import AutoTokenizer, Qwen2Tokenizer

from converters.gguf.config import END_OF_TURN
from converters.gguf.reader import read_config, read_tokenizer

RUNS = [*("\n" * n for n in range(1, 5)), *("\u2581" * n for n in range(2, 7)), "\t", "\t\t", "<h1>"]
"""Tokens that Gemma's model defines itself: they are not merged with other pieces, and the longest one is taken."""
GEMMA = {"general.architecture": "gemma3", "tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": False}


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    """A SentencePiece model with Gemma's settings."""
    target = tmp_path_factory.mktemp("spm") / "m"
    lines = [line for text in TEXTS.values() for line in text[:30_000].splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        **{"sentence_iterator": iter(lines), "model_prefix": str(target), "model_type": "bpe", "vocab_size": 900},
        **{"byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True, "add_dummy_prefix": False},
        **{"remove_extra_whitespaces": False, "normalization_rule_name": "identity", "character_coverage": 0.99},
        **{"user_defined_symbols": RUNS, "control_symbols": ["<end_of_turn>"], "minloglevel": 2},
    )
    return sentencepiece.SentencePieceProcessor(model_file=f"{target}.model")


def gemma_metadata(model):
    """Return the keys as llama.cpp's converter writes them: user-defined tokens have real spaces."""
    n = model.vocab_size()
    pieces = [model.id_to_piece(i) for i in range(n)]
    types = [3 if model.is_control(i) or model.is_unknown(i) else 6 if model.is_byte(i) else 1 for i in range(n)]
    types = [4 if piece in RUNS else kind for piece, kind in zip(pieces, types, strict=True)]
    tokens = [piece.replace("\u2581", " ") if kind == 4 else piece for piece, kind in zip(pieces, types, strict=True)]
    keys = {"tokens": tokens, "token_type": types, "scores": [model.get_score(i) for i in range(n)]}
    keys |= {"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": True, "unknown_token_id": 0}
    return GEMMA | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def test_ids_of_gemma_equal_those_of_sentencepiece(sentencepiece_model, tmp_path):
    found = read_tokenizer(write(tmp_path / "x.gguf", gemma_metadata(sentencepiece_model), {}))
    for kind, text in TEXTS.items():
        text = f"{text[:3000]}<h1>{text[3000:]}"
        ids = found.encode(text).ids
        assert ids == [1, *sentencepiece_model.encode(text)], kind
        assert found.decode(ids) == text, kind
    assert found.encode("a<end_of_turn>\n").tokens[-2:] == ["<end_of_turn>", "\n"]


def test_ids_of_gemma_equal_those_of_transformers(sentencepiece_model, tmp_path):
    """transformers merges runs of spaces pair by pair, which gives the same tokens up to the longest run that is a token."""
    path = write(tmp_path / "x.gguf", gemma_metadata(sentencepiece_model), {})
    reference, found = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name), read_tokenizer(path)
    for kind, text in TEXTS.items():
        for line in text[:20_000].splitlines(keepends=True):
            if " " * 7 not in line:
                assert found.encode(line).ids == reference(line)["input_ids"], (kind, line)


@pytest.fixture(scope="module")
def byte_level():
    """Vocabulary and merges of a byte-level BPE with Qwen's words, trained on the texts."""
    learner = Qwen2Tokenizer().backend_tokenizer
    learner.model = tokenizers.models.BPE()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator([text[:30_000] for text in TEXTS.values()], trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def byte_level_metadata(byte_level, **changes):
    vocab, merges = byte_level
    tokens = [*sorted(vocab, key=vocab.get), "<|endoftext|>", "<|im_end|>"]
    keys = {"model": "gpt2", "tokens": tokens, "merges": [" ".join(merge) for merge in merges]}
    keys |= {"token_type": [1] * len(vocab) + [3, 3], "eos_token_id": len(vocab)} | changes
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def test_ids_of_qwen_equal_those_of_transformers_class(byte_level, tmp_path):
    vocab, merges = byte_level
    reference = Qwen2Tokenizer(vocab=vocab | {"<|endoftext|>": len(vocab)}, merges=merges)
    metadata = {"general.architecture": "qwen2", **byte_level_metadata(byte_level, pre="qwen2", add_bos_token=False)}
    found = read_tokenizer(write(tmp_path / "x.gguf", metadata, {}))
    for kind, text in TEXTS.items():
        assert found.encode(text).ids == reference(text)["input_ids"], kind


def test_ids_of_smollm3_equal_those_of_transformers_reading(byte_level, tmp_path):
    metadata = {"general.architecture": "llama", **byte_level_metadata(byte_level, pre="smaug-bpe")}
    path = write(tmp_path / "x.gguf", metadata, {})
    reference, found = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name), read_tokenizer(path)
    for kind, text in TEXTS.items():
        assert found.encode(text).ids == reference(text, add_special_tokens=False)["input_ids"], kind
    assert found.encode("a").tokens == ["a"]  # llama.cpp adds no begin token


SIZES = {
    **{"block_count": 1, "embedding_length": 8, "feed_forward_length": 8, "attention.head_count": 1, "context_length": 64},
    **{"attention.layer_norm_rms_epsilon": 1e-6, "attention.key_length": 8},
}


@pytest.mark.parametrize("end", END_OF_TURN)
@pytest.mark.parametrize(
    ("keys", "template", "kind", "ids"),
    [
        ({"eot_token_id": 1}, True, 3, (0, 1)),
        ({"eot_token_id": 0}, True, 3, (0,)),
        ({}, True, 3, (0, 2)),
        ({}, True, 4, (0, 2)),
        ({}, True, 1, (0,)),  # text that looks like it
        ({}, False, 3, (0,)),  # a base model
        ({"eos_token_id": 2, "eom_token_id": 1}, True, 3, (2, 1)),
    ],
)
def test_ids_that_end_a_text(keys, template, kind, ids, end, tmp_path):
    """Instruction-tuned Gemma has [1, 106]: the end of the text, and the end of a turn, which not every file names by a key."""
    tokens = {"tokens": ["<eos>", "x", end], "token_type": [3, 1, kind], "eos_token_id": 0} | keys
    metadata = {"general.architecture": "gemma3"} | {f"gemma3.{key}": value for key, value in SIZES.items()}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in tokens.items()}
    if template:
        metadata["tokenizer.chat_template"] = "{{ messages }}"
    path = write(tmp_path / "x.gguf", metadata, {"token_embd.weight": np.zeros((3, 8), np.float32)})
    assert read_config(path).eos_token_ids == ids
