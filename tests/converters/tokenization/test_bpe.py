"""Tokenizers from GGUF metadata, compared with SentencePiece and with a naive BPE."""

import json
from itertools import pairwise
from unicodedata import normalize

import pytest
import regex
import sentencepiece
import tokenizers
from support.gguf_files import write
from support.refusals import refusing
from support.tokenizer_texts import TEXTS

from converters.gguf.header import read_header
from converters.gguf.reader import read_tokenizer
from converters.tokenization import bpe

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def chat_template(path):
    return bpe.chat_template(read_header(path).metadata, path)


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


QWEN2 = LLAMA3.replace("{1,3}", "")
COMPOSED = ("qwen2", "deepseek-r1-qwen")
RULES = {
    "gpt-2": [GPT2],
    "smaug-bpe": [LLAMA3],
    **{name: [QWEN2] for name in COMPOSED},
    "smollm": [r"\p{N}", GPT2],
    **{name: [LLAMA3] for name in ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")},
    "tekken": [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"],
    "deepseek-llm": [
        *(r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+\Z", "[一-龥ࠀ-一가-\ud7ff]+"),
        r"\p{N}",
    ],
}
"""Regular expressions that isolate words, one after the other, from the models' own files."""
WHOLE = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")


def words(text, pre):
    pieces = [text]
    for rule in RULES[pre]:
        pieces = [part for piece in pieces for part in regex.split(f"({rule})", piece) if part]
    return pieces


def naive(text, pre, tokens, merges):
    """Encode with byte-level BPE as in the paper: repeatedly merge the neighbours that come first in the merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(rest)}
    ranks = {tuple(merge.split(" ")): n for n, merge in enumerate(merges)}
    seen, ids = {}, {token: n for n, token in enumerate(tokens)}
    for word in set(words(text, pre)):
        parts = [letters[b] for b in word.encode()]
        if pre in WHOLE and "".join(parts) in ids:
            parts = ["".join(parts)]
        while len(parts) > 1:
            rank, n = min((ranks.get(pair, 1 << 30), n) for n, pair in enumerate(pairwise(parts)))
            if rank == 1 << 30:
                break
            parts[n : n + 2] = [parts[n] + parts[n + 1]]
        seen[word] = [ids[part] for part in parts]
    return [n for word in words(text, pre) for n in seen[word]]


@pytest.mark.parametrize("pre", RULES)
def test_byte_level_ids_equal_those_of_a_naive_encoder(write_tokenizer, trained, pre):
    rebuilt = read_tokenizer(write_tokenizer(pre=pre, add_bos_token=False))
    for kind, text in TEXTS.items():
        text = normalize("NFC", text[:40_000]) if pre in COMPOSED else text[:40_000]
        spans = [span for _, span in rebuilt.pre_tokenizer.pre_tokenize_str(text)]
        assert [text[start:end] for start, end in spans] == words(text, pre), kind
        found = rebuilt.encode(text).ids
        assert found == naive(text, pre, *trained), kind
        assert rebuilt.decode(found) == text
    whole = "ĠArgumentParser" in rebuilt.encode("an ArgumentParser").tokens
    assert whole == (pre in WHOLE and pre != "tekken")  # no merges produce this token; tekken splits it into two words


@pytest.mark.parametrize("pre", ["qwen2", "smaug-bpe"])
def test_qwen_composes_characters_first(write_tokenizer, pre):
    """Qwen's tokenizer.json has the normalizer NFC; a GGUF file has no key for it."""
    rebuilt = read_tokenizer(write_tokenizer(pre=pre))
    assert (rebuilt.encode("cafe\u0301").ids == rebuilt.encode("caf\u00e9").ids) == (pre == "qwen2")


def test_special_tokens_in_the_text_are_encoded(write_tokenizer):
    rebuilt = read_tokenizer(write_tokenizer())
    encoded = rebuilt.encode("</s><tool>a</s>")
    assert encoded.tokens == ["</s>", "<tool>", "a", "</s>"]
    assert rebuilt.decode(encoded.ids) == "<tool>a"  # user-defined tokens are text, control tokens are not


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, ["a"]),
        ({"pre": "llama-bpe"}, ["<s>", "a"]),
        ({"pre": "llama-bpe", "add_bos_token": False}, ["a"]),
        ({"add_bos_token": True}, ["<s>", "a"]),
        ({"add_bos_token": True, "add_eos_token": True}, ["<s>", "a", "</s>"]),
        ({"add_eos_token": True}, ["a", "</s>"]),
    ],
)
def test_begin_and_end_tokens_are_added_as_the_file_requests(write_tokenizer, changes, tokens):
    rebuilt = read_tokenizer(write_tokenizer(**changes))
    assert rebuilt.encode("a").tokens == tokens
    assert rebuilt.encode("a", "a").tokens == tokens + tokens
    assert rebuilt.encode("a", add_special_tokens=False).tokens == ["a"]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """Returns a function that trains a model like LLaMA's: BPE, byte tokens, single digits, spaces kept."""
    folder = tmp_path_factory.mktemp("spm")
    lines = [line for text in TEXTS.values() for line in text[:30_000].splitlines() if line]

    def train(**options):
        target = folder / "-".join(["m", *map(str, options.values())])
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(target),
            model_type="bpe",
            vocab_size=900,
            character_coverage=0.99,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            user_defined_symbols=["<tool>"],
            minloglevel=2,
            **options,
        )
        return sentencepiece.SentencePieceProcessor(model_file=f"{target}.model")

    return train


def pieces(model):
    n = model.vocab_size()
    kinds = {2: model.is_unknown, 3: model.is_control, 6: model.is_byte}
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [model.id_to_piece(i) for i in range(n)],
        "scores": [model.get_score(i) for i in range(n)],
        "token_type": [
            next((kind for kind, is_it in kinds.items() if is_it(i)), 4 if model.id_to_piece(i) == "<tool>" else 1)
            for i in range(n)
        ],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize(("prefix", "fallback"), [(True, True), (False, True), (True, False)])
def test_ids_equal_those_of_sentencepiece(trainer, write_tokenizer, prefix, fallback):
    model = trainer(add_dummy_prefix=prefix, byte_fallback=fallback)
    rebuilt = read_tokenizer(write_tokenizer(**pieces(model), add_space_prefix=prefix, merges=None))
    n_unknown = 0
    for kind, text in TEXTS.items():
        text = text if prefix else text[:3000] + "<tool>" + text[3000:]
        found = rebuilt.encode(text).ids
        assert found == [1, *model.encode(text)], kind
        n_unknown += found.count(0)
        if fallback:
            assert rebuilt.decode(found) == text, kind
    assert (n_unknown == 0) == fallback
    assert rebuilt.encode("a</s>").tokens[-1] == "</s>"


def test_unused_tokens_are_not_produced(write_tokenizer):
    """Type 5: fillers of llama.cpp's converter, for example; SentencePiece splits such a token again."""
    changes = {"tokens": ["<unk>", "▁", "a", "b", "ab", "▁a"], "token_type": [2, 1, 1, 1, 5, 1]}
    rebuilt = read_tokenizer(
        write_tokenizer(model="llama", scores=[0.0, -3.0, -4.0, -5.0, -1.0, -2.0], add_bos_token=False, **changes)
    )
    assert rebuilt.encode("ab").tokens == ["▁a", "b"]
    assert rebuilt.encode("ac c").tokens == ["▁a", "<unk>", "▁", "<unk>"]


def test_pieces_with_equal_scores_are_merged_in_the_order_of_ids(write_tokenizer):
    metadata = {"tokens": ["<unk>", "a", "b", "c", "ab", "bc"], "token_type": [2, 1, 1, 1, 1, 1], "add_space_prefix": False}
    path = write_tokenizer(model="llama", scores=[0.0, *[-3.0] * 3, -1.0, -1.0], add_bos_token=False, **metadata)
    assert read_tokenizer(path).encode("abc").tokens == ["ab", "c"]


SCORES = {"model": "llama", "tokens": ["<unk>", "a"], "token_type": [2, 1], "scores": [0.0, -1.0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'; expected 'gpt2' or 'llama'"),
        ({"model": None}, "tokenizer.ggml.model is missing; expected str"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing; expected list"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens is [1, 2]; expected list"),
        ({"token_type": [1]}, "tokens and 1 token types; expected one type for each"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "only 1 of 2 tokens differ"),
        ({"pre": "gpt-4o"}, "tokenizer.ggml.pre is 'gpt-4o'; expected one of llama-bpe, llama3"),
        ({"pre": None}, "tokenizer.ggml.pre is 'default'; expected one of llama-bpe, llama3"),
        ({"merges": None}, "tokenizer.ggml.merges is missing; expected list"),
        ({"merges": ["ab"]}, "merge 'ab' is no pair of tokens that join to a third"),
        ({"merges": ["a <s>"]}, "merge 'a <s>' is no pair of tokens that join to a third"),
        ({"add_bos_token": True, "bos_token_id": None}, "tokenizer.ggml.bos_token_id is missing; expected int"),
        ({"add_bos_token": True, "bos_token_id": 99999}, "tokenizer.ggml.bos_token_id is 99999; expected less than"),
        ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token is 1; expected bool"),
        ({**SCORES, "scores": None}, "tokenizer.ggml.scores is missing; expected list"),
        ({**SCORES, "scores": [0.0]}, "2 tokens and 1 scores; expected one score for each"),
        ({**SCORES, "token_type": [1, 1]}, "no unknown token and no byte tokens"),
    ],
)
def test_other_metadata_are_refused(write_tokenizer, changes, message):
    with refusing(message):
        read_tokenizer(write_tokenizer(**changes))


def test_a_missing_chat_template_is_none_and_another_type_is_refused(tmp_path):
    assert chat_template(write(tmp_path / "x.gguf", {"general.architecture": "llama"}, {})) is None
    with refusing("tokenizer.chat_template is 3; expected text"):
        chat_template(write(tmp_path / "y.gguf", {"tokenizer.chat_template": 3}, {}))
