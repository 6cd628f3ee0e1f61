"""Chat templates and special tokens in the small files of a model, compared with transformers."""

import json

import pytest
from support.tiny_tokenizer import chat_cell, tiny_tokenizer
from transformers import AutoTokenizer

import converters
import msrnn
from msrnn.text.model_templates import find_template, open_template, special_tokens

TEMPLATE = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ image_token }}"
CASES = {
    "another eos": ({"bos_token": "<s>", "eos_token": "<|im_end|>"}, None),
    "an object": ({"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True}}, None),
    "null": ({"bos_token": None, "eos_token": "</s>", "pad_token": "<|endoftext|>"}, None),
    "a special_tokens_map": ({"bos_token": "</s>"}, {"bos_token": {"content": "<s>"}, "pad_token": "</s>"}),
    "both, with added_tokens_decoder": (
        {"bos_token": "<s>", "added_tokens_decoder": {"3": {"content": "<s>", "special": True}}},
        {"bos_token": "</s>", "pad_token": "</s>"},
    ),
    "a token of the model": ({"extra_special_tokens": {"image_token": "<image>"}, "unk_token": "<unk>"}, None),
    "a token of the model, at the top": ({"image_token": "<image>"}, None),
    "no files": (None, None),
}


@pytest.mark.filterwarnings("ignore:the tokenizer has ids up to")  # of tokens that a file adds
@pytest.mark.parametrize("name", CASES)
def test_templates_get_the_special_tokens_of_the_tokenizer(name, tmp_path):
    """The bos id of the model's config is 3 and its eos id 2, which are other tokens in most cases."""
    settings, special = CASES[name]
    source = tmp_path / "source"
    converters.convert(chat_cell(TEMPLATE), source, to="hf")
    (source / "tokenizer_config.json").unlink()
    for file, fields in {"tokenizer_config.json": settings, "special_tokens_map.json": special}.items():
        if fields is not None:
            (source / file).write_text(json.dumps(fields))
    reference = AutoTokenizer.from_pretrained(source)
    talk = [{"role": "user", "content": "hello"}]
    expected = reference.apply_chat_template(talk, tokenize=False)
    converters.convert(source, tmp_path / "own")
    for cell in (converters.load(source), msrnn.load(tmp_path / "own")):
        template = open_template(cell.extra_files, converters.tokenizer(source), cell.config)
        assert template(talk, add_generation_prompt=False) == expected


def test_a_model_without_the_file_has_the_tokens_of_its_config():
    cell = chat_cell(eos_token_ids=(4, 2))
    assert special_tokens(cell.extra_files, tiny_tokenizer(), cell.config) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_templates_are_found_by_name():
    listed = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}, {"name": "rag", "template": "c"}]
    files = {"tokenizer_config.json": json.dumps({"chat_template": listed}).encode()}
    assert [find_template(files), find_template(files, tools=True), find_template(files, "rag")] == ["a", "b", "c"]
    assert find_template({}) is None
    assert find_template({"chat_template.jinja": b"x"}, tools=True) == "x"
    for others, name in ((files, "other"), ({}, "other"), ({"chat_template.jinja": b"x"}, "rag")):
        with pytest.raises(msrnn.Error, match=f"the model has no chat template '{name}'; expected one of (default|none)"):
            find_template(others, name)
    files = {"tokenizer_config.json": json.dumps({"chat_template": listed[2:]}).encode()}
    with pytest.raises(msrnn.Error, match="the model has no chat template 'default'; expected one of rag"):
        find_template(files)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff"])
def test_a_damaged_file_is_refused(content):
    with pytest.raises(msrnn.Error, match=r"tokenizer_config\.json of the model is not JSON"):
        find_template({"tokenizer_config.json": content})
