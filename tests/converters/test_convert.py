"""Targets of convert, extra files, and the command ``python -m converters``."""

import os
import warnings

import pytest
import torch
from safetensors.torch import load_file
from support.transformers_reference import save_folder, tiny_reference

import converters
import msrnn


def test_an_existing_target_is_not_changed(tmp_path):
    folder = save_folder(tiny_reference(dtype=torch.float32), tmp_path / "source")
    before = sorted(os.listdir(folder))
    for to in ("msrnn", "hf"):
        with pytest.raises(msrnn.Error, match="exists already"):
            converters.convert(folder, folder, to=to)
    with pytest.raises(msrnn.Error, match="expected 'msrnn' or 'hf'"):
        converters.convert(folder, tmp_path / "new", to="gguf")
    assert sorted(os.listdir(folder)) == before
    assert os.listdir(tmp_path) == ["source"]


def test_ctrl_c_leaves_no_target(tmp_path, monkeypatch):
    folder = save_folder(tiny_reference(dtype=torch.float32), tmp_path / "source")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(converters, "write_model_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        converters.convert(folder, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]


def test_tokenizer_and_chat_template_are_copied(hf_folder, tmp_path):
    from transformers import AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_bytes((hf_folder / name).read_bytes())
    model = tiny_reference(dtype=torch.float32, vocab_size=49152)
    save_folder(model, tmp_path / "source")
    converters.convert(tmp_path / "source", tmp_path / "own")
    msrnn.load(tmp_path / "own").save(tmp_path / "own2")
    converters.convert(tmp_path / "own2", tmp_path / "back", to="hf")
    text = "The sea, 1851: <|im_start|>世界 naïve\n\tdef f(x):"
    reference = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert reference(text)["input_ids"] == converters.tokenizer(hf_folder).encode(text).ids
    assert reference.chat_template == (hf_folder / "chat_template.jinja").read_text()


def test_command_line(tmp_path, capsys):
    from converters.__main__ import main

    source = save_folder(tiny_reference(dtype=torch.float32), tmp_path / "source")
    assert main([str(source), str(tmp_path / "out"), "--to", "hf", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert main([str(source), str(tmp_path / "out")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_the_command_line_reports_a_missing_tokenizer_in_one_line(tmp_path, capsys):
    from converters.__main__ import main

    source = save_folder(tiny_reference(dtype=torch.float32), tmp_path / "source")
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main([str(source), str(tmp_path / "own")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"msrnn: the model has no tokenizer: {source} has no tokenizer") for line in lines] == [True]
    assert main([str(tmp_path / "own"), str(tmp_path / "hf"), "--to", "hf"]) == 0  # an own folder was reported before
    assert capsys.readouterr().err == ""
