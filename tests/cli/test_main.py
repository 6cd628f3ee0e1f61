"""Exit codes of the command line: refusals, ctrl-C, and output that cannot be written."""

import os
import signal
import subprocess
import sys
import time

import pytest
from support.command_line import PATIENCE, PROMPT, start

from msrnn.cli.main import main


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "/nowhere", "--prompt", "x"], "/nowhere"),
        (["generate", "MODEL", "--prompt", ""], "prompt is empty"),
        (["generate", "MODEL", "--prompt-file", "/nowhere.txt"], "cannot read /nowhere.txt (No such file"),
        (["generate", "MODEL", "--prompt", "x", "--seed", "1"], "--sample"),
        (["generate", "MODEL", "--prompt", "x", "--temperature", "0.5"], "--sample"),
        (["generate", "MODEL", "--prompt", "x", "--sample", "--temperature", "0"], "temperature is 0.0"),
        (["generate", "MODEL", "--prompt", "a\udcffb"], "cannot read the prompt"),
        (["generate", "MODEL", "--prompt", "x", "--device", "meta"], "meta"),
        (["generate", "MODEL", "--prompt", "x", "--device", "abacus"], "device is 'abacus'"),
        (["compare", "MODEL", "--prompt", "x", "--reduction", "full", "--reduction", "full"], "given twice"),
        (["compare", "MODEL", "--prompt", "x", "--reduction", "full", "--picture", "x.xyz"], "x.xyz"),
        (["retention", "MODEL", "--prompt", "x", "--reduction", "full", "--out", "x"], "expected a name that ends"),
        (["retention", "MODEL", "--prompt", "x", "--reduction", "full", "--out", "x.png", "--layer", "30"], "from 0 to 29"),
    ],
)
def test_refusal_is_one_sentence(args, message, gguf_path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(gguf_path) if a == "MODEL" else a for a in args]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert message in err
    assert not out
    assert not list(tmp_path.iterdir())


def test_ctrl_c_prints_the_summary(gguf_path):
    with start("generate", gguf_path, "--prompt", PROMPT, "--max-new-tokens", 5000, "--ignore-eos") as process:
        os.read(process.stdout.fileno(), 1)  # waits for the first text
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"generated at" in err
    assert err.rstrip().endswith(b"stopped")


def test_closed_pipe_ends_the_command_without_a_message(gguf_path):
    with start("generate", gguf_path, "--prompt", PROMPT, "--max-new-tokens", 5000, "--ignore-eos") as process:
        assert os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(PATIENCE) == 1
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


def test_full_disk_is_one_sentence(gguf_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "msrnn", "generate", str(gguf_path), "--prompt", PROMPT, "--max-new-tokens", "2"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot write the output" in done.stderr
