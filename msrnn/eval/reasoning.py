"""Reasoning in steps with a bounded state: the accuracy and the length of answers by operator and size.

The problems are generated from a seed (chains of sums, changes of a list, counts, copies), or those of a file in the format of
GSM8K or MATH. Solved problems come before the question, so that the answer has steps. The prompt is read by the many-token
path, and the answer is decoded greedily from that state, which evicts rows of the prompt and of the answer. The unbounded model
is always measured, for the differences (docs/retrieval.md).
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..argtypes import check_distinct, count_int, positive_int, seed_int
from ..cell.cell import Cell
from ..errors import Error, counted
from ..reporting.report import Report
from ..storage.digest import digest
from .answers import write_answers
from .conditions import Condition, add_condition_arguments, check_affected, parse_paired_conditions
from .inputs import EvalInputs
from .question_sweep import measure_questions
from .reasoning_report import ReasoningResult, report
from .tasks.long_answers import copy, count
from .tasks.problem import STOP, Problem, few_shot_prompt, find_answer
from .tasks.problem_files import read_problems
from .tasks.reasoning import arithmetic, lists

if TYPE_CHECKING:
    import tokenizers

TASKS: dict[str, Callable[[random.Random, int], Problem]] = {
    "arithmetic": arithmetic,
    "lists": lists,
    "count": count,
    "copy": copy,
}
MAX_DRAWS = 1000
"""Maximum number of draws of a problem that is not one of the solved problems."""


@dataclass(frozen=True)
class Question:
    """One problem with its prompt.

    Attributes:
        task: a generated task, or the name of a file.
        steps: number of steps of the solution; None for a file.
        number: number of the problem.
        prompt: solved problems and the question.
        answer: the right answer.
    """

    task: str
    steps: int | None
    number: int
    prompt: str
    answer: str

    @property
    def group(self) -> tuple[str, int | None]:
        """Task and number of steps: such questions have the same solved problems, which are read once."""
        return self.task, self.steps

    @property
    def name(self) -> str:
        """Task, steps, number, and a digest of the prompt."""
        steps = "" if self.steps is None else f" in {self.steps}"
        return f"{self.task}{steps} {self.number} {digest(self.prompt)}"


def generate_questions(tasks: Sequence[str], steps: Sequence[int], n_questions: int, shots: int, seed: int) -> list[Question]:
    """Return ``n_questions`` questions per task and number of steps. The solved problems before them have as many steps.

    A problem that is among the solved ones is drawn again, because its answer could be copied.

    Args:
        tasks: keys of ``TASKS``.
        steps: numbers of steps.
        n_questions: questions per task and number of steps.
        shots: solved problems before a question; they are the same for all questions of a task and number of steps.
        seed: seed of the problems.

    Raises:
        Error: a task has no other problems than the solved ones.
    """
    found = []
    for task in tasks:
        for n in steps:
            rng = random.Random(f"{seed} {task} {n} shots")
            solved = [TASKS[task](rng, n) for _ in range(shots)]
            for i in range(n_questions):
                problem = _unsolved(task, n, random.Random(f"{seed} {task} {n} {i}"), solved)
                found.append(Question(task, n, i, few_shot_prompt(solved, problem.question), problem.answer))
    return found


def _unsolved(task: str, steps: int, rng: random.Random, solved: Sequence[Problem]) -> Problem:
    """Return the first problem from ``rng`` that is not in ``solved``."""
    for _ in range(MAX_DRAWS):
        if (problem := TASKS[task](rng, steps)) not in solved:
            return problem
    raise Error(f"--shots is {len(solved)}, which are all problems that {task} has in {steps} steps; expected fewer")


def file_questions(path: Path, n_questions: int, shots: int) -> list[Question]:
    """Return ``n_questions`` questions of a file, or fewer if it ends. Its first ``shots`` problems are the solved ones.

    Raises:
        Error: as :func:`~msrnn.eval.tasks.problem_files.read_problems`; the file has no problem after the solved ones.
    """
    problems = read_problems(path)
    if len(problems) <= shots:
        raise Error(f"{path} has {counted(len(problems), 'problem')}; expected more than --shots, {shots}")
    asked = problems[shots : shots + n_questions]
    return [Question(path.stem, None, i, few_shot_prompt(problems[:shots], p.question), p.answer) for i, p in enumerate(asked)]


def answer_questions(
    cell: Cell, tokenizer: "tokenizers.Tokenizer", questions: Sequence[Question], condition: Condition, max_new_tokens: int
) -> list[ReasoningResult]:
    """Return one result per question, in their order. All prompts are read as one batch."""
    prompts = [q.prompt for q in questions]
    answers = write_answers(cell, tokenizer, prompts, condition.reduction, [max_new_tokens] * len(prompts), STOP)
    return [
        ReasoningResult(
            *(condition.operator, condition.size, q.task, q.steps, q.number),
            *(q.answer, find_answer(answer.text), answer.text, answer.tokens, answer.ended),
        )
        for q, answer in zip(questions, answers, strict=True)
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval reasoning``."""
    add_condition_arguments(parser, ("full", "window", "sinks:SIZE:4", "h2o", "tova"), (64, 128))
    parser.add_argument(
        "--tasks", nargs="*", choices=TASKS, metavar="TASK", default=list(TASKS), help=f"{', '.join(TASKS)} (default: all)"
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="a .jsonl file of GSM8K or MATH, in addition to the tasks")
    parser.add_argument(
        "--steps", nargs="+", type=count_int, metavar="N", default=[1, 2, 4], help="steps of a solution (default: 1 2 4)"
    )
    parser.add_argument(
        "--examples", type=count_int, metavar="N", default=8, help="questions per task and steps, and of a file (default: 8)"
    )
    parser.add_argument("--shots", type=count_int, metavar="N", default=4, help="solved problems in a prompt (default: 4)")
    parser.add_argument(
        "--max-new-tokens", type=positive_int, metavar="N", default=256, help="maximum tokens of an answer (default: 256)"
    )
    parser.add_argument("--seed", metavar="N", type=seed_int, default=1, help="seed of the problems (default: 1)")
    parser.add_argument("--batch", type=positive_int, metavar="B", default=8, help="batch size (default: 8)")


def questions_of(args: argparse.Namespace) -> list[Question]:
    """Return the questions that the arguments ask for.

    Raises:
        Error: an argument occurs twice, there is no question, or as :func:`file_questions`.
    """
    check_distinct(args, "tasks", "steps")
    if not args.tasks and args.data is None:
        raise Error("--tasks is empty and --data is not given; expected a task or a file")
    found = generate_questions(args.tasks, args.steps, args.examples, args.shots, args.seed)
    return found if args.data is None else found + file_questions(args.data, args.examples, args.shots)


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Answer all questions under all conditions and with the unbounded model."""
    conditions = parse_paired_conditions(args.operators, args.sizes)
    questions = questions_of(args)
    longest = max(len(inputs.tokenizer.encode(q.prompt).ids) for q in questions) + args.max_new_tokens
    check_affected(conditions, longest, "a prompt with its answer")
    inputs.check_memory(args.batch, [condition.reduction for condition in conditions], longest)
    sweep = inputs.sweep(args.out, "reasoning", seed=args.seed, max_new_tokens=args.max_new_tokens, batch=args.batch)

    def answer(batch: Sequence[Question], condition: Condition) -> list[ReasoningResult]:
        return answer_questions(inputs.cell, inputs.tokenizer, batch, condition, args.max_new_tokens)

    results = measure_questions(inputs, sweep, conditions, questions, args.batch, answer, ReasoningResult)
    return report(results, args.max_new_tokens)
