"""The tokenizer of a real GGUF file, compared with transformers."""

import pytest
import regex
import tokenizers
import transformers
from support.tokenizer_texts import TEXTS

from converters.gguf.header import read_header
from converters.gguf.reader import read_tokenizer
from converters.tokenization import bpe


@pytest.fixture(scope="module")
def real(gguf_path):
    return read_tokenizer(gguf_path)


def test_real_ids_equal_those_of_transformers(real, hf_folder):
    """Digits of other scripts and runs of spaces before a digit are removed here and tested below."""
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(hf_folder / "tokenizer.json"))
    n_bytes = 0
    for kind, text in TEXTS.items():
        text = regex.sub(r"(?![0-9])\p{N}", "", text)
        text = regex.sub(r"\s+(\s[0-9])", r"\1", text)
        assert real.encode(text).ids == reference.encode(text, add_special_tokens=False), kind
        n_bytes += len(text.encode())
    assert n_bytes > 200_000


def test_real_digits_are_single_tokens(real, hf_folder):
    """SmolLM2's tokenizer splits off digits first. The tokenizer that transformers builds from the GGUF file does not."""
    for text, tokens in {
        "a  5": ["a", "ĠĠ", "5"],
        "a\n\n12": ["a", "ĊĊ", "1", "2"],
        "x\n    5": ["x", "ĊĠĠĠĠ", "5"],
        "½²": ["Â½", "Â²"],
    }.items():
        assert real.encode(text).tokens == tokens
    reference = tokenizers.Tokenizer.from_file(str(hf_folder / "tokenizer.json"))
    assert reference.encode("a  5").tokens == ["a", "Ġ", "Ġ", "5"]
    digits, rest = tokenizers.pre_tokenizers.Digits(individual_digits=True), reference.pre_tokenizer
    reference.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, rest])
    for kind, text in TEXTS.items():
        assert real.encode(text).ids == reference.encode(text).ids, kind


def test_real_text_is_decoded_exactly(real):
    for kind, text in TEXTS.items():
        assert real.decode(real.encode(text).ids, skip_special_tokens=False) == text, kind


def test_real_special_tokens_and_template(real, gguf_path, hf_folder):
    encoded = real.encode("<|im_start|>user\nhi<|im_end|>")
    assert (encoded.ids[0], encoded.ids[-1]) == (1, 2)
    assert real.decode(encoded.ids) == "user\nhi"
    assert (
        bpe.chat_template(read_header(gguf_path).metadata, gguf_path).strip()
        == (hf_folder / "chat_template.jinja").read_text().strip()
    )
