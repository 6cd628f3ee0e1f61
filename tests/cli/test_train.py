"""The command ``msrnn train``: its output, refusals, and runs that are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from support.command_line import PATIENCE
from support.training import DECODER, MODEL, folder_contents, train_config, words

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.train import train

ENCODER_DECODER = {"family": "encoder-decoder", "width": 16, "n_layers": 1, "n_heads": 2, "ffn_width": 24}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(words(), "utf-8")
    return path


def config(path, **fields):
    path.write_text(json.dumps(asdict(train_config(**fields))))
    return path


def command(text, config, out):
    return ["train", str(text), "--config", str(config), "--out", str(out)]


def test_other_commands_read_the_folder(text, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(text, config(tmp_path / "c.json", tokenizer="bpe:280"), out)) == 0
    assert "12 steps, validation" in capsys.readouterr().out
    assert (out / "loss.png").is_file()
    tokenizer, cell = converters.tokenizer(out), msrnn.load(out)
    assert cell.config.vocab_size == tokenizer.get_vocab_size() == 280
    for more in (
        ["generate", str(out), "--prompt", "the sea", "--max-new-tokens", "5", "--decode", "lookahead"],
        ["eval", "lm", str(out), "--text", str(text), "--chunk", "32", "--chunks", "2", "--operators", "tova", "--sizes", "8"],
        ["bench", str(out), "--only", "step", "--tokens", "20", "--size", "8", "--rounds", "1"],
        ["info", str(out)],
    ):
        assert main(more) == 0, more
        assert capsys.readouterr().out
    done = train(train_config(tokenizer="bpe:280"), text.read_text("utf-8"), out)
    for name, x in done.cell.named_parameters():
        assert torch.equal(x, cell.get_parameter(name))


def test_the_command_plots_and_prints_the_results_of_the_run(text, tmp_path, capsys, monkeypatch):
    plots, out = [], tmp_path / "out"
    monkeypatch.setattr("msrnn.cli.train.draw_training", lambda *args, **more: plots.append((*args, more["title"])))
    assert main(command(text, config(tmp_path / "c.json"), out)) == 0
    done = train(train_config(), text.read_text("utf-8"), out)
    assert plots == [(done.losses, done.validation, out / "loss.png", "words.txt, under tova:6")]
    size = sum(x.numel() for x in done.cell.parameters())
    expected = f"{out}: {size / 1e6:.2f} million parameters, 12 steps, validation {done.validation[12]:.4f} bits/byte"
    assert capsys.readouterr().out.splitlines()[-2:] == [expected, str(out / "loss.png")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk_length": 5000}, "the text has"),
        ({"stepz": 3}, "field 'stepz' is not known (did you mean 'steps'?); expected steps, batch_size"),
        ({"preset": "tony"}, "preset is 'tony' (did you mean 'tiny'?); expected one of tiny, "),
        ({"model": {**MODEL, "widht": 3}}, "field 'widht' is not known (did you mean 'width'?)"),
        ({"model": {**MODEL, "family": "lama"}}, "family is 'lama' (did you mean 'llama'"),
        ({"model": {**MODEL, "vocab_size": 3}}, "vocab_size is given"),
        ({"model": 3}, "model is 3"),
        ({"model": {k: v for k, v in MODEL.items() if k != "width"}}, "field 'width' is missing"),
        ({"steps": 0}, "steps is 0; expected an int from 1 to"),
        ({"steps": True}, "steps is True"),
        ({"lr": "fast"}, "lr is 'fast'; expected a number above 0 and at most 1"),
        ({"max_grad_norm": 0}, "max_grad_norm is 0; expected a number above 0 and at most 1e+09"),
        ({"carry": 16}, "field 'carry' has a new name; expected 'chunks_per_state'"),
        ({"weight_decay": False}, "weight_decay is False; expected a number of at least 0 and at most 1"),
        ({"weight_decay": -1}, "weight_decay is -1; expected a number of at least 0 and at most 1"),
        ({"reduction": "tofa:8"}, "no operator is called 'tofa'"),
        ({"model": {**DECODER, "positions": "learned", "context_length": 29}}, "exceeds the 29 learned positions"),
        ({"model": ENCODER_DECODER}, "model.family is 'encoder-decoder'; `msrnn train` trains decoder-only models"),
        ({"model": {**DECODER, "positions": "alibi"}, "reduction": "keydiff:8"}, "alibi"),
        ({"tokenizer": "words"}, "tokenizer is 'words'; expected bytes, or bpe with a size, such as bpe:4096"),
        ({"tokenizer": "bpe:256"}, "tokenizer is 'bpe:256'"),
    ],
)  # fmt: skip
def test_refusals_leave_nothing(fields, message, text, tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps({**asdict(train_config()), **fields}))
    before = sorted(os.listdir(tmp_path))
    assert main(command(text, tmp_path / "c.json", tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(os.listdir(tmp_path)) == before


def test_an_empty_text_is_refused(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    assert main(command(tmp_path / "empty.txt", config(tmp_path / "c.json"), tmp_path / "out")) == 1
    assert "the text has 0 tokens for training" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path / "words.txt" / "out", tmp_path / "words.txt", Path(".")):
        assert main(command(text, config(tmp_path / "c.json"), out)) == 1
        err = capsys.readouterr().err
        assert (
            err.startswith("msrnn: cannot write") or "exists already" in err or "expected the folder of a training run" in err
        )
        assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["c.json", "words.txt"]


def started(arguments, out, before):
    """Start a run in a new process and return it after more than ``before`` steps."""
    process = subprocess.Popen([sys.executable, "-m", "msrnn", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(100 * PATIENCE):
        if process.poll() is not None or steps(out) > before:
            return process
        time.sleep(0.01)
    raise AssertionError("the run has not started")


def steps(out):
    try:
        return len(dict(msrnn.storage.safetensors_io.read_tensors(out / "training.safetensors"))["losses"])
    except msrnn.Error:
        return -1


def test_a_run_killed_and_interrupted_at_random_times_ends_with_the_same_bytes(text, tmp_path):
    rng, out = random.Random(0), tmp_path / "killed"
    arguments, reached = command(text, config(tmp_path / "c.json", steps=100, eval_every=5), out), [0]
    for last in (signal.SIGKILL, signal.SIGINT):
        with started(arguments, out, reached[-1]) as process:
            time.sleep(0.1 * rng.random())  # about the time of one interval
            process.send_signal(last)
            _, err = process.communicate()
        reached.append(steps(out))
    assert process.returncode == 130, err
    assert b"the same command resumes" in err
    assert reached == sorted(set(reached))
    assert reached[-1] < 100
    msrnn.load(out)  # complete at any time
    assert main(arguments) == 0
    assert main(command(text, tmp_path / "c.json", tmp_path / "whole")) == 0
    assert folder_contents(out) == folder_contents(tmp_path / "whole")
