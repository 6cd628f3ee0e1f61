"""Retrieval from a bounded state: needles, variables, common and frequent words, in the manner of RULER (arXiv:2404.06654).

The questions are generated from a seed and need no network (docs/retrieval.md). A prompt has at most ``--length`` tokens. It is
read once under every operator, by the many-token path, and the answer is decoded greedily from that state. The score is the
share of the right answers that the text contains, as in RULER. The unbounded model is always measured, for the differences.
"""

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..argtypes import check_distinct, count_int, positive_int, seed_int
from ..cell.cell import Cell
from ..errors import Error
from ..reporting.progress import progress_bar
from ..reporting.report import Report
from ..storage.digest import digest
from .answers import write_answers
from .conditions import Condition, add_condition_arguments, check_affected, parse_paired_conditions
from .inputs import EvalInputs
from .question_sweep import measure_questions
from .retrieval_report import RetrievalResult, report
from .tasks.difficulty import DIFFICULTIES, Difficulty
from .tasks.example import Example
from .tasks.needles import Sentences, multikey, needle, text_needle
from .tasks.variables import variables
from .tasks.words import common_words, frequent_words
from .texts import read_texts

if TYPE_CHECKING:
    import tokenizers

TASKS: dict[str, Callable[..., Example]] = {
    "needle": needle,
    "multikey": multikey,
    "variables": variables,
    "common-words": common_words,
    "frequent-words": frequent_words,
    "text-needle": text_needle,
}
AT_DEPTH = ("needle", "multikey", "text-needle")
"""Tasks with an answer at a chosen depth; in the other tasks the depths are random."""


@dataclass(frozen=True)
class Question:
    """One generated question.

    Attributes:
        task, length, depth: the task, the maximum number of tokens of its prompt, and the depth of the needle or None.
        number: number of the question at this length and depth.
        example: prompt and answers.
        limit: maximum number of tokens of an answer.
    """

    task: str
    length: int
    depth: float | None
    number: int
    example: Example
    limit: int

    @property
    def group(self) -> tuple[str, int]:
        """Task and length."""
        return self.task, self.length

    @property
    def name(self) -> str:
        """Task, length, depth, number, and a digest of the prompt."""
        depth = "" if self.depth is None else f" at {self.depth!r}"
        return f"{self.task} of {self.length}{depth} {self.number} {digest(self.example.prompt)}"


def generate_questions(
    tokenizer: "tokenizers.Tokenizer",
    tasks: Sequence[str],
    lengths: Sequence[int],
    depths: Sequence[float],
    n_questions: int,
    seed: int,
    difficulty: Difficulty,
    texts: Mapping[str, str],
    progress: bool = False,
) -> list[Question]:
    """Return ``n_questions`` questions per task, length and depth, in the order of tasks and lengths.

    A task without depth has as many questions as the others. The questions of a task, length and depth depend only on these,
    the seed, the difficulty, the tokenizer and the texts.

    Args:
        tokenizer: the tokenizer that counts the tokens.
        tasks: keys of ``TASKS``.
        lengths: maximum numbers of tokens of a prompt.
        depths: shares of the filler before a needle, 0 to 1.
        n_questions: questions per task, length and depth.
        seed: seed of the questions.
        difficulty: sizes of the tasks.
        texts: texts by name, for ``text-needle``; the questions use them in turn.
        progress: True to show a progress bar.

    Raises:
        Error: a length is too short for a task, or a text is too short for a length.
    """
    found, sentences = [], [Sentences.of(text) for text in texts.values()]
    wanted = [(task, length, i) for task in tasks for length in lengths for i in range(n_questions * len(depths))]
    with progress_bar(len(wanted), "question", label="generating", enabled=progress) as bar:
        for task, length, i in wanted:
            number, place = divmod(i, len(depths))
            depth = float(depths[place]) if task in AT_DEPTH else None
            if depth is None:
                number = i
            rng = random.Random(f"{seed} {task} {length} {depth} {number}")
            more = (sentences[i % len(sentences)],) if task == "text-needle" else ()
            try:
                example = TASKS[task](tokenizer, length, depth, rng, difficulty, *more)
            except Error as error:
                raise Error(f"{task}: {error}") from None
            limit = 16 + 2 * len(tokenizer.encode(" ".join(example.answers), add_special_tokens=False).ids)
            found.append(Question(task, length, depth, number, example, limit))
            bar.update()
    return found


def answer_questions(
    cell: Cell, tokenizer: "tokenizers.Tokenizer", questions: Sequence[Question], condition: Condition
) -> list[RetrievalResult]:
    """Return one result per question, in their order. All prompts are read as one batch."""
    prompts, limits = [q.example.prompt for q in questions], [q.limit for q in questions]
    answers = write_answers(cell, tokenizer, prompts, condition.reduction, limits)
    return [
        RetrievalResult(condition.operator, condition.size, q.task, q.length, q.depth, q.number, q.example.answers, answer.text)
        for q, answer in zip(questions, answers, strict=True)
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval retrieval``."""
    add_condition_arguments(parser, ("full", "window", "sinks:SIZE:4", "h2o", "tova"), (128, 256))
    parser.add_argument(
        "--text", metavar="PATH", type=Path, help="a text file or a folder of .txt and .md files, for text-needle"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        metavar="TASK",
        help=f"{', '.join(TASKS)} (default: all, text-needle only with --text)",
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=positive_int,
        metavar="N",
        default=[512, 1024],
        help="tokens of a prompt (default: 512 1024)",
    )
    parser.add_argument(
        "--depths",
        nargs="+",
        type=float,
        metavar="P",
        default=[0, 0.5, 1],
        help="depths of a needle, 0 to 1 (default: 0 0.5 1)",
    )
    parser.add_argument(
        "--examples", type=count_int, metavar="N", default=2, help="questions per task, length and depth (default: 2)"
    )
    help_text = "sizes of the tasks: small, or those of RULER (default: small)"
    parser.add_argument("--difficulty", choices=DIFFICULTIES, default="small", help=help_text)
    parser.add_argument("--seed", metavar="N", type=seed_int, default=1, help="seed of the questions (default: 1)")
    parser.add_argument("--batch", type=positive_int, metavar="B", default=6, help="batch size (default: 6)")


def questions_of(args: argparse.Namespace, inputs: EvalInputs) -> list[Question]:
    """Return the questions that the arguments ask for.

    Raises:
        Error: an argument is invalid, the machine has too little memory for a length, or as :func:`generate_questions`.
    """
    if invalid := [depth for depth in args.depths if not 0 <= depth <= 1]:
        raise Error(f"--depths has {invalid[0]}; expected numbers from 0 to 1")
    check_distinct(args, "tasks", "lengths", "depths")
    tasks = args.tasks or [task for task in TASKS if task != "text-needle" or args.text is not None]
    if "text-needle" in tasks and args.text is None:
        raise Error("--tasks has text-needle, which needs a text; expected --text PATH")
    texts = read_texts(args.text) if "text-needle" in tasks else {}
    difficulty = DIFFICULTIES[args.difficulty]
    inputs.check_memory(args.batch, ["full"], max(args.lengths))  # before prompts of these lengths are built
    return generate_questions(
        inputs.tokenizer, tasks, args.lengths, args.depths, args.examples, args.seed, difficulty, texts, inputs.progress
    )


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Answer all questions under all conditions and with the unbounded model."""
    conditions = parse_paired_conditions(args.operators, args.sizes)
    questions = questions_of(args, inputs)
    longest = max(q.length + q.limit for q in questions)
    check_affected(conditions, longest, "a prompt with its answer")
    inputs.check_memory(args.batch, [condition.reduction for condition in conditions], longest)
    sweep = inputs.sweep(args.out, "retrieval", seed=args.seed, difficulty=args.difficulty, batch=args.batch)

    def answer(batch: Sequence[Question], condition: Condition) -> list[RetrievalResult]:
        return answer_questions(inputs.cell, inputs.tokenizer, batch, condition)

    return report(measure_questions(inputs, sweep, conditions, questions, args.batch, answer, RetrievalResult))
