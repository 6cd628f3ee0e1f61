"""A conversation whose whole past is a state: bounded, and a value, so that undo and branches are variables.

What holds at every turn: before the model answers, the state has read exactly the ids of the whole conversation as the chat
template writes it. Only what is new is read. Where the template writes what is past otherwise than it was written (it trims an
answer, puts a space before the end mark, takes the thoughts out; or the model spelt a word in other tokens than the tokenizer
does), a state from before that place is still there, and reading goes on from it.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..cell.cell import Cell
from ..decoding.methods import write
from ..decoding.ngram_pool import Pool
from ..errors import Error
from ..reductions.contract import Reduction
from ..state.state import State
from ..text.chat_template import Message, Template
from ..text.detokenizer import Spelling
from .history import KEPT, Branch, Place, load_branch, text_of

if TYPE_CHECKING:
    import tokenizers

PROBE = "ANSWER"


@dataclass(frozen=True)
class Answer:
    """What an answer took: tokens ``read`` before it, of these ``again``; tokens ``written``, in so many ``passes``; whether it
    came to its ``end``; ``seconds`` of writing."""

    read: int
    again: int
    written: int
    passes: int
    end: bool
    seconds: float = field(compare=False)


class Piece(str):
    """Text that came in one pass, in so many ``tokens``."""

    tokens: int


class Chat:
    """A conversation with a cell, in its own chat template.

    Args:
        cell: the model; its template is ``chat_template.jinja`` of ``cell.extra_files``.
        tokenizer: as ``converters.tokenizer`` gives it.
        reduction: what bounds H.
        system: instructions for the whole conversation.
        max_new_tokens: the longest answer.
        decode: ``plain``, ``jacobi`` or ``lookahead``; the same answers, in other ways several tokens a pass.
        choice: ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``generator``, as :func:`msrnn.stream` takes them.

    Attributes:
        branches: every conversation there is, by name; ``name`` is the one that goes on.
        last: what the last answer took.

    Raises:
        Error: no template, one that cannot hold a conversation, settings that ``stream`` refuses.
    """

    def __init__(
        self,
        cell: Cell,
        tokenizer: "tokenizers.Tokenizer",
        *,
        reduction: Reduction | str = "tova:1024",
        system: str | None = None,
        max_new_tokens: int = 512,
        decode: str = "plain",
        **choice: Any,
    ):
        self.cell, self.tokenizer, self.max_new_tokens, self.decode, self.choice = (
            cell,
            tokenizer,
            max_new_tokens,
            decode,
            choice,
        )
        self._pool = Pool()  # of all that was said: guesses
        source = cell.extra_files.get("chat_template.jinja")
        if source is None:
            raise Error("the model has no chat template (a base model?); msrnn generate continues a text")
        start = Place((), cell.initial_state(1, reduction), 0)
        messages = () if system is None else ({"role": "system", "content": text_of(system)},)
        bos, eos = cell.config.bos_token_id, next(iter(cell.config.eos_token_ids), None)
        names = ("" if i is None else tokenizer.id_to_token(i) or "" for i in (bos, eos))
        self.template = Template(source.decode(errors="replace"), *names)
        self._ends = self._end_ids(messages)
        self.name, self.branches = "main", {"main": Branch(messages, (start,))}
        self.last: Answer | None = None
        token = torch.zeros(1, 1, dtype=torch.int64, device=start.state.clock.device)
        write(cell, token, start.state, decode, max_new_tokens=max_new_tokens, **choice)  # what it refuses, it refuses now

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation of this branch."""
        return self.branches[self.name].messages

    @property
    def ids(self) -> tuple[int, ...]:
        """All that ``state`` has read."""
        return self.branches[self.name].trail[-1].ids

    @property
    def state(self) -> State:
        """H after the last answer; what the template puts behind an answer is read with the next question."""
        return self.branches[self.name].trail[-1].state

    def say(self, text: str) -> Generator[Piece, None, None]:
        """The answer to ``text``, piece by piece. Whoever stops listening (``close``, ctrl-C) ends the answer there: what was
        said stays in the conversation. Where it had not begun, the conversation is as it was before.

        Raises:
            Error: no text, or a conversation that the template refuses.
        """
        name, branch = self.name, self.branches[self.name]
        messages = (*branch.messages, {"role": "user", "content": text_of(text)})
        said, ids = len(messages) + 1, self._encode(self.template(messages, ask=True))
        if not ids:
            raise Error("the conversation becomes no token; expected a template or a text that does")
        on_the_way = [p for p in branch.trail if len(p.ids) < len(ids) and p.ids == ids[: len(p.ids)]]
        start, *trail = {p.said: p for p in on_the_way}.values()  # of each turn the longest
        trail = [start, *trail[-KEPT:]]
        known = trail[-1]
        new = torch.tensor([ids[len(known.ids) :]], device=known.state.clock.device)  # (1, T)
        with torch.no_grad():
            _, state = self.cell(new[:, :-1], known.state, last_only=True)
        asked = Place(ids[:-1], state, said)
        if self.decode == "lookahead":
            self._pool.add(new[0].tolist())
        spelt, written, pieces = Spelling(self.tokenizer), list[int](), list[Piece]()
        settings = {"max_new_tokens": self.max_new_tokens, "eos_token_id": self._ends, **self.choice}
        answer = write(self.cell, new[:, -1:], state, self.decode, self._pool, **settings)
        begun, passes = time.perf_counter(), 0
        try:
            for tokens, now in answer:
                written += tokens
                state = now  # after the tokens: ctrl-C may come between the two
                passes += 1
                piece = Piece("".join(spelt(token) for token in tokens if token not in self._ends))
                if piece:
                    piece.tokens = len(tokens)
                    pieces.append(piece)
                    yield piece
        finally:
            if (count := int(state.clock) - len(ids)) > 0:  # tokens of the answer that were read
                answered = Place((*ids, *written[:count]), state, said)
                messages = (*messages, {"role": "assistant", "content": "".join(pieces)})
                self.branches[name] = Branch(messages, (*trail, asked, answered))
                again = len(branch.trail[-1].ids) - len(known.ids)
                end, seconds = written[count - 1] in self._ends, time.perf_counter() - begun
                self.last = Answer(new.shape[1], again, count, passes, end, seconds)

    def undo(self) -> None:
        """Take back the last turn: question and answer.

        Raises:
            Error: there is none.
        """
        self.branches[self.name] = self.branches[self.name].undone()

    def fork(self, name: str | None = None) -> str:
        """Start a branch from here and go on in it; gives its name.

        Raises:
            Error: the name is taken.
        """
        if name in self.branches:
            raise Error(f"branch {name!r} exists already; switch goes there")
        name = name or self._free(self.name)
        self.branches[name] = self.branches[self.name]
        self.name = name
        return name

    def switch(self, name: str) -> None:
        """Go on in another branch.

        Raises:
            Error: there is none of this name.
        """
        if name not in self.branches:
            raise Error(f"no branch is called {name!r}; there are {', '.join(self.branches)}")
        self.name = name

    def save(self, path: str | Path) -> None:
        """Write this branch to one file: a saved state (``msrnn.load_state`` reads it too) that also holds the words.

        Raises:
            Error: something else has that name; it cannot be written.
        """
        self.branches[self.name].save(path)

    def load(self, path: str | Path) -> str:
        """Go on, in a new branch, from what :meth:`save` wrote; gives the branch's name.

        Raises:
            Error: no saved chat, a damaged one, one of another model or under another operator.
        """
        branch = load_branch(path, self.cell, self.branches[self.name].trail[0])
        self.name = self._free(Path(path).stem)
        self.branches[self.name] = branch
        return self.name

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)  # the template writes its own marks

    def _end_ids(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Ids that end an answer: the model's own, and the mark that the template puts behind one."""
        turn = ({"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": PROBE})
        before, found, tail = self.template((*messages, *turn), ask=False).rpartition(PROBE)
        if not found or "QUESTION" not in before:
            raise Error("the chat template leaves out what was said; expected it to write the conversation")
        marks = self.tokenizer.get_added_tokens_decoder()
        mark = [i for i in self._encode(tail) if i in marks and not marks[i].content.isspace()][:1]
        return tuple({*self.cell.config.eos_token_ids, *(i for i in mark if i < self.cell.config.vocab_size)})

    def _free(self, name: str) -> str:
        names = (name if n == 1 else f"{name}-{n}" for n in range(1, len(self.branches) + 2))
        return next(n for n in names if n not in self.branches)
