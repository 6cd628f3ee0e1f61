"""`msrnn chat` as a person meets it: in a pseudo-terminal, with a tiny model made on the spot."""

import os
import pty
import re
import subprocess
import sys
import time

import pytest
import torch
from support.tiny_tokenizer import TEMPLATES, chat_cell, tiny_tokenizer

import msrnn

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
    """The same chat without a terminal."""
    cell = msrnn.load(folder)
    return lambda: msrnn.Chat(cell, tiny_tokenizer(), reduction="tova:24", max_new_tokens=20)


def said(chat, text):
    return "".join(chat.say(text))


class Terminal:
    """A process whose terminal is ours: what it shows, what is typed."""

    def __init__(self, folder, *args):
        ours, its = pty.openpty()
        command = [sys.executable, "-m", "msrnn", "chat", str(folder), "--reduction", "tova:24", *map(str, args)]
        # the shell leads a session and opens the terminal, which makes it the one that ctrl-C in it goes to
        shell = ["sh", "-c", f'exec <>{os.ttyname(its)} >&0 2>&0; stty cols 500; exec "$@"', "sh", *command]
        self.process = subprocess.Popen(shell, start_new_session=True, env=ENVIRONMENT)
        self.file, self.shown = ours, ""
        self.wait(PROMPT, 60)
        os.close(its)

    def wait(self, pattern, timeout=30):
        """Read until ``pattern`` is found in what has been shown since the last call; give that text."""
        end, text = time.monotonic() + timeout, ""
        while not re.search(pattern, text):
            assert time.monotonic() < end, f"no {pattern!r} in {text!r}"
            os.set_blocking(self.file, False)
            try:
                new = os.read(self.file, 65536).decode(errors="replace").replace("\r", "")
            except BlockingIOError:
                time.sleep(0.01)
                continue
            except OSError:  # the other side has gone
                assert self.process.wait(30) is not None
                break
            text += new
        self.shown += text
        return text

    def type(self, text):
        os.write(self.file, text.encode())

    def say(self, line):
        """Type a line; what is shown between its echo and the next prompt."""
        self.type(line + "\n")
        _, echo, reply = self.wait(r"\n[\w-]+> $").partition(line + "\n")
        assert echo
        return reply.rpartition("\n")[0]

    def answer(self, line):
        """The answer alone, without the note below it."""
        answer, note = re.fullmatch(r"(.*)\n(\S*\[[^\n]*H holds [\d.]+ MB\]\S*)", self.say(line), re.DOTALL).groups()
        assert "tokens read" in note
        return answer

    def leave(self):
        """ctrl-D; the exit status, once it is known that nothing like a traceback was ever shown."""
        self.type("\x04")
        self.wait("(?!)")
        assert "Traceback" not in self.shown
        assert "Error" not in self.shown
        return self.process.wait(30)


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


def test_a_conversation_with_its_branches_and_files(terminal, plain, tmp_path):
    chat, there = plain(), terminal("--max-new-tokens", 20)
    assert there.answer(LINES[0]) == said(chat, LINES[0])
    assert there.answer("a mistake") == said(chat, "a mistake")
    assert "main: 1 turn" in there.say("/undo")
    chat.undo()
    assert there.answer(LINES[1]) == said(chat, LINES[1])
    assert "side: 2 turns" in there.say("/fork side")
    chat.fork("side")
    assert there.answer(LINES[2]) == said(chat, LINES[2])
    held = there.say("/state")
    assert f"{len(chat.ids)} tokens read" in held
    assert "tova:24" in held
    assert "branches: main (2 turns), side (3 turns)" in held
    assert "main: 2 turns" in there.say("/switch main")
    chat.switch("main")
    assert there.answer("other") == said(chat, "other")
    assert "main: 3 turns" not in there.say(f"/save {tmp_path / 'talk'}")
    for line, complaint in {
        "/switch nowhere": "no branch is called 'nowhere'; there are main, side",
        "/fork side": "exists already",
        "/load /nowhere": "/nowhere",
        f"/save {tmp_path}": "is a folder",
        "/load": "needs a file",
        "/undo 2": "takes nothing",
        "/nonsense": "no command is called '/nonsense'",
    }.items():
        reply = there.say(line)
        assert reply.startswith("msrnn: ")
        assert complaint in reply
        assert "\n" not in reply
    assert "/undo" in there.say("/help")
    assert there.say("") == ""
    assert there.leave() == 0

    other = terminal("--max-new-tokens", 20)
    assert "talk: 3 turns" in other.say(f"/load {tmp_path / 'talk'}")
    assert other.answer(LINES[2]) == said(chat, LINES[2])
    other.type("/quit\n")
    other.wait("(?!)")
    assert other.process.wait(30) == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(terminal):
    there = terminal("--max-new-tokens", 100_000)
    for line in LINES[:2]:
        there.type(line + "\n")
        begun = there.wait(re.escape(line) + r"\n\S{5}")
        there.type("\x03")
        rest = there.wait(PROMPT)
        assert "[stopped; " in rest
        assert "main> " not in begun
    assert "main (2 turns)" in there.say("/state")
    assert "main: 1 turn," in there.say("/undo")
    there.type("half a li\x03")
    assert "ctrl-C again leaves" in there.wait(PROMPT)
    assert "main (1 turn)" in there.say("/state")  # a line between: the next is a first one again
    there.type("\x03")
    assert "ctrl-C again leaves" in there.wait(PROMPT)
    assert there.leave() == 0


def test_ctrl_c_twice_at_the_prompt_leaves(terminal):
    there = terminal()
    there.type("\x03")
    there.wait(PROMPT)
    there.type("\x03")
    assert "stopped" in there.wait("(?!)")
    assert there.process.wait(30) == 130
    assert "Traceback" not in there.shown


def test_an_answer_cut_short_says_so(terminal):
    there = terminal("--max-new-tokens", 3)
    assert "cut short at 3 tokens" in there.say(LINES[0])
    assert there.leave() == 0


def piped(folder, text, *args):
    command = [sys.executable, "-m", "msrnn", "chat", str(folder), "--reduction", "tova:24", "--max-new-tokens", "20", *args]
    return subprocess.run(command, input=text, capture_output=True, timeout=120, env=ENVIRONMENT)


def test_lines_from_a_pipe(folder, plain):
    chat = plain()
    done = piped(folder, f"{LINES[0]}\n\n/nonsense\n{LINES[1]}\nno text: \udcff\n".encode(errors="surrogateescape"))
    assert done.returncode == 0
    answers = [said(chat, line) for line in (*LINES[:2], "no text: \N{REPLACEMENT CHARACTER}")]
    assert done.stdout.decode() == "".join(answer + "\n" for answer in answers)
    notes = done.stderr.decode().splitlines()
    assert len(notes) == 4
    assert notes[1] == "msrnn: no command is called '/nonsense'; /help lists them"
    assert "\033" not in done.stderr.decode()


def test_drawing_is_repeatable(folder):
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
def test_refused_before_the_first_prompt(template, args, complaint, tmp_path):
    chat_cell(template, dtype=torch.float32).save(tmp_path / "model")
    done = piped(tmp_path / "model", b"hello\n", *args)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("msrnn: ")
    assert done.stderr.count(b"\n") == 1
    assert complaint in done.stderr.decode()
    assert done.stdout == b""
