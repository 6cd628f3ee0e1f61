"""The terminal's side of a chat: lines in, the answer as it comes, and the commands."""

import os
import sys
from contextlib import closing, suppress

from ..errors import Error
from ..state.state import State
from ..text.stream_printer import Live
from .conversation import Chat

HELP = """/undo          take the last turn back
/fork [NAME]   start a branch from here and go on in it
/switch NAME   go on in another branch
/save FILE     write this branch, state and words, to one file
/load FILE     go on, in a new branch, from what /save wrote
/state         what is held
/help          this
/quit          leave; so does ctrl-D. ctrl-C stops an answer"""


def talk(chat: Chat) -> None:
    """Read lines from standard input until it ends or ``/quit``: a line is said, or is a command. Answers go to standard
    output, notes and refusals to standard error. ctrl-C stops an answer; at the prompt, twice, it leaves."""
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    if typed:
        with suppress(ImportError):
            import readline  # noqa: F401  (input() edits lines with it)
        _note("/help lists the commands")
    warned = False
    while True:
        try:
            line = input(f"{chat.name}> " if typed else "").strip()
            warned = False
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                print(_command(chat, line), flush=True)
            elif line:
                _answer(chat, line)
        except EOFError:
            if typed:
                print()
            return
        except KeyboardInterrupt:
            if warned or not typed:
                raise
            warned = True
            print()
            _note("ctrl-C again leaves; so do ctrl-D and /quit")
        except Error as refused:
            print(f"msrnn: {refused}", file=sys.stderr, flush=True)
        except (RuntimeError, MemoryError) as wrong:  # torch's, for want of room; the conversation is worth keeping
            print(f"msrnn: {(str(wrong) or 'out of memory').splitlines()[0]}", file=sys.stderr, flush=True)


def _answer(chat: Chat, line: str) -> None:
    stopped, before, live = False, chat.last, Live()
    try:
        with closing(chat.say(line)) as pieces:
            for piece in pieces:
                live.show(piece, piece.tokens)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        stopped = True
    print(flush=True)
    took = chat.last
    if took is None or took is before:
        _note("stopped before the answer began; nothing was said")
        return
    again = f" ({took.again} of them again: the template writes them otherwise)" if took.again else ""
    how = "stopped; " if stopped else "" if took.end else f"cut short at {chat.max_new_tokens} tokens; "
    pace = f"{took.written} written, {took.written / max(took.seconds, 1e-9):.1f} tokens/s"
    if took.passes < took.written:
        pace += f", {took.written / took.passes:.2f} tokens a pass"
    _note(f"{how}{took.read} tokens read{again}, {pace}; H holds {chat.state.nbytes / 1e6:.2f} MB")


def _command(chat: Chat, line: str) -> str:
    """Carry out one command; what there is to say about it."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if not argument.isprintable():
        raise Error(f"{name} takes a name; found {argument!r:.60}")
    if name in ("/switch", "/save", "/load") and not argument:
        raise Error(f"{name} needs a {'name' if name == '/switch' else 'file'}; /help lists the commands")
    if name in ("/undo", "/state", "/help") and argument:
        raise Error(f"{name} takes nothing; found {argument!r:.60}")
    path = os.path.expanduser(argument)
    if name == "/undo":
        chat.undo()
        return _where(chat)
    if name == "/fork":
        chat.fork(argument or None)
        return _where(chat)
    if name == "/switch":
        chat.switch(argument)
        return _where(chat)
    if name == "/save":
        chat.save(path)
        return f"{argument}: {_turns(chat, chat.name)}, {os.path.getsize(path) / 1e6:.2f} MB"
    if name == "/load":
        chat.load(path)
        return _where(chat)
    if name == "/state":
        return _state(chat)
    if name == "/help":
        return HELP
    raise Error(f"no command is called {name!r:.60}; /help lists them")


def _where(chat: Chat) -> str:
    return f"{chat.name}: {_turns(chat, chat.name)}, {int(chat.state.clock)} tokens read"


def _turns(chat: Chat, name: str) -> str:
    turns = len(chat.branches[name].messages) // 2
    return f"{turns} turn{'' if turns == 1 else 's'}"


def _state(chat: Chat) -> str:
    kept: dict[int, State] = {id(p.state): p.state for branch in chat.branches.values() for p in branch.trail}
    branches = ", ".join(f"{name} ({_turns(chat, name)})" for name in chat.branches)
    nbytes = sum(state.nbytes for state in kept.values())
    return f"{chat.state}\nbranches: {branches}; for undo and branches {len(kept)} states are kept, {nbytes / 1e6:.2f} MB"


def _note(text: str) -> None:
    dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{dim}[{text}]{plain}", file=sys.stderr, flush=True)
