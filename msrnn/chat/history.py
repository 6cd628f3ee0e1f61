"""The history of a chat branch: its messages and state checkpoints, in memory and in a file."""

import json
from pathlib import Path
from typing import NamedTuple

from ..cell.cell import Cell
from ..errors import Error
from ..reductions.contract import Reduction
from ..state.loading import load_state
from ..state.state import State
from ..storage.output_paths import check_output_file
from ..storage.safetensors_io import read_metadata
from ..text.chat_template import Message

CHECKPOINTED_TURNS = 8
"""Number of turns of a branch with a checkpoint. After an ``undo`` of more turns, the conversation is read from its start."""


class Checkpoint(NamedTuple):
    """A state, all ids that it has read, and the number of messages of the conversation at that time."""

    ids: tuple[int, ...]
    state: State
    n_messages: int


class Branch(NamedTuple):
    """A conversation.

    Attributes:
        messages: the conversation.
        checkpoints: states after growing prefixes of the conversation. The first is the initial state, the last is the newest.
    """

    messages: tuple[Message, ...]
    checkpoints: tuple[Checkpoint, ...]

    def without_last_turn(self) -> "Branch":
        """Return the branch before the last question.

        Raises:
            Error: the branch has no turn.
        """
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise Error("there is no turn to undo")
        messages = self.messages[:-2]
        return Branch(messages, tuple(c for c in self.checkpoints if c.n_messages <= len(messages)))

    def save(self, path: str | Path) -> None:
        """Write the newest state to one file, as ``State.save`` does, with the messages in its metadata.

        Raises:
            Error: ``path`` exists and is not a saved chat, or cannot be written.
        """
        check_output_file(path)
        if Path(path).is_file() and "chat" not in read_metadata(path):
            raise Error(f"{path} exists and is not a saved chat; expected a new name")
        chat = {"messages": self.messages, "ids": self.checkpoints[-1].ids}
        self.checkpoints[-1].state.save(path, metadata={"chat": json.dumps(chat)})


def load_branch(path: str | Path, cell: Cell, start: Checkpoint) -> Branch:
    """Read a file of :meth:`Branch.save` for a chat with ``cell``; ``start`` is the first checkpoint of that chat.

    Raises:
        Error: the file is not a saved chat, is damaged, or belongs to another model or operator.
    """
    state = load_state(path, device=start.state.clock.device)
    cell.check_state(state, 1)
    if (found := _row_formats(state)) != (expected := _row_formats(start.state)):
        one, other = next((a, b) for a, b in zip([*found, None], [*expected, None], strict=False) if a != b)
        raise Error(f"{path}: the state has {_printed(one)}; expected {_printed(other)}, as in this chat")
    try:
        chat = json.loads(read_metadata(path)["chat"])
        messages = tuple({"role": m["role"], "content": require_text(m["content"])} for m in chat["messages"])
        ids = tuple(chat["ids"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Error(f"{path} holds a state but no chat; msrnn.load_state reads it") from None
    roles = [m["role"] for m in messages]
    turns = ["user", "assistant"] * (len(roles) // 2)
    if roles not in (turns, ["system", *turns]) or not all(type(i) is int for i in ids) or len(ids) != int(state.clock):
        raise Error(
            f"{path}: the messages or the ids of the chat are damaged; expected the conversation that the state has read"
        )
    return Branch(messages, (start, Checkpoint(ids, state, len(messages))))


def require_text(text: str) -> str:
    """Return ``text`` if it is valid text.

    Raises:
        Error: ``text`` is not a str, or contains lone surrogates.
    """
    try:
        text.encode()  # undecodable input bytes are lone surrogates
    except (AttributeError, UnicodeError):
        raise Error(f"the message is {text!r:.60}; expected text") from None
    return text


def _row_formats(state: State) -> list[tuple[Reduction, int, int, str]]:
    return [(H.reduction, H.keys.shape[1], H.keys.shape[3], str(H.keys.dtype).removeprefix("torch.")) for H in state]


def _printed(row_format: tuple[Reduction, int, int, str] | None) -> str:
    if row_format is None:
        return "no further layer"
    operator, K, D, dtype = row_format
    return f"{operator} with {dtype} rows {K} × {D}"
