"""The plan of the table: which questions and chunks are measured, in rounds, and the measurements of one condition."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from ..cell.cell import Cell
from . import reasoning, retrieval
from .answers import split_into_batches
from .conditions import Condition
from .inputs import EvalInputs
from .lm import score_chunks
from .tasks.difficulty import DIFFICULTIES
from .tasks.example import count_tokens
from .texts import Chunk

if TYPE_CHECKING:
    import tokenizers

MEMORY, LM, RETRIEVAL, REASONING = "memory", "lm", "retrieval", "reasoning"
DEPTHS = (0.1, 0.5, 0.9)
"""Depths of the needles: neither the first nor the last sentence, which a window or the first tokens would cover."""
TASKS = (*retrieval.TASKS, *reasoning.TASKS)
"""Names of the tasks that the table can have."""
Question = TypeVar("Question", retrieval.Question, reasoning.Question)
Measure = Callable[[Cell, "tokenizers.Tokenizer", Condition], list[float]]


@dataclass(frozen=True)
class Unit:
    """Items that are measured together under one condition.

    Attributes:
        quality: MEMORY, LM, RETRIEVAL or REASONING.
        items: names of the items.
        length: maximum number of tokens that are read for an item.
        measure: function that returns one value per item: bytes of H, nats per token, a score from 0 to 1, or 0 or 1.
    """

    quality: str
    items: Sequence[str]
    length: int
    measure: Measure

    def keys(self, condition: Condition) -> list[str]:
        """Return the keys of the items in a sweep."""
        return [f"{condition.key} on {self.quality} {item}" for item in self.items]


def plan(args: argparse.Namespace, inputs: EvalInputs, chunks: Sequence[Chunk]) -> list[Unit]:
    """Return all units, round by round.

    A round has one chunk per text, one question per retrieval task and depth, and four problems per reasoning task.

    Args:
        args: arguments of the command: ``rounds``, ``tasks``, ``length``, ``difficulty``, ``seed``, ``steps``, ``shots`` and
            ``max_new_tokens``.
        inputs: the model.
        chunks: chunks of the texts.

    Raises:
        Error: the machine has too little memory for the length, or as :func:`~msrnn.eval.retrieval.generate_questions`.
    """
    texts = {chunk.text_name: chunk.text for chunk in chunks}
    retrieval_tasks = [t for t in args.tasks if t in retrieval.TASKS]
    if retrieval_tasks:
        inputs.check_memory(len(DEPTHS), ["full"], args.length)  # before prompts of this length are built
    questions = retrieval.generate_questions(
        *(inputs.tokenizer, retrieval_tasks, [args.length], DEPTHS),
        *(args.rounds, args.seed, DIFFICULTIES[args.difficulty], texts),
        progress=inputs.progress,
    )
    n_new = args.max_new_tokens
    reasoning_tasks = [t for t in args.tasks if t in reasoning.TASKS]
    problems = reasoning.generate_questions(reasoning_tasks, [args.steps], 4 * args.rounds, args.shots, args.seed)
    by_task = [  # for language modelling and for each task, one unit per round
        [_lm(batch) for batch in _rounds(chunks, args.rounds)],
        *([_retrieval(batch) for batch in group] for group in _by_task(split_into_batches(questions, len(DEPTHS)))),
        *([_reasoning(batch, inputs, n_new) for batch in group] for group in _by_task(split_into_batches(problems, 4))),
    ]
    return [_memory(chunks[0])] + [units[i] for i in range(args.rounds) for units in by_task if i < len(units)]


def _rounds(chunks: Sequence[Chunk], rounds: int) -> list[list[Chunk]]:
    """Return the first chunk of every text, then the second, and so on."""
    by_text: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_text.setdefault(chunk.text_name, []).append(chunk)
    found = [[group[i] for group in by_text.values() if i < len(group)] for i in range(rounds)]
    return [batch for batch in found if batch]


def _by_task(batches: list[list[Question]]) -> Iterable[list[list[Question]]]:
    groups: dict[str, list[list[Question]]] = {}
    for batch in batches:
        groups.setdefault(batch[0].task, []).append(batch)
    return groups.values()


def _memory(chunk: Chunk) -> Unit:
    @torch.no_grad()
    def measure(cell: Cell, _: object, condition: Condition) -> list[float]:
        _, state = cell(chunk.ids[None].to(cell.device), cell.initial_state(1, condition.reduction), last_only=True)
        return [state.nbytes]

    return Unit(MEMORY, [chunk.name], len(chunk.ids), measure)


def _lm(chunks: Sequence[Chunk]) -> Unit:
    def measure(cell: Cell, _: object, condition: Condition) -> list[float]:
        return [result.mean for result in score_chunks(cell, chunks, condition)]

    return Unit(LM, [chunk.name for chunk in chunks], len(chunks[0].ids) - 1, measure)  # the last token is not read


def _retrieval(questions: Sequence[retrieval.Question]) -> Unit:
    def measure(cell: Cell, tokenizer: "tokenizers.Tokenizer", condition: Condition) -> list[float]:
        return [r.score for r in retrieval.answer_questions(cell, tokenizer, questions, condition)]

    return Unit(RETRIEVAL, [q.name for q in questions], max(q.length + q.limit for q in questions), measure)


def _reasoning(questions: Sequence[reasoning.Question], inputs: EvalInputs, max_new_tokens: int) -> Unit:
    def measure(cell: Cell, tokenizer: "tokenizers.Tokenizer", condition: Condition) -> list[float]:
        results = reasoning.answer_questions(cell, tokenizer, questions, condition, max_new_tokens)
        return [float(r.is_right) for r in results]

    longest = max(count_tokens(inputs.tokenizer, q.prompt) for q in questions)
    return Unit(REASONING, [q.name for q in questions], longest + max_new_tokens, measure)
