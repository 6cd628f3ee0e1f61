"""Long continuations with a bounded state, compared with the unbounded model (sec. 5.4 of the paper, without the LLM judge).

A prompt is a chunk of a text. The unbounded model then scores each continuation by teacher forcing. The scores are its
log-likelihood and its agreement: the share of tokens that greedy decoding of the unbounded model would choose. The quality of
the texts is not judged.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..decoding.generate import generate
from ..errors import counted
from ..reporting.report import Report, Table
from ..reporting.statistics import mean
from .conditions import (
    Condition,
    add_condition_arguments,
    by_condition,
    check_affected,
    is_published,
    load_results,
    parse_paired_conditions,
)
from .inputs import EvalInputs, add_text_arguments
from .teacher_forcing import teacher_force
from .texts import Chunk, text_digest


@dataclass(frozen=True)
class GenerationResult:
    """One continuation.

    Attributes:
        operator, size, chunk: the condition and the name of the prompt.
        ids: the generated tokens, including eos.
        ended: True if eos was generated.
        nll: nats per token under the unbounded model.
        agreement: share of the tokens that are the argmax of the unbounded model after the same prefix.
    """

    operator: str
    size: int | None
    chunk: str
    ids: list[int]
    ended: bool
    nll: float
    agreement: float

    def distinct(self, n: int) -> float:
        """Return the share of distinct n-grams; 1 if there is no n-gram."""
        ngrams = [tuple(self.ids[i : i + n]) for i in range(len(self.ids) - n + 1)]
        return len(set(ngrams)) / len(ngrams) if ngrams else 1.0

    def common_prefix(self, other: "GenerationResult") -> int:
        """Return the number of identical tokens at the start of both continuations."""
        same = [a == b for a, b in zip(self.ids, other.ids, strict=False)]
        return same.index(False) if False in same else len(same)


@torch.no_grad()
def continue_prompts(
    cell: Cell, chunks: Sequence[Chunk], condition: Condition, max_new_tokens: int, seed: int | None = None
) -> list[GenerationResult]:
    """Continue prompts of equal length in one batch: greedily, or by sampling at temperature 1 if ``seed`` is given."""
    device, eos = cell.device, cell.config.eos_token_ids
    prompts = torch.stack([chunk.ids for chunk in chunks]).to(device)
    new, _, _ = generate(
        cell,
        prompts,
        cell.initial_state(len(chunks), condition.reduction),
        max_new_tokens=max_new_tokens,
        do_sample=seed is not None,
        eos_token_id=eos,
        generator=None if seed is None else torch.Generator(device).manual_seed(seed),
    )
    logits, state = cell(prompts, cell.initial_state(len(chunks), "full"), last_only=True)
    scores, results = teacher_force(cell, logits, new, state), []
    for b, chunk in enumerate(chunks):
        ends = torch.isin(new[b], torch.tensor(eos, dtype=torch.int64, device=device)).nonzero()
        n = int(ends[0]) + 1 if len(ends) else new.shape[1]
        nll, agreement = (float(x[b, :n].cpu().double().mean()) for x in scores)
        ids = new[b, :n].tolist()
        results.append(GenerationResult(condition.operator, condition.size, chunk.name, ids, len(ends) > 0, nll, agreement))
    return results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval generation``."""
    add_text_arguments(parser, chunk=256)
    add_condition_arguments(parser, ("tova", "sinks:SIZE:4", "h2o"), (64, 128, 256))
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive_int, default=512, help="limit per continuation (default: 512)"
    )
    parser.add_argument("--seed", metavar="N", type=positive_int, help="sample with this seed (default: greedy decoding)")
    parser.add_argument("--batch", type=positive_int, metavar="B", default=4, help="batch size (default: 4)")


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Continue all prompts under all conditions and with the unbounded model."""
    conditions = parse_paired_conditions(args.operators, args.sizes)
    chunks = inputs.chunks(args)
    check_affected(conditions, args.chunk + args.max_new_tokens, "a prompt with its continuation")
    inputs.check_memory(args.batch, ["full", *(condition.rows for condition in conditions)], args.chunk + args.max_new_tokens)
    settings = {"max_new_tokens": args.max_new_tokens, "seed": args.seed, "batch": args.batch}
    sweep = inputs.sweep(args.out, "generation", text=text_digest(chunks), chunk=args.chunk, **settings)
    groups = [chunks[i : i + args.batch] for i in range(0, len(chunks), args.batch)]  # sampling depends on the whole batch
    rows = {(c, i): {f"{c.key} after {chunk.name}": chunk for chunk in g} for c in conditions for i, g in enumerate(groups)}
    for (condition, i), pending in inputs.pending(sweep, rows, args.batch):
        seed = None if args.seed is None else args.seed + i
        for result in continue_prompts(inputs.cell, groups[i], condition, args.max_new_tokens, seed):
            if (key := f"{condition.key} after {result.chunk}") in pending:
                sweep[key] = asdict(result)
    return report(load_results(GenerationResult, sweep, rows), args.max_new_tokens)


def report(results: Sequence[GenerationResult], max_new_tokens: int) -> Report:
    """Return a table with one row per condition."""
    unbounded = {r.chunk: r for r in results if is_published(r.operator)}
    rows = []
    for (operator, size), group in by_condition(results).items():

        def average(value: Callable[[GenerationResult], float], group: Sequence[GenerationResult] = group) -> float:
            return mean([value(r) for r in group]).value

        cells = [
            f"{average(lambda r: len(r.ids)):,.0f}",
            f"{average(lambda r: r.ended):.0%}",
            f"{average(lambda r: r.nll):.3f}",
        ]
        cells += [f"{average(lambda r: r.agreement):.1%}", f"{average(lambda r: r.common_prefix(unbounded[r.chunk])):,.0f}"]
        cells += [f"{average(lambda r, n=n: r.distinct(n)):.3f}" for n in (1, 2, 4)]  # type: ignore[misc]
        rows.append([operator, "unbounded" if size is None else str(size), *cells])
    columns = [
        "operator",
        "size",
        "tokens",
        "ended",
        "nats/token",
        "agreement",
        "identical",
        *(f"distinct-{n}" for n in (1, 2, 4)),
    ]
    note = (
        f"{counted(len(unbounded), 'prompt')}, up to {max_new_tokens:,} tokens each, means over prompts. Nats per token and "
        "agreement: under the unbounded model. Identical: tokens before the first difference from the unbounded model's "
        "continuation. Distinct-n: share of distinct n-grams."
    )
    return Report([Table("Continuations", columns, rows, note)], [asdict(r) for r in results])
