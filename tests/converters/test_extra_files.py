"""The small files of a model: read from a folder in one form, and written to other folders without losses."""

import json

import pytest
import torch
from support.tiny_tokenizer import tiny_tokenizer
from support.transformers_reference import save_folder, tiny_reference
from transformers import AutoTokenizer, GenerationConfig

import converters
import msrnn
from converters.extra_files import open_folder

GENERATION = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": [2, 4], "pad_token_id": 0}


@pytest.fixture
def folder(tmp_path):
    """Return a tiny model with a tokenizer of more special tokens, templates with names and generation settings."""
    text = tiny_tokenizer().to_str()
    size = tiny_tokenizer().get_vocab_size()
    made = save_folder(tiny_reference(dtype=torch.float32, vocab_size=size + 2), tmp_path / "source")
    (made / "tokenizer.json").write_text(text)
    settings = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}, "pad_token": "<pad>"}
    settings |= {"unk_token": None, "additional_special_tokens": ["<tool>"], "padding_side": "left"}
    settings["chat_template"] = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (made / "tokenizer_config.json").write_text(json.dumps(settings))
    (made / "generation_config.json").write_text(json.dumps(GENERATION))
    return made


def test_an_existing_tokenizer_json_is_kept_byte_for_byte(tmp_path):
    text = tiny_tokenizer().to_str(pretty=True)
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "tokenizer.model").write_bytes(b"not read")
    (tmp_path / "other.txt").write_text("not read")
    files = open_folder(None, {}, tmp_path).extra_files
    assert (sorted(files), files["tokenizer.json"]) == (["tokenizer.json", "tokenizer_config.json"], text.encode())


@pytest.mark.parametrize("way", ["hf", "own", "own, saved", "own, hf", "hf, own"])
def test_every_folder_keeps_tokens_templates_and_generation_settings(way, folder, tmp_path):
    reference, source = AutoTokenizer.from_pretrained(folder), folder
    for n, to in enumerate(way.split(", ")):
        target = tmp_path / str(n)
        if to == "saved":
            msrnn.load(source).save(target)
        else:
            converters.convert(source, target, to="hf" if to == "hf" else "msrnn")
        source = target
    text = "<s>hello<|im_end|><tool> the <pad>"
    assert converters.tokenizer(source).encode(text).ids == reference(text)["input_ids"]
    assert converters.config(source).eos_token_ids == (2, 4)
    if to == "hf":
        found = AutoTokenizer.from_pretrained(source)
        for name in ("special_tokens_map", "extra_special_tokens", "chat_template", "padding_side"):
            assert getattr(found, name) == getattr(reference, name), name
        assert found(text)["input_ids"] == reference(text)["input_ids"]
        settings = GenerationConfig.from_pretrained(source)
        assert {name: getattr(settings, name) for name in GENERATION} == GENERATION
        assert json.loads((source / "config.json").read_text())["pad_token_id"] == 0


def test_a_padding_token_in_config_json_is_kept(tmp_path):
    save_folder(tiny_reference(dtype=torch.float32, pad_token_id=3), tmp_path / "source")
    (tmp_path / "source" / "generation_config.json").unlink()
    converters.convert(tmp_path / "source", tmp_path / "own")
    converters.convert(tmp_path / "own", tmp_path / "hf", to="hf")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "hf" / name).read_text())["pad_token_id"] == 3


def test_generation_settings_of_a_live_model_are_kept(tmp_path):
    model = tiny_reference(dtype=torch.float32)
    model.generation_config = GenerationConfig(**GENERATION)
    converters.convert(model, tmp_path / "hf", to="hf")
    settings = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert {name: getattr(settings, name) for name in GENERATION} == GENERATION


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"tokenizer_config.json": "a"}, {"chat_template.jinja": "a"}),
        ({"tokenizer_config.json": None}, {}),
        ({"tokenizer_config.json": [{"name": "default", "template": "a"}]}, {"chat_template.jinja": "a"}),
        ({"tokenizer_config.json": [{"name": "tool", "template": "b"}]}, {"tool": "b"}),
        ({"tokenizer_config.json": {"default": "a", "tool": "b"}}, {"default": "a", "tool": "b"}),
        ({"tokenizer_config.json": "a", "chat_template.jinja": "newer"}, {"chat_template.jinja": "newer"}),
        ({"chat_template.json": "old"}, {"chat_template.jinja": "old"}),
        ({"chat_template.json": "old", "chat_template.jinja": "newer"}, {"chat_template.jinja": "newer"}),
        ({"chat_template.json": "old", "tokenizer_config.json": "a"}, {"chat_template.jinja": "a"}),
        ({"additional_chat_templates/rag.jinja": "b", "chat_template.jinja": "a"}, {"default": "a", "rag": "b"}),
        ({"additional_chat_templates/rag.jinja": "b", "tokenizer_config.json": "a"}, {"rag": "b"}),
    ],
)
def test_chat_templates_are_read_from_all_places(files, found, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content if name.endswith(".jinja") else json.dumps({"chat_template": content}))
    extra = open_folder(None, {}, tmp_path).extra_files
    named = json.loads(extra.get("tokenizer_config.json", b"{}")).get("chat_template", ())
    texts = {"chat_template.jinja": extra["chat_template.jinja"].decode()} if "chat_template.jinja" in extra else {}
    assert texts | {entry["name"]: entry["template"] for entry in named} == found


@pytest.mark.parametrize("template", [3, [3], [{"name": "a"}], [{"name": 1, "template": "b"}], {"default": 2}])
def test_chat_templates_of_another_type_are_refused(template, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(msrnn.Error, match=r"tokenizer_config\.json: chat_template is .*; expected text, or a list"):
        open_folder(None, {}, tmp_path)


def test_a_missing_tokenizer_is_reported_by_load_and_convert(tmp_path):
    source = save_folder(tiny_reference(dtype=torch.float32), tmp_path / "source")
    for run in (converters.load, lambda x: converters.convert(x, tmp_path / "own")):
        with pytest.warns(UserWarning, match=r"the model has no tokenizer: .*source has no tokenizer; expected one of"):
            run(source)


def test_more_token_ids_than_rows_are_reported_by_load_and_convert(folder, tmp_path):
    size = tiny_tokenizer().get_vocab_size()
    small = save_folder(tiny_reference(dtype=torch.float32, vocab_size=size), tmp_path / "small")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (small / name).write_bytes((folder / name).read_bytes())
    for run in (converters.load, lambda x: converters.convert(x, tmp_path / "own")):
        with pytest.warns(UserWarning, match=f"has ids up to {size + 1}, but the embedding has {size} rows"):
            run(small)
    converters.load(folder)  # as many ids as rows


def test_a_tokenizer_that_cannot_be_read_is_reported_by_load_and_refused_by_convert(folder, tmp_path):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"the model has no tokenizer: .*tokenizer\.json is not a tokenizer"):
        converters.load(folder)
    with pytest.raises(msrnn.Error, match=r"tokenizer\.json is not a tokenizer"):
        converters.convert(folder, tmp_path / "own")
    assert not (tmp_path / "own").exists()
