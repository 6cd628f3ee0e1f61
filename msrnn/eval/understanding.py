"""Questions about long documents with a bounded state (sec. 5.3 of the paper): scores, agreement, likelihood of the references.

Documents are truncated at the end, so that the prompt has at most ``--length`` tokens. The truncated baseline is the unbounded
model with a prompt of ``size`` tokens. The scores of small models are mostly noise. Two other results are less noisy: the
agreement with the unbounded model's answer under teacher forcing, and the likelihood of the reference answers.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..decoding.generate import generate
from ..errors import Error, counted
from ..reporting.report import Report, Table
from ..reporting.statistics import mean, paired
from ..state.state import State
from ..storage.digest import digest
from .conditions import (
    TRUNCATED,
    Condition,
    add_condition_arguments,
    by_condition,
    check_affected,
    load_results,
    parse_conditions,
)
from .inputs import EvalInputs
from .questions import Question, check_rouge, read_questions
from .teacher_forcing import pad_right, padding_mask, teacher_force

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class UnderstandingResult:
    """One answer.

    Attributes:
        operator, size, question: the condition and the name of the question.
        ids, text: the answer.
        score: 0 to 100, by the metric of the task.
        agreement: share of the tokens of the unbounded model's answer that are the argmax of this model after the same prefix.
        nll: nats per token of the reference answers.
    """

    operator: str
    size: int | None
    question: str
    ids: list[int]
    text: str
    score: float
    agreement: float
    nll: float


@torch.no_grad()
def answer_questions(
    cell: Cell,
    tokenizer: "tokenizers.Tokenizer",
    questions: Sequence[Question],
    condition: Condition,
    length: int,
    max_new_tokens: int,
    unbounded: Sequence[Sequence[int]] | None = None,
) -> list[UnderstandingResult]:
    """Answer the questions of one document. The document is read once, and every question starts from the state after it.

    Args:
        cell, tokenizer: the model.
        questions: questions of one document.
        condition: an operator, or the truncated baseline.
        length: maximum number of prompt tokens.
        max_new_tokens: maximum number of tokens of an answer.
        unbounded: answers of the unbounded model; None if this is the unbounded model.

    Raises:
        Error: a question does not fit into ``length`` tokens.
    """
    device = cell.device
    suffixes = [tokenizer.encode(q.prompt_suffix, add_special_tokens=False).ids for q in questions]
    limit = min(length, condition.size) if condition.truncated and condition.size is not None else length
    check_fits(limit, max(map(len, suffixes)))
    document = tokenizer.encode(questions[0].document).ids[: limit - max(map(len, suffixes))]
    _, after_document = cell(
        torch.tensor([document], device=device), cell.initial_state(1, condition.reduction), last_only=True
    )
    results = []
    for i, q in enumerate(questions):
        suffix = torch.tensor([suffixes[i]], device=device)
        logits, state = cell(suffix, after_document, last_only=True)
        eos = cell.config.eos_token_ids
        new, _, _ = generate(cell, suffix, after_document, max_new_tokens=max_new_tokens, eos_token_id=eos)
        ids = new[0].tolist()
        text = tokenizer.decode(ids).strip()
        compared = torch.tensor([ids if unbounded is None else unbounded[i]], device=device)
        agreement = float(teacher_force(cell, logits, compared, state).is_argmax.cpu().double().mean())
        references = [tokenizer.encode(f" {r.strip()}", add_special_tokens=False).ids for r in q.references]
        nll = _references_nll(cell, logits, state, references)
        result = (question_name(q), ids, text, q.score(text), agreement, nll)
        results.append(UnderstandingResult(condition.operator, condition.size, *result))
    return results


def check_fits(limit: int, question: int) -> None:
    """Check that a prompt of ``limit`` tokens can contain a question of ``question`` tokens and a document.

    Raises:
        Error: the prompt is too short.
    """
    if question >= limit:
        raise Error(f"a prompt has {limit} tokens; expected more than {question}, the longest question (--length, --sizes)")


def _count(tokenizer: "tokenizers.Tokenizer", text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def _references_nll(cell: Cell, logits: torch.Tensor, state: State, references: Sequence[Sequence[int]]) -> float:
    """Return the nats per token of all references together, each read from the same ``state`` of one sequence."""
    n = len(references)
    scores = teacher_force(cell, logits.expand(n, -1), pad_right(references).to(logits.device), state.select([0] * n))
    return float(scores.nll.cpu().double()[padding_mask(references)].mean())


def question_name(q: Question) -> str:
    """Return the name of the document and the number of the question."""
    return f"{q.name} {q.number}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval understanding``."""
    parser.add_argument(
        "--data", type=Path, metavar="FILE", required=True, help="SQuALITY .jsonl or QASPER .json, as published"
    )
    add_condition_arguments(parser, ("tova", "sinks:SIZE:4", "h2o", TRUNCATED), (256, 512, 1024, 2048))
    parser.add_argument(
        "--documents", type=positive_int, metavar="N", help="documents from the start of the file (default: all)"
    )
    parser.add_argument("--length", type=positive_int, metavar="N", default=4096, help="maximum prompt tokens (default: 4096)")
    parser.add_argument(
        "--max-new-tokens", type=positive_int, metavar="N", default=256, help="maximum new tokens (default: 256)"
    )


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Answer all questions under all conditions and with the unbounded model."""
    operators = args.operators if "full" in args.operators else ["full", *args.operators]
    # full is first, because the other conditions are compared with its answers
    conditions = sorted(parse_conditions(operators, args.sizes), key=lambda c: c.operator != "full")
    questions = read_questions(args.data)
    if questions[0].task == "squality":
        check_rouge()
    documents = list(dict.fromkeys(q.name for q in questions))[: args.documents]
    groups = {document: [q for q in questions if q.name == document] for document in documents}
    _check_lengths(args, inputs, conditions, groups)
    settings = {"length": args.length, "max_new_tokens": args.max_new_tokens}
    sweep = inputs.sweep(args.out, "understanding", data=digest(repr(questions)), **settings)
    full = conditions[0]
    rows = {(c, d): {f"{c.key} on {question_name(q)}": q for q in group} for c in conditions for d, group in groups.items()}
    together = itemgetter(1)  # all conditions of a document, because the answers of the unbounded model are compared
    for (condition, document), pending in inputs.pending(sweep, rows, max(map(len, groups.values())), together):
        group = groups[document]  # all questions together, because the longest decides where the document is truncated
        unbounded = None if condition.operator == "full" else [sweep[f"{full.key} on {question_name(q)}"]["ids"] for q in group]
        limits = (args.length, args.max_new_tokens)
        results = answer_questions(inputs.cell, inputs.tokenizer, group, condition, *limits, unbounded)
        for q, result in zip(group, results, strict=True):
            if (key := f"{condition.key} on {question_name(q)}") in pending:
                sweep[key] = asdict(result)
    return report(load_results(UnderstandingResult, sweep, rows), questions[0].task)


def _check_lengths(
    args: argparse.Namespace, inputs: EvalInputs, conditions: Sequence[Condition], groups: Mapping[str, Sequence[Question]]
) -> None:
    """Check that the questions fit into the prompts, that every size changes something, and that the states fit into memory.

    Raises:
        Error: one of these does not hold.
    """
    suffixes = {d: max(_count(inputs.tokenizer, q.prompt_suffix) for q in group) for d, group in groups.items()}
    check_fits(min([args.length, *(c.size for c in conditions if c.truncated and c.size)]), max(suffixes.values()))
    prompt = max(min(args.length, len(inputs.tokenizer.encode(groups[d][0].document).ids) + n) for d, n in suffixes.items())
    questions = [q for group in groups.values() for q in group]
    answer = max(args.max_new_tokens, *(_count(inputs.tokenizer, f" {r.strip()}") for q in questions for r in q.references))
    check_affected([c for c in conditions if c.truncated], prompt, "a prompt")  # it truncates the prompt alone
    check_affected([c for c in conditions if not c.truncated], prompt + answer, "a prompt with its answer")
    inputs.check_memory(max(len(q.references) for q in questions), [c.reduction for c in conditions], prompt + answer)


def report(results: Sequence[UnderstandingResult], task: str) -> Report:
    """Return tables of the score, the agreement and the likelihood of the references."""
    groups = by_condition(results)
    sizes = [*sorted({size for _, size in groups if size is not None}), None]
    unbounded = groups["full", None]

    def table(title: str, note: str, cell: Callable[[list[UnderstandingResult]], str]) -> Table:
        rows = [
            [operator, *(cell(groups[operator, size]) if (operator, size) in groups else "" for size in sizes)]
            for operator in dict.fromkeys(operator for operator, _ in groups)
        ]
        return Table(title, ["operator", *("unbounded" if size is None else str(size) for size in sizes)], rows, note)

    def nats(group: list[UnderstandingResult]) -> str:
        losses = [r.nll for r in group]
        return f"{mean(losses).value:.3f}" if group is unbounded else f"{paired(losses, [r.nll for r in unbounded]):+.4f}"

    metric = "geometric mean of ROUGE-1, -2 and -L" if task == "squality" else "F1"
    n = counted(len(unbounded), "question")
    tables = [
        table(
            f"{metric}, {task}", f"{n}; ± is the standard error over questions.", lambda g: f"{mean([r.score for r in g]):.2f}"
        ),
        table(
            "Agreement",
            "Share of the tokens of the unbounded model's answer that are the argmax after the same prefix.",
            lambda group: f"{mean([r.agreement for r in group]).value:.1%}",
        ),
        table(
            "Nats per token of the references, relative to the unbounded model",
            f"{n}, mean ± standard error of the differences; the row full contains the value itself.",
            nats,
        ),
    ]
    return Report(tables, [asdict(r) for r in results])
