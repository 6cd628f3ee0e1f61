"""Standard streams that are full, closed or ASCII, for every kind of command."""

import os
import signal
import subprocess
import sys

import pytest
from support.command_line import run
from support.tiny_tokenizer import chat_cell

C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SMALL = ("--max-new-tokens", "3", "--ignore-eos")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model; its path is not ASCII."""
    folder = tmp_path_factory.mktemp("modèle") / "tiny"
    chat_cell().save(folder)
    return str(folder)


def start(words, redirection, environment=None):
    """Run ``msrnn`` in a shell with a redirection of its streams."""
    quoted = " ".join(f"'{word}'" for word in (sys.executable, *words))
    command = ["sh", "-c", f"exec {quoted} {redirection}"]
    return subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, **(environment or {})})


def words_of(name, model, tmp_path):
    return {
        "info": ["-m", "msrnn", "info", model],
        "generate": ["-m", "msrnn", "generate", model, "--prompt", "the sea", *SMALL],
        "convert": ["-m", "msrnn", "convert", model, str(tmp_path / "new")],
        "converters": ["-m", "converters", model, str(tmp_path / "new")],
        "help": ["-m", "msrnn", "--help"],
        "version": ["-m", "msrnn", "--version"],
        "refusal": ["-m", "msrnn", "info", "/nowhere"],
        "invalid": ["-m", "msrnn", "info"],
    }[name]


@pytest.mark.parametrize(
    ("name", "unbuffered"),
    [(name, "") for name in ("info", "generate", "convert", "converters", "help", "version")]
    + [("help", "1"), ("version", "1")],
)
def test_full_output_is_one_sentence(name, unbuffered, model, tmp_path):
    done = start(words_of(name, model, tmp_path), ">/dev/full", {"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "msrnn: cannot write the output (No space left on device)"
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("name", "code", "redirection"),
    [("info", 0, x) for x in ("2>/dev/full", "2>&-", ">/dev/full 2>/dev/full", ">&- 2>&-", ">&-", "<&- >&- 2>&-")]
    + [(name, code, x) for name, code in (("refusal", 1), ("invalid", 2)) for x in ("2>/dev/full", ">&-", "<&- >&- 2>&-")],
)
def test_full_and_closed_streams_keep_the_exit_code(name, code, redirection, model, tmp_path):
    done = start(words_of(name, model, tmp_path), redirection)
    if name == "info" and redirection.startswith(">/dev/full"):
        code = 1
    assert done.returncode == code
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("name", ["info", "convert", "help"])
def test_a_closed_pipe_is_no_message(name, model, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        command = [sys.executable, *words_of(name, model, tmp_path)]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, timeout=120)
    assert (done.returncode, done.stderr) == (1, b"")


PROMPT = "naïve – 世界"


def generated(model, *words, **settings):
    done = run("generate", model, *words, *SMALL, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.split(" in ")[0]


@pytest.fixture(scope="module")
def read_in_utf_8(model):
    """The line about the prompt that ``generate`` prints in a UTF-8 locale."""
    return generated(model, "--prompt", PROMPT)[1]


@pytest.mark.parametrize("source", ["--prompt", "--stdin", "--prompt-file"])
def test_text_is_utf_8_in_the_c_locale(source, model, read_in_utf_8, tmp_path):
    (tmp_path / "é.txt").write_text(PROMPT, "utf-8")
    words = {
        "--prompt": ["--prompt", PROMPT],
        "--stdin": ["--stdin"],
        "--prompt-file": ["--prompt-file", str(tmp_path / "é.txt")],
    }
    given = {"input": PROMPT} if source == "--stdin" else {}
    text, found = generated(model, *words[source], env={**os.environ, **C_LOCALE}, encoding="utf-8", **given)
    assert found == read_in_utf_8
    assert text.isascii()  # the locale has no other characters


def test_a_chat_is_utf_8_in_the_c_locale(model, tmp_path):
    def chat(environment):
        words = ["chat", model, "--system", "naïve", "--max-new-tokens", "3"]
        done = run(*words, env={**os.environ, **environment}, encoding="utf-8", input=f"{PROMPT}\n/save {tmp_path / 'chat'}\n")
        assert done.returncode == 0, done.stderr
        return (tmp_path / "chat").read_bytes()

    assert chat({"PYTHONUTF8": "1"}) == chat(C_LOCALE)


@pytest.mark.parametrize("environment", [C_LOCALE, {"PYTHONUTF8": "1"}])
@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_invalid_bytes_are_refused(option, environment, model):
    command = {"--prompt": ["generate", model], "--system": ["chat", model]}[option]
    words = [os.fsencode(word) for word in (sys.executable, "-m", "msrnn", *command, option)] + [b"a\xffb"]
    done = subprocess.run(words, capture_output=True, env={**os.environ, **environment}, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert done.stderr.startswith(b"msrnn: cannot read ")
    assert done.stderr.count(b"\n") == 1


def test_ctrl_c_ends_convert_with_130(model, tmp_path):
    """The signal arrives at once after the imports, before or during the work."""
    code = "import os, signal, sys, converters, converters.__main__ as program\n"
    code += f"converters.convert = lambda *args, **settings: os.kill(os.getpid(), {int(signal.SIGINT)})\n"
    code += "import time; signal.signal(signal.SIGINT, signal.default_int_handler)\nsys.exit(program.main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, model, str(tmp_path / "new")], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (130, b"\nstopped\n")
