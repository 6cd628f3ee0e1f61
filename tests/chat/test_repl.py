"""`msrnn chat` in a pseudo-terminal, with a tiny random model."""

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest
import torch
from support.command_line import PATIENCE
from support.tiny_chat import tiny_chat
from support.tiny_tokenizer import TEMPLATES, chat_cell, tiny_tokenizer

import msrnn
from msrnn.chat.repl import run_repl

LINES = ("hello the other", "what on earth is it?", "the end")
PROMPT = re.compile(r"[\w-]+> $")
ENVIRONMENT = {**os.environ, "TERM": "dumb", "INPUTRC": os.devnull, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    chat_cell(seed=3, dtype=torch.float32).save(path)
    return path


@pytest.fixture
def plain(folder):
    """A function that returns the same chat without a terminal."""
    cell = msrnn.load(folder)
    return lambda: msrnn.Chat(cell, tiny_tokenizer(), reduction="tova:24", max_new_tokens=20)


def reply(chat, text):
    return "".join(chat.reply(text))


class Terminal:
    """A process in a pseudo-terminal: its output is read, and its input is typed."""

    def __init__(self, folder, *args):
        ours, its = pty.openpty()
        command = [sys.executable, "-m", "msrnn", "chat", str(folder), "--reduction", "tova:24", *map(str, args)]
        # the shell is a session leader and opens the terminal, so that ctrl-C in the terminal is sent to it
        shell = ["sh", "-c", f'exec <>{os.ttyname(its)} >&0 2>&0; stty cols 500; exec "$@"', "sh", *command]
        self.process = subprocess.Popen(shell, start_new_session=True, env=ENVIRONMENT)
        self.file, self.shown = ours, ""
        self.wait(PROMPT)
        os.close(its)

    def wait(self, pattern, timeout=PATIENCE):
        """Read output until it contains ``pattern``; return the output since the last call."""
        end, text = time.monotonic() + timeout, ""
        while not re.search(pattern, text):
            assert time.monotonic() < end, f"no {pattern!r} in {text!r}"
            os.set_blocking(self.file, False)
            try:
                new = os.read(self.file, 65536).decode(errors="replace").replace("\r", "")
            except BlockingIOError:
                time.sleep(0.01)
                continue
            except OSError:  # the process has closed its side
                assert self.process.wait(PATIENCE) is not None
                break
            text += new
        self.shown += text
        return text

    def type(self, text):
        os.write(self.file, text.encode())

    def send(self, line):
        """Type a line; return the output between its echo and the next prompt."""
        self.type(line + "\n")
        _, echo, output = self.wait(r"\n[\w-]+> $").partition(line + "\n")
        assert echo
        return output.rpartition("\n")[0]

    def reply(self, line):
        """Send a message; return the reply without the note below it."""
        text, note = re.fullmatch(r"(.*)\n(\S*\[[^\n]*H holds [\d.]+ MB\]\S*)", self.send(line), re.DOTALL).groups()
        assert "tokens read" in note
        return text

    def leave(self):
        """Type ctrl-D; return the exit status and check that no traceback was printed."""
        self.type("\x04")
        self.wait("(?!)")
        assert "Traceback" not in self.shown
        assert "Error" not in self.shown
        return self.process.wait(PATIENCE)


@pytest.fixture
def terminal(folder):
    started = []

    def start(*args):
        started.append(Terminal(folder, *args))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        os.close(one.file)


def test_a_conversation_with_branches_and_files(terminal, plain, tmp_path):
    chat, session = plain(), terminal("--max-new-tokens", 20)
    assert session.reply(LINES[0]) == reply(chat, LINES[0])
    assert session.reply("a mistake") == reply(chat, "a mistake")
    assert "main: 1 turn" in session.send("/undo")
    chat.undo()
    assert session.reply(LINES[1]) == reply(chat, LINES[1])
    assert "side: 2 turns" in session.send("/fork side")
    chat.fork("side")
    assert session.reply(LINES[2]) == reply(chat, LINES[2])
    shown = session.send("/state")
    assert f"{len(chat.ids)} tokens read" in shown
    assert "tova:24" in shown
    assert "branches: main (2 turns), side (3 turns)" in shown
    assert "main: 2 turns" in session.send("/switch main")
    chat.switch("main")
    assert session.reply("other") == reply(chat, "other")
    assert "main: 3 turns" not in session.send(f"/save {tmp_path / 'talk'}")
    for line, complaint in {
        "/switch nowhere": "branch 'nowhere' does not exist; expected one of main, side",
        "/fork side": "exists already",
        "/load /nowhere": "/nowhere",
        f"/save {tmp_path}": "is a folder",
        "/load": "needs a file",
        "/undo 2": "expected none",
        "/nonsense": "'/nonsense' is not a command",
    }.items():
        output = session.send(line)
        assert output.startswith("msrnn: ")
        assert complaint in output
        assert "\n" not in output
    assert "/undo" in session.send("/help")
    assert session.send("") == ""
    assert session.leave() == 0

    other = terminal("--max-new-tokens", 20)
    assert "talk: 3 turns" in other.send(f"/load {tmp_path / 'talk'}")
    assert other.reply(LINES[2]) == reply(chat, LINES[2])
    other.type("/quit\n")
    other.wait("(?!)")
    assert other.process.wait(PATIENCE) == 0


def test_ctrl_c_stops_the_reply_and_not_the_chat(terminal):
    session = terminal("--max-new-tokens", 100_000)
    for line in LINES[:2]:
        session.type(line + "\n")
        begun = session.wait(re.escape(line) + r"\n\S{5}")
        session.type("\x03")
        rest = session.wait(PROMPT)
        assert "[stopped; " in rest
        assert "main> " not in begun
    assert "main (2 turns)" in session.send("/state")
    assert "main: 1 turn," in session.send("/undo")
    session.type("half a li\x03")
    assert "ctrl-C again exits" in session.wait(PROMPT)
    assert "main (1 turn)" in session.send("/state")  # after another line, the next ctrl-C counts as the first
    session.type("\x03")
    assert "ctrl-C again exits" in session.wait(PROMPT)
    assert session.leave() == 0


def test_ctrl_c_twice_at_the_prompt_exits(terminal):
    session = terminal()
    session.type("\x03")
    session.wait(PROMPT)
    session.type("\x03")
    assert "stopped" in session.wait("(?!)")
    assert session.process.wait(PATIENCE) == 130
    assert "Traceback" not in session.shown


def test_a_reply_at_the_token_limit_is_noted(terminal):
    session = terminal("--max-new-tokens", 3)
    assert "cut off at 3 tokens" in session.send(LINES[0])
    assert session.leave() == 0


def piped(folder, text, *args):
    command = [sys.executable, "-m", "msrnn", "chat", str(folder), "--reduction", "tova:24", "--max-new-tokens", "20", *args]
    return subprocess.run(command, input=text, capture_output=True, timeout=PATIENCE, env=ENVIRONMENT)


def test_lines_from_a_pipe(folder, plain):
    chat = plain()
    done = piped(folder, f"{LINES[0]}\n\n/nonsense\n{LINES[1]}\nno text: \udcff\n".encode(errors="surrogateescape"))
    assert done.returncode == 0
    answers = [reply(chat, line) for line in (*LINES[:2], "no text: \N{REPLACEMENT CHARACTER}")]
    assert done.stdout.decode() == "".join(answer + "\n" for answer in answers)
    notes = done.stderr.decode().splitlines()
    assert len(notes) == 4
    assert notes[1] == "msrnn: '/nonsense' is not a command; /help lists the commands"
    assert "\033" not in done.stderr.decode()


def test_the_note_below_a_reply_contains_its_counts(monkeypatch, capsys):
    chat = tiny_chat(seed=4, decode="jacobi", max_new_tokens=60)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(LINES)))
    run_repl(chat)
    note, stats = capsys.readouterr().err.splitlines()[-1], chat.last_reply
    assert 0 < stats.reread_tokens < stats.prompt_tokens
    reread = f"{stats.reread_tokens} re-read: the chat template rendered earlier turns differently"
    assert f"{stats.prompt_tokens} tokens read ({reread}), {stats.completion_tokens} generated" in note
    assert stats.forward_passes < stats.completion_tokens
    assert f"{stats.completion_tokens / stats.forward_passes:.2f} tokens per forward pass" in note
    assert f"{stats.completion_tokens / stats.seconds:.1f} tokens/s" in note
    assert f"H holds {chat.state.nbytes / 1e6:.2f} MB" in note


def test_equal_seeds_repeat_a_sampled_reply(folder):
    settings = ("--sample", "--temperature", "2", "--top-k", "50", "--top-p", "0.9", "--seed")
    first, second, other = (piped(folder, b"hello\n", *settings, seed).stdout for seed in "112")
    assert first == second != other


@pytest.mark.parametrize(
    ("template", "args", "complaint"),
    [
        (None, (), "has no chat template"),
        (TEMPLATES["Mistral"], ("--system", "x"), "alternate"),
        (TEMPLATES["ChatML"], ("--temperature", "0.5"), "--sample"),
        (TEMPLATES["ChatML"], ("--sample", "--temperature", "0"), "temperature is 0.0"),
    ],
)
def test_invalid_settings_raise_before_the_first_prompt(template, args, complaint, tmp_path):
    chat_cell(template, dtype=torch.float32).save(tmp_path / "model")
    done = piped(tmp_path / "model", b"hello\n", *args)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("msrnn: ")
    assert done.stderr.count(b"\n") == 1
    assert complaint in done.stderr.decode()
    assert done.stdout == b""
