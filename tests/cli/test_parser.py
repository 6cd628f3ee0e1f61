"""Help texts, and command lines that argparse refuses."""

import platform
from importlib import metadata

import pytest
import torch

from msrnn.cli.main import main
from msrnn.cli.parser import COMMANDS


def test_help_lists_every_command_and_operator(capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["--help"])
    assert exit_status.value.code == 0
    text = capsys.readouterr().out
    for word in (*COMMANDS, "examples:", "tova:SIZE", "KV cache"):
        assert word in text


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "lm-eval"])  # the harness prints its own help
def test_help_of_a_command_begins_with_its_docstring(name, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main([name, "--help"])
    assert exit_status.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: msrnn {name}")
    assert " ".join(COMMANDS[name].__doc__.split()) in text


def test_version_names_the_versions(capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["--version"])
    assert exit_status.value.code == 0
    expected = f"msrnn {metadata.version('msrnn')}, torch {torch.__version__}, Python {platform.python_version()}\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "m", "--prompt", "x", "--reduction", "tova"], "tova:<size: int>"),
        (["generate", "m", "--prompt", "x", "--max-new-tokens", "-3"], "-3"),
        (["compare", "m", "--reduction", "full"], "--prompt"),
        ([], "COMMAND"),
    ],
)
def test_invalid_command_line_is_refused(args, message, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(args)
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err
