"""Ids, texts and chats of tokenizer folders equal those of transformers, for the combinations of the files of a folder."""

import json
from itertools import product

import pytest
from support.sentencepiece_models import trained
from support.tiny_tokenizer import tiny_tokenizer
from support.tokenizer_folders import SAMPLES, TOKEN, assert_equals_transformers, write_settings
from tokenizers import Tokenizer, pre_tokenizers, processors
from transformers import AutoTokenizer

import msrnn
from converters.tokenization.folder import read_tokenizer
from converters.tokenization.sentencepiece import parse_tokenizer


def sentencepiece_json(folder):
    """Return a tokenizer.json as transformers 4 wrote it for LLaMA: a normalizer puts the space, and one adds bos."""
    trained(folder / "tokenizer.model")
    bare = parse_tokenizer((folder / "tokenizer.model").read_bytes(), folder)[0]
    (folder / "tokenizer.model").unlink()
    bare.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return bare.to_str()


def metaspace_json(folder):
    """Return a tokenizer.json as transformers 5 writes it."""
    made = Tokenizer.from_str(sentencepiece_json(folder))
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made.to_str()


JSON = {
    "byte-level": lambda folder: tiny_tokenizer().to_str(),
    "normalizer": sentencepiece_json,
    "metaspace": metaspace_json,
}
ADDED = {
    "nothing": lambda n: {},
    "added_tokens.json": lambda n: {"added_tokens.json": {"<tool>": n + 2, "<|im_start|>": n, "<|im_end|>": n + 1}},
    "decoder": lambda n: {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "1": {"content": "<s>", **TOKEN},
                str(n): {"content": "<|im_start|>", **TOKEN},
                str(n + 1): {"content": "<|im_end|>", **TOKEN, "normalized": True, "special": False},
                str(n + 2): {"content": "<tool>", **TOKEN, "lstrip": True, "rstrip": True, "special": False},
            },
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", **TOKEN},
            "pad_token": "<pad>",
            "unk_token": None,
        },
        "special_tokens_map.json": {"bos_token": "not read"},
    },
    "own names": lambda n: {
        "tokenizer_config.json": {"model_specific_special_tokens": {"image_token": "<|im_start|>"}, "bos_token": "<s>"},
    },
    "own names in two fields": lambda n: {
        "tokenizer_config.json": {
            "model_specific_special_tokens": {"image_token": "<|im_start|>"},
            "audio_token": "<|im_end|>",
            "bos_token": "<s>",
        },
    },
    "special_tokens_map.json": lambda n: {
        "tokenizer_config.json": {"bos_token": "</s>", "eos_token": "<pad>"},
        "special_tokens_map.json": {
            "bos_token": {"content": "<s>", **TOKEN},
            "pad_token": "<pad>",
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
    },
}
FLAGS = [
    {},
    {"legacy": True},
    {"legacy": False, "add_bos_token": True},
    {"add_prefix_space": False},
    {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True},
    {"add_bos_token": False},
]
CLASSES = (None, "PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "OtherTokenizer")


@pytest.mark.parametrize("vocabulary", JSON)
def test_folders_with_tokenizer_json_equal_transformers(vocabulary, tmp_path):
    text = JSON[vocabulary](tmp_path)
    size = Tokenizer.from_str(text).get_vocab_size()
    cases = 0
    for n, (name, kind, added, flags) in enumerate(product(CLASSES, ("llama", "mistral"), ADDED, FLAGS)):
        if name == "GPT2Tokenizer" and vocabulary != "byte-level":
            continue
        if vocabulary == "byte-level" and added == "decoder":
            continue  # the ids of these tokens are others
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "tokenizer.json").write_text(text)
        files = ADDED[added](size)
        if vocabulary == "byte-level" and "added_tokens.json" in files:
            files = {"added_tokens.json": {"<tool>": size}}
        write_settings(folder, name, kind, files, flags)
        try:
            assert_equals_transformers(folder)
        except AssertionError as error:
            raise AssertionError(f"{name}, {kind}, {added}, {flags}") from error
        cases += 1
    assert cases > 150


@pytest.mark.parametrize("flags", [flags | {"add_bos_token": flags.get("add_bos_token", True)} for flags in FLAGS])
@pytest.mark.parametrize("added", ADDED)
def test_folders_with_tokenizer_model_equal_transformers(added, flags, tmp_path):
    """transformers adds no bos where the files do not say so; here the default is that of SentencePiece's LLaMA, to add it."""
    size = trained(tmp_path / "tokenizer.model").vocab_size()
    write_settings(tmp_path, "LlamaTokenizer", "llama", ADDED[added](size), flags)
    assert_equals_transformers(tmp_path)


def test_added_tokens_beside_tokenizer_model_are_known(tmp_path):
    """Without a class of transformers, SentencePiece's rules apply between the added tokens."""
    reference = trained(tmp_path / "tokenizer.model")
    size = reference.vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": size, "<|im_end|>": size + 1}))
    found = read_tokenizer(tmp_path)
    assert found.encode("<|im_start|> the sea<|im_end|>the").ids == [
        *(1, size, *reference.encode(" the sea"), size + 1),
        *reference.encode("the"),
    ]


def test_ids_with_gaps_are_refused(tmp_path):
    size = trained(tmp_path / "tokenizer.model").vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": size + 5}))
    with pytest.raises(
        msrnn.Error, match=f"gives the added token '<tool>' the id {size + 5}, but the tokenizer gives it {size}"
    ):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("tokenizer_config.json", {"bos_token": 3}, "bos_token"),
        (
            "tokenizer_config.json",
            {"bos_token": {"lstrip": True}},
            "bos_token is .*; expected text, or an object with its content",
        ),
        ("tokenizer_config.json", {"bos_token": {"content": "a", "lstrip": 1}}, "bos_token: lstrip is 1; expected a bool"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, r"added_tokens_decoder is \[\]; expected a dict"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "a"}}, "the id of an added token is 'x'"),
        ("tokenizer_config.json", {"legacy": "yes"}, "legacy is 'yes'; expected a bool"),
        ("tokenizer_config.json", {"extra_special_tokens": "a"}, "extra_special_tokens is 'a'; expected a list"),
        ("tokenizer_config.json", {"model_specific_special_tokens": []}, r"tokens is \[\]; expected a dict"),
        ("added_tokens.json", {"a": -1}, "the id of an added token is -1; expected an int of at least 0"),
        ("added_tokens.json", {"a": True}, "the id of an added token is True"),
    ],
)
def test_settings_of_another_type_are_refused(name, fields, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer().to_str())
    (tmp_path / name).write_text(json.dumps(fields))
    with pytest.raises(msrnn.Error, match=message):
        read_tokenizer(tmp_path)


def test_special_tokens_are_split_if_the_settings_say_so(tmp_path):
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer().to_str())
    write_settings(tmp_path, "PreTrainedTokenizerFast", "llama", {}, {"split_special_tokens": True})
    reference = AutoTokenizer.from_pretrained(tmp_path)
    found = read_tokenizer(tmp_path)
    for text in SAMPLES:
        assert found.encode(text, add_special_tokens=False).ids == reference(text, add_special_tokens=False)["input_ids"]
