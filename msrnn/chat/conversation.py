"""A conversation with a model. The KV cache of the whole conversation is a state H. Undo and branches are earlier states.

Before each reply, the state has read exactly the ids of the conversation as the chat template renders it. Only new ids are
read. A template can render earlier turns differently than before: it may strip a reply, add a space, or remove reasoning. The
tokenizer can also split a reply into other tokens than the model generated. In these cases reading resumes from the newest
checkpoint with ids that are a prefix of the new rendering.
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..cell.cell import Cell
from ..decoding.methods import StreamedTokens, stream_by_method
from ..decoding.ngram_pool import NgramPool
from ..errors import Error
from ..reductions.contract import Reduction
from ..state.state import State
from ..text.chat_template import Message
from ..text.stop_strings import StreamedText, as_stop_strings
from .history import CHECKPOINTED_TURNS, Branch, Checkpoint, load_branch, require_text
from .rendering import Renderer
from .reply import ReplyStats, TextChunk

if TYPE_CHECKING:
    import tokenizers

SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "generator")
"""Settings of :func:`msrnn.stream` that a chat passes on."""


class Chat:
    """A conversation with a cell, in the chat template of its model.

    Args:
        cell: the model, with a chat template in its ``extra_files``.
        tokenizer: the result of ``converters.tokenizer``.
        reduction: the eviction operator that bounds H.
        kv_dtype: dtype of the rows of H, as ``dtype`` of ``cell.initial_state``; ``torch.int8``: 8-bit rows.
        system: the system prompt.
        max_new_tokens: maximum number of tokens of a reply.
        decode: ``plain``, ``jacobi`` or ``lookahead``. The replies are the same; the last two need fewer forward passes.
        stop: one string or several that end a reply, as in :func:`msrnn.stream`. The text of the reply ends before it.
        chat_template: the name of a template of a model with several; None: ``tool_use`` if there are tools, or ``default``.
        template_variables: further names for the template, such as ``{"enable_thinking": False}``; of JSON types.
        tools: JSON schemas of functions that the model may call, for templates that list them.
        sampling: ``do_sample``, ``temperature``, ``top_k``, ``top_p`` and ``generator`` of :func:`msrnn.stream`.

    Attributes:
        branches: all conversations by name; ``name`` is the current one.
        last_reply: the :class:`ReplyStats` of the last reply.
        template: the compiled chat template.

    Raises:
        Error: the model has no such chat template or one that drops messages, a template variable or tool is not of JSON
            types, or :func:`msrnn.stream` refuses the settings.
    """

    def __init__(
        self,
        cell: Cell,
        tokenizer: "tokenizers.Tokenizer",
        *,
        reduction: Reduction | str = "tova:1024",
        kv_dtype: torch.dtype | str | None = None,
        system: str | None = None,
        max_new_tokens: int = 512,
        decode: str = "plain",
        stop: str | Sequence[str] | None = None,
        chat_template: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **sampling: Any,
    ):
        self.cell, self.tokenizer, self.max_new_tokens = cell, tokenizer, max_new_tokens
        self.decode, self.stop, self.sampling = decode, as_stop_strings(stop), sampling
        self._pool = NgramPool()  # of the whole conversation
        _check_sampling(sampling)
        messages = () if system is None else ({"role": "system", "content": require_text(system)},)
        self._renderer = Renderer(cell, tokenizer, messages, chat_template, template_variables, tools)
        self.template = self._renderer.template
        start = Checkpoint((), cell.initial_state(1, reduction, dtype=kv_dtype), 0)
        self.name, self.branches = "main", {"main": Branch(messages, (start,))}
        self.last_reply: ReplyStats | None = None
        self._stream(torch.zeros(1, 1, dtype=torch.int64, device=start.state.clock.device), start.state)  # checks the settings

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages of the current branch."""
        return self.branches[self.name].messages

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids that ``state`` has read."""
        return self.branches[self.name].checkpoints[-1].ids

    @property
    def state(self) -> State:
        """H after the last reply. The template's text after the reply is read with the next question."""
        return self.branches[self.name].checkpoints[-1].state

    def reply(self, text: str) -> Generator[TextChunk, None, None]:
        """Send a user message and yield the reply in chunks.

        If the generator is closed or interrupted, the reply ends there, and the conversation contains the part that was
        generated. If no token was generated, the conversation is unchanged.

        Raises:
            Error: ``text`` is not valid text, or the template rejects the conversation.
        """
        name, branch, end_ids = self.name, self.branches[self.name], self._renderer.end_ids
        messages = (*branch.messages, {"role": "user", "content": require_text(text)})
        ids = self._renderer.prompt_ids(messages)
        checkpoints = _prefixes(branch.checkpoints, ids)
        known = checkpoints[-1]
        new = torch.tensor([ids[len(known.ids) :]], device=known.state.clock.device)  # (1, T)
        with torch.no_grad():
            _, state = self.cell(new[:, :-1], known.state, last_only=True)
        prompt = Checkpoint(ids[:-1], state, len(messages) + 1)
        if self.decode == "lookahead":
            self._pool.add(new[0].tolist())
        generated, chunks = list[int](), list[TextChunk]()
        shown = StreamedText(self.tokenizer, self.stop, context=ids[-1:], starts_text=True)
        stream = self._stream(new[:, -1:], state)
        start, passes = time.perf_counter(), 0
        try:
            for step in stream:
                generated += step.tokens
                state = step.state  # last, because an interrupt can come between the two statements
                passes += 1
                if text := "".join(shown(token) for token in step.tokens if token not in end_ids):
                    chunks.append(TextChunk(text, len(step.tokens)))
                    yield chunks[-1]
            if text := shown.flush():
                chunks.append(TextChunk(text, 0))
                yield chunks[-1]
        finally:
            if (count := int(state.clock) - len(ids)) > 0:  # number of generated tokens that the state has read
                answer = Checkpoint((*ids, *generated[:count]), state, len(messages) + 1)
                messages = (*messages, {"role": "assistant", "content": "".join(chunks)})
                self.branches[name] = Branch(messages, (*checkpoints, prompt, answer))
                reread = len(branch.checkpoints[-1].ids) - len(known.ids)
                finished, seconds = shown.stopped or generated[count - 1] in end_ids, time.perf_counter() - start
                self.last_reply = ReplyStats(new.shape[1], reread, count, passes, finished, seconds)

    def undo(self) -> None:
        """Remove the last question and its reply.

        Raises:
            Error: the branch has no turn.
        """
        self.branches[self.name] = self.branches[self.name].without_last_turn()

    def fork(self, name: str | None = None) -> str:
        """Start a branch with the current history, make it the current one and return its name.

        Raises:
            Error: a branch has this name.
        """
        if name in self.branches:
            raise Error(f"branch {name!r} exists already; expected a new name (switch makes it the current branch)")
        name = name or self._free_name(self.name)
        self.branches[name] = self.branches[self.name]
        self.name = name
        return name

    def switch(self, name: str) -> None:
        """Make another branch the current one.

        Raises:
            Error: no branch has this name.
        """
        if name not in self.branches:
            raise Error(f"branch {name!r} does not exist; expected one of {', '.join(self.branches)}")
        self.name = name

    def save(self, path: str | Path) -> None:
        """Write the current branch to one file: a saved state (also for ``msrnn.load_state``) that contains the messages.

        Raises:
            Error: ``path`` exists and is not a saved chat, or cannot be written.
        """
        self.branches[self.name].save(path)

    def load(self, path: str | Path) -> str:
        """Read a file of :meth:`save` into a new branch, make it the current one and return its name.

        Raises:
            Error: the file is not a saved chat, is damaged, or belongs to another model or operator.
        """
        branch = load_branch(path, self.cell, self.branches[self.name].checkpoints[0])
        self.name = self._free_name(Path(path).stem)
        self.branches[self.name] = branch
        return self.name

    def _stream(self, tokens: torch.Tensor, state: State) -> Iterator[StreamedTokens]:
        ends = {"eos_token_id": self._renderer.end_ids, "stop": self.stop, "tokenizer": self.tokenizer}
        settings = {"max_new_tokens": self.max_new_tokens, **ends, **self.sampling}
        return stream_by_method(self.cell, tokens, state, self.decode, self._pool, **settings)

    def _free_name(self, name: str) -> str:
        names = (name if n == 1 else f"{name}-{n}" for n in range(1, len(self.branches) + 2))
        return next(n for n in names if n not in self.branches)


def _check_sampling(sampling: Mapping[str, Any]) -> None:
    for name in sampling:
        if name not in SAMPLING:
            hint = "variables of the chat template go into template_variables"
            raise Error(f"Chat has no setting {name!r:.60}; expected one of {', '.join(SAMPLING)} ({hint})")


def _prefixes(checkpoints: tuple[Checkpoint, ...], ids: tuple[int, ...]) -> list[Checkpoint]:
    """Return the checkpoints that have read a proper prefix of ``ids``: the first, and the newest one of each recent turn."""
    valid = [c for c in checkpoints if len(c.ids) < len(ids) and c.ids == ids[: len(c.ids)]]
    first, *newest = {c.n_messages: c for c in valid}.values()
    return [first, *newest[-CHECKPOINTED_TURNS:]]
