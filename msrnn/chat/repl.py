"""The read-eval-print loop of ``msrnn chat``: messages, streamed replies and commands."""

import os
import sys
from contextlib import closing, suppress

from ..errors import Error
from ..state.state import State
from ..text.stream_printer import StreamPrinter
from .conversation import Chat

HELP = """/undo          remove the last question and its reply
/fork [NAME]   start a branch with the current history and continue in it
/switch NAME   continue in another branch
/save FILE     write this branch (state and messages) to one file
/load FILE     read a file of /save into a new branch
/state         show the KV cache and the branches
/help          show this list
/quit          exit, as ctrl-D does; ctrl-C stops a reply"""


def run_repl(chat: Chat) -> None:
    """Read lines from standard input until its end or ``/quit``; a line is a message or a command.

    Replies go to standard output, notes and errors to standard error. ctrl-C stops a reply. At the prompt ctrl-C twice exits.
    """
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  (enables line editing in input())
        _note("/help lists the commands")
    warned = False
    while True:
        try:
            line = input(f"{chat.name}> " if interactive else "").strip()
            warned = False
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                print(_run_command(chat, line), flush=True)
            elif line:
                _print_reply(chat, line)
        except EOFError:
            if interactive:
                print()
            return
        except KeyboardInterrupt:
            if warned or not interactive:
                raise
            warned = True
            print()
            _note("ctrl-C again exits; so do ctrl-D and /quit")
        except Error as error:
            print(f"msrnn: {error}", file=sys.stderr, flush=True)
        except (RuntimeError, MemoryError) as error:  # torch out of memory: the conversation is still valid
            print(f"msrnn: {(str(error) or 'out of memory').splitlines()[0]}", file=sys.stderr, flush=True)


def _print_reply(chat: Chat, line: str) -> None:
    stopped, before, printer = False, chat.last_reply, StreamPrinter()
    try:
        with closing(chat.reply(line)) as chunks:
            for chunk in chunks:
                printer.show(chunk, chunk.n_tokens)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        stopped = True
    print(flush=True)
    stats = chat.last_reply
    if stats is None or stats is before:
        _note("stopped before the first token; the conversation is unchanged")
        return
    reread = (
        f" ({stats.reread_tokens} re-read: the chat template rendered earlier turns differently)" if stats.reread_tokens else ""
    )
    ending = "stopped; " if stopped else "" if stats.finished else f"cut off at {chat.max_new_tokens} tokens; "
    speed = f"{stats.completion_tokens} generated, {stats.completion_tokens / max(stats.seconds, 1e-9):.1f} tokens/s"
    if stats.forward_passes < stats.completion_tokens:
        speed += f", {stats.completion_tokens / stats.forward_passes:.2f} tokens per forward pass"
    _note(f"{ending}{stats.prompt_tokens} tokens read{reread}, {speed}; H holds {chat.state.nbytes / 1e6:.2f} MB")


def _run_command(chat: Chat, line: str) -> str:
    """Run one command and return its output."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if not argument.isprintable():
        raise Error(f"{name}: the argument is {argument!r:.60}; expected printable text")
    if name in ("/switch", "/save", "/load") and not argument:
        raise Error(f"{name} needs a {'branch name' if name == '/switch' else 'file'}; /help lists the commands")
    if name in ("/undo", "/state", "/help") and argument:
        raise Error(f"{name}: the argument is {argument!r:.60}; expected none")
    path = os.path.expanduser(argument)
    if name == "/save":
        chat.save(path)
        return f"{argument}: {_turns(chat, chat.name)}, {os.path.getsize(path) / 1e6:.2f} MB"
    if name == "/state":
        return _state(chat)
    if name == "/help":
        return HELP
    if name == "/undo":
        chat.undo()
    elif name == "/fork":
        chat.fork(argument or None)
    elif name == "/switch":
        chat.switch(argument)
    elif name == "/load":
        chat.load(path)
    else:
        raise Error(f"{name!r:.60} is not a command; /help lists the commands")
    return f"{chat.name}: {_turns(chat, chat.name)}, {int(chat.state.clock)} tokens read"


def _turns(chat: Chat, name: str) -> str:
    turns = len(chat.branches[name].messages) // 2
    return f"{turns} turn{'' if turns == 1 else 's'}"


def _state(chat: Chat) -> str:
    states: dict[int, State] = {id(c.state): c.state for branch in chat.branches.values() for c in branch.checkpoints}
    branches = ", ".join(f"{name} ({_turns(chat, name)})" for name in chat.branches)
    nbytes = sum(state.nbytes for state in states.values())
    return f"{chat.state}\nbranches: {branches}; {len(states)} states are kept for undo and branches, {nbytes / 1e6:.2f} MB"


def _note(text: str) -> None:
    dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{dim}[{text}]{plain}", file=sys.stderr, flush=True)
