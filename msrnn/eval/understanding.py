"""Questions about long documents under a bounded state (the paper's sec. 5.3): the score, and what small models show beside it.

Documents are cut at their end so that the prompt has ``--length`` tokens at most; the truncated baseline is the unbounded model
with a prompt of ``size`` tokens. Where scores are mostly noise, two figures are not: of the unbounded model's own answer, the
share of tokens that the bounded one would have written there too, and how likely both find the reference answers.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..decoding.generate import generate
from ..errors import Error
from ..reporting.report import Report, Table
from ..reporting.statistics import mean, paired
from ..reporting.sweep import Sweep
from ..state.state import State
from ..storage.digest import digest
from . import conditions
from .conditions import Entry, entries
from .inputs import Source
from .passkey import padded
from .questions import Question, check_rouge, read_questions
from .teacher_forcing import forced

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class Answered:
    """One answer.

    Attributes:
        operator, size, question: which.
        ids, text: the answer.
        score: 0 … 100, of its task.
        agreed: of the unbounded model's answer, the share of tokens that this one would have written there.
        nll: nats a token of the reference answers.
    """

    operator: str
    size: int | None
    question: str
    ids: list[int]
    text: str
    score: float
    agreed: float
    nll: float


@torch.no_grad()
def answer(
    cell: Cell,
    tokenizer: "tokenizers.Tokenizer",
    questions: Sequence[Question],
    entry: Entry,
    length: int,
    max_new_tokens: int,
    unbounded: Sequence[Sequence[int]] | None = None,
) -> list[Answered]:
    """Questions of one document: it is read once, and each question branches from the state that has read it.

    Args:
        cell, tokenizer: the model.
        questions: of one document.
        entry: the operator, or the truncated baseline.
        length: tokens of a prompt at most.
        max_new_tokens: of an answer.
        unbounded: the unbounded model's answers; None where this is the unbounded model.

    Raises:
        Error: ``length`` has no room for a question.
    """
    device = cell.device
    tails = [tokenizer.encode(q.tail, add_special_tokens=False).ids for q in questions]
    limit = min(length, entry.size) if entry.truncated and entry.size is not None else length
    room = limit - max(map(len, tails))
    if room < 1:
        raise Error(f"a prompt of {limit} tokens has no room for a question of {max(map(len, tails))}")
    document = tokenizer.encode(questions[0].document).ids[:room]
    _, told = cell(torch.tensor([document], device=device), cell.initial_state(1, entry.reduction), last_only=True)
    found = []
    for i, q in enumerate(questions):
        tail = torch.tensor([tails[i]], device=device)
        logits, state = cell(tail, told, last_only=True)
        new, _ = generate(cell, tail, told, max_new_tokens=max_new_tokens, eos_token_id=cell.config.eos_token_ids)
        ids = new[0].tolist()
        text = tokenizer.decode(ids).strip()
        own = ids if unbounded is None else unbounded[i]
        agreed = forced(cell, logits, torch.tensor([own], device=device), state).likeliest.double().mean()
        references = [tokenizer.encode(f" {r.strip()}", add_special_tokens=False).ids for r in q.references]
        nll = _references_nll(cell, logits, state, references)
        found.append(Answered(entry.row, entry.size, name(q), ids, text, q.score(text), float(agreed), nll))
    return found


def _references_nll(cell: Cell, logits: torch.Tensor, state: State, references: Sequence[Sequence[int]]) -> float:
    """Nats a token of all references together, each read on its own from ``state (1, …)``."""
    ids, n = padded(references).to(logits.device), len(references)
    lost = forced(cell, logits.expand(n, -1), ids, state.select([0] * n)).nll.double()
    real = torch.arange(ids.shape[1], device=ids.device) < torch.tensor([[len(r)] for r in references], device=ids.device)
    return float(lost[real].mean())


def name(q: Question) -> str:
    """What tells a question from the others of its file."""
    return f"{q.name} {q.number}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line's."""
    parser.add_argument(
        "--data", type=Path, metavar="FILE", required=True, help="SQuALITY's .jsonl or QASPER's .json, as published"
    )
    conditions.add_arguments(parser, ("tova", "sinks:SIZE:4", "h2o", conditions.TRUNCATED), (256, 512, 1024, 2048))
    parser.add_argument("--documents", type=positive_int, metavar="N", help="the first so many (default: all)")
    parser.add_argument("--length", type=positive_int, metavar="N", default=4096, help="maximum prompt tokens (default: 4096)")
    parser.add_argument(
        "--max-new-tokens", type=positive_int, metavar="N", default=256, help="maximum new tokens (default: 256)"
    )


def run(args: argparse.Namespace, source: Source) -> Report:
    """Answer all questions under all operators and sizes, and unbounded."""
    rows = args.operators if "full" in args.operators else ["full", *args.operators]
    places = sorted(entries(rows, args.sizes), key=lambda entry: entry.row != "full")  # its answers are compared with
    asked = read_questions(args.data)
    if asked[0].task == "squality":
        check_rouge()
    documents = list(dict.fromkeys(q.name for q in asked))[: args.documents]
    groups = {document: [q for q in asked if q.name == document] for document in documents}
    least = min([args.length, *(e.size for e in places if e.truncated and e.size)])
    longest = max(
        len(source.tokenizer.encode(q.tail, add_special_tokens=False).ids) for group in groups.values() for q in group
    )
    if longest >= least:
        raise Error(f"a prompt of {least} tokens has no room for a question of {longest} (--length, --sizes)")
    source.check_memory(max(len(q.references) for q in asked), [None], args.length + args.max_new_tokens)
    about = {"experiment": "understanding", "model": source.cell.fingerprint().digest(), "data": digest(repr([asked]))}
    sweep = Sweep(args.out, about | {"length": args.length, "max_new_tokens": args.max_new_tokens})
    cells = {(e, d): {f"{e} on {name(q)}": q for q in group} for e in places for d, group in groups.items()}
    for (entry, document), now in sweep.pending(cells, max(map(len, groups.values())), source.progress):
        group = groups[document]  # where a part is missing it is answered again as a whole: it shares one cut of the document
        own = None if entry.row == "full" else [sweep[f"full on {name(q)}"]["ids"] for q in group]
        answers = answer(source.cell, source.tokenizer, group, entry, args.length, args.max_new_tokens, own)
        for q, record in zip(group, answers, strict=True):
            if (key := f"{entry} on {name(q)}") in now:
                sweep[key] = asdict(record)
    found = [Answered(**{**sweep[key], "operator": e.row, "size": e.size}) for (e, _), row in cells.items() for key in row]
    return report(found, asked[0].task)


def report(records: Sequence[Answered], task: str) -> Report:
    """Tables of score, agreement and the references' likelihood."""
    places: dict[tuple[str, int | None], list[Answered]] = {}
    for r in records:
        places.setdefault((r.operator, r.size), []).append(r)
    sizes = sorted({size for _, size in places if size is not None})
    own, columns = places["full", None], ["operator", *map(str, sizes), "unbounded"]

    def table(title: str, note: str, word: Callable[[list[Answered]], str]) -> Table:
        rows = [
            [row, *(word(places[row, size]) if (row, size) in places else "" for size in (*sizes, None))]
            for row in dict.fromkeys(row for row, _ in places)
        ]
        return Table(title, columns, rows, note)

    def score(found: list[Answered]) -> str:
        value, error = mean([r.score for r in found])
        return f"{value:.2f} ± {error:.2f}"

    def beyond(found: list[Answered]) -> str:
        value, error = paired([r.nll for r in found], [r.nll for r in own])
        return f"{mean([r.nll for r in found]).value:.3f}" if found is own else f"{value:+.4f} ± {error:.4f}"

    metric = "geometric mean of ROUGE-1, -2 and -L" if task == "squality" else "F1"
    of = f"{len(own)} questions"
    tables = [
        table(f"{metric}, {task}", f"{of}; ± is the standard error over questions.", score),
        table("Agreement", "The share of the unbounded model's answer that would have been written too.", _agreed),
        table("Nats per token of the references, beyond the unbounded model's", f"{of}, paired; unbounded: its own.", beyond),
    ]
    return Report(tables, [asdict(r) for r in records])


def _agreed(found: list[Answered]) -> str:
    return f"{mean([r.agreed for r in found]).value:.1%}"
