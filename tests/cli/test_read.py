"""``msrnn read``, and several questions to one saved text."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from support.tiny_models import assert_close, assert_same
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

import msrnn
from msrnn.cli import read
from msrnn.cli.main import main

ROOT = Path(__file__).parents[2]
TEXT = "the sea in a cat and the end of it was not"


@pytest.fixture
def model(tmp_path):
    chat_cell(seed=4).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def command(capfd):
    """Run a command, and return what it prints and reports."""

    def run(*args):
        code = main([*map(str, args)])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out, err

    return run


def ids(text, **settings):
    return torch.tensor([tiny_tokenizer().encode(text, **settings).ids])


@pytest.mark.parametrize("part", [5, 512])
def test_the_file_holds_the_state_after_the_text(part, model, tmp_path, command, monkeypatch):
    monkeypatch.setattr(read, "PART_TOKENS", part)
    (tmp_path / "text.txt").write_text(TEXT)
    out, err = command(
        *("read", model, "--prompt-file", tmp_path / "text.txt"), "--reduction", "tova:8", "--state", tmp_path / "state"
    )
    cell, tokens = msrnn.load(model), ids(TEXT)
    logits, state = cell(tokens, cell.initial_state(1, "tova:8"))
    saved, last = msrnn.load_state(tmp_path / "state", logits=True)
    assert_same(saved, state, 1e-8)
    assert_close(last, logits[:, -1], 1e-8)
    assert out == f"{tmp_path / 'state'}\n"
    assert f"[{tokens.shape[1]} tokens read at " in err
    assert f"{state.nbytes / 1e6:.2f} MB" in err


def test_many_questions_are_asked_of_one_text(model, tmp_path, command):
    """Each answer is that of a command which reads text and question at once, and the file does not change."""
    state = tmp_path / "state"
    command("read", model, "--prompt", TEXT, "--reduction", "tova:8", "--state", state)
    before = state.read_bytes()
    for question in (" a cat", " of the end"):
        more = ("--max-new-tokens", 6, "--ignore-eos")
        found, err = command("generate", model, "--state", state, "--keep-state", "--prompt", question, *more)
        cell = msrnn.load(model)
        tokens = torch.cat((ids(TEXT), ids(question, add_special_tokens=False)), dim=1)
        new, _, _ = msrnn.generate(cell, tokens, cell.initial_state(1, "tova:8"), max_new_tokens=6)
        assert found == tiny_tokenizer().decode(new[0].tolist()) + "\n"
        assert f"{ids(question, add_special_tokens=False).shape[1]} prompt tokens read" in err
        assert state.read_bytes() == before
    command("generate", model, "--state", state, "--prompt", " a cat", "--max-new-tokens", 2)
    assert state.read_bytes() != before


def test_a_text_in_two_parts_is_one_text(model, tmp_path, command):
    """No second bos token is read, and ``generate`` without a prompt goes on from the last token."""
    common = ("--state", tmp_path / "state")
    command("read", model, "--prompt", "the sea", "--reduction", "tova:4", "--kv-dtype", "int8", *common)
    _, err = command("read", model, "--prompt", " in a cat", *common)
    tokens = torch.cat((ids("the sea"), ids(" in a cat", add_special_tokens=False)), dim=1)
    assert f"{tokens.shape[1]} in all" in err
    cell = msrnn.load(model)
    new, _, _ = msrnn.generate(cell, tokens, cell.initial_state(1, "tova:4", dtype=torch.int8), max_new_tokens=5)
    out, _ = command("generate", model, *common, "--max-new-tokens", 5, "--ignore-eos")
    assert out == tiny_tokenizer().decode(new[0].tolist()) + "\n"


def test_the_commands_of_the_documentation_run(model, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BOOK").write_text(TEXT)
    section = (ROOT / "docs/cell.md").read_text().split("### Read once, ask many times")[1].split("\n#")[0]
    commands = re.findall(r"^ {4}msrnn (.+)", section, re.MULTILINE)
    assert len(commands) == 3
    for line in commands:
        command(*(model if word == "MODEL" else word for word in shlex.split(line)))
    assert msrnn.load_state("book.state").clock.item() == ids(TEXT).shape[1]


def test_what_cannot_be_read_is_refused_and_leaves_no_file(model, tmp_path, capfd):
    state, other = tmp_path / "state", tmp_path / "other"
    chat_cell(seed=5).save(other)
    assert main(["read", str(other), "--prompt", "the sea", "--state", str(tmp_path / "of-other")]) == 0
    capfd.readouterr()
    for words, message in {
        ("read", "--prompt", "", "--state", state): "the prompt is empty",
        ("read", "--prompt-file", tmp_path / "absent", "--state", state): "absent (No such file or directory)",
        ("read", "--prompt", "x", "--state", tmp_path / "no" / "state"): "expected a file in an existing folder",
        ("read", "--prompt", "x", "--state", tmp_path / "of-other"): "state belongs to another model",
        ("generate", "--prompt", "x", "--keep-state"): "--keep-state continues a text, but --state is not given",
        (
            "generate",
            "--prompt",
            "x",
            "--keep-state",
            "--state",
            state,
        ): f"--keep-state continues a text, but --state is {state}, which does not exist",
    }.items():
        name, *rest = map(str, words)
        assert main([name, str(model), *rest]) == 1
        out, err = capfd.readouterr()
        assert (out, message in err, err.count("\n")) == ("", True, 1), err
        assert not state.exists()
