"""A conversation, and the states that have read it: as a value, and on disk."""

import json
from pathlib import Path
from typing import NamedTuple

from ..cell.cell import Cell
from ..errors import Error
from ..reductions.contract import Reduction
from ..state.serialization import load_state, save_state
from ..state.state import State
from ..storage.safetensors_io import read_metadata
from ..text.chat_template import Message

KEPT = 8
"""Turns of a branch whose states are kept for ``undone``; going back further reads the conversation again."""


class Place(NamedTuple):
    """A state and every id it has read, when the conversation had ``said`` messages."""

    ids: tuple[int, ...]
    state: State
    said: int


class Branch(NamedTuple):
    """A conversation, and states that have read ever longer beginnings of it: the empty one first, the newest last."""

    messages: tuple[Message, ...]
    trail: tuple[Place, ...]

    def undone(self) -> "Branch":
        """Without the last turn.

        Raises:
            Error: there is none.
        """
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise Error("there is no turn to undo")
        left = self.messages[:-2]
        return Branch(left, tuple(p for p in self.trail if p.said <= len(left)))

    def save(self, path: str | Path) -> None:
        """Write the newest state to one file, as ``State.save`` does, and the words beside it.

        Raises:
            Error: something else has that name; it cannot be written.
        """
        if Path(path).is_file() and "chat" not in read_metadata(path):
            raise Error(f"{path} exists and is no saved chat; expected a new name")
        words = {"messages": self.messages, "ids": self.trail[-1].ids}
        save_state(self.trail[-1].state, path, {"chat": json.dumps(words)})


def load_branch(path: str | Path, cell: Cell, start: Place) -> Branch:
    """What :meth:`Branch.save` wrote, for a chat of ``cell`` that began at ``start``.

    Raises:
        Error: no saved chat, a damaged one, one of another model or under another operator.
    """
    state = load_state(path, device=start.state.clock.device)
    cell.check_state(state, 1)
    if (found := _form(state)) != (own := _form(start.state)):
        odd = next((a, b) for a, b in zip([*found, None], [*own, None], strict=False) if a != b)
        raise Error(f"{path}: the state is under {_operator(odd[0])}, this chat under {_operator(odd[1])}")
    try:
        words = json.loads(read_metadata(path)["chat"])
        messages = tuple({"role": m["role"], "content": text_of(m["content"])} for m in words["messages"])
        ids = tuple(words["ids"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Error(f"{path} holds a state but no chat") from None
    roles = [m["role"] for m in messages]
    turns = ["user", "assistant"] * (len(roles) // 2)
    if roles not in (turns, ["system", *turns]) or not all(type(i) is int for i in ids) or len(ids) != int(state.clock):
        raise Error(f"{path}: the words of the chat are damaged, or are not what its state has read")
    return Branch(messages, (start, Place(ids, state, len(messages))))


def text_of(text: str) -> str:
    """``text``, if it is text.

    Raises:
        Error: it is something else, or holds what is no Unicode.
    """
    try:
        text.encode()  # bytes that were no text come in as lone surrogates
    except (AttributeError, UnicodeError):
        raise Error(f"what is said is {text!r:.60}; expected text") from None
    return text


def _form(state: State) -> list[tuple[Reduction, int, int]]:
    return [(H.reduction, H.keys.shape[1], H.keys.shape[3]) for H in state]


def _operator(form: tuple[Reduction, int, int] | None) -> str:
    return "no more layers" if form is None else f"{form[0]} with rows {form[1]} × {form[2]}"
