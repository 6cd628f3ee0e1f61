"""Byte-level tokenizers from GGUF metadata, compared with a naive BPE, and metadata that are refused."""

from itertools import pairwise
from unicodedata import normalize

import pytest
import regex
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
