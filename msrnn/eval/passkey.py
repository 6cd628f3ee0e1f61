"""Pass key retrieval: a question about a key in a long text (arXiv:2305.16300, sec. 4.2).

The text is filler except for one sentence. A key counts as found if greedy decoding generates all its digits. A low perplexity
does not imply that keys are found, because an operator that has evicted the rows of the key cannot recover them.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..errors import Error
from ..reporting.report import HeatMaps, Report, Table
from ..reporting.statistics import mean
from .conditions import (
    Condition,
    add_condition_arguments,
    by_condition,
    check_affected,
    condition_name,
    load_results,
    parse_conditions,
)
from .inputs import EvalInputs
from .tasks.example import FILLER
from .teacher_forcing import pad_right, padding_mask, teacher_force

if TYPE_CHECKING:
    import tokenizers

TASK = "There is a pass key hidden in a lot of irrelevant text. Find it and memorize it. I will ask you for it.\n"
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "What is the pass key? The pass key is"


def make_prompt(tokenizer: "tokenizers.Tokenizer", key: str, length: int, depth: float) -> list[int]:
    """Return the longest prompt of at most ``length`` tokens with complete rounds of filler.

    Args:
        tokenizer: the tokenizer.
        key: the key.
        length: maximum number of tokens.
        depth: share of the filler before the key, 0 to 1.

    Raises:
        Error: ``length`` is too small for the key and the question.
    """
    filler, shortest = " ".join(FILLER) + "\n", check_length(tokenizer, key, length)

    def ids(n: int) -> list[int]:
        before = round(depth * n)
        return _encode(tokenizer, filler * before + NEEDLE.format(key=key) + filler * (n - before))

    per_round = max(1, len(tokenizer.encode(filler, add_special_tokens=False).ids))
    rounds = (length - shortest) // per_round
    while rounds and len(ids(rounds)) > length:
        rounds -= 1
    return ids(rounds)


def check_length(tokenizer: "tokenizers.Tokenizer", key: str, length: int) -> int:
    """Return the number of tokens of the shortest prompt.

    Raises:
        Error: it has more than ``length`` tokens.
    """
    shortest = len(_encode(tokenizer, NEEDLE.format(key=key)))
    if shortest > length:
        raise Error(f"the length of a text is {length} tokens; expected at least {shortest} for a pass key")
    return shortest


def _encode(tokenizer: "tokenizers.Tokenizer", context: str) -> list[int]:
    return tokenizer.encode(TASK + context + QUESTION).ids


@dataclass(frozen=True)
class PasskeyResult:
    """Several keys under one condition, at one length and depth.

    Attributes:
        operator, size, length, depth: the condition, the length of the text and the depth of the key.
        found: share of the keys that were found.
        nll: nats per token of the key.
        keys: number of keys.
    """

    operator: str
    size: int | None
    length: int
    depth: float
    found: float
    nll: float
    keys: int

    @property
    def name(self) -> str:
        """Operator and size."""
        return condition_name(self.operator, self.size)


@torch.no_grad()
def retrieve_keys(
    cell: Cell, tokenizer: "tokenizers.Tokenizer", condition: Condition, length: int, depth: float, n_keys: int, seed: int
) -> PasskeyResult:
    """Measure the retrieval of ``n_keys`` random keys of five digits, in one batch."""
    rng = random.Random(f"{seed} {length} {depth}")
    keys = [str(rng.randrange(10000, 100000)) for _ in range(n_keys)]
    prompts = [make_prompt(tokenizer, key, length, depth) for key in keys]
    answers = [tokenizer.encode(f" {key}", add_special_tokens=False).ids for key in keys]
    device, lengths = cell.device, torch.tensor([len(prompt) for prompt in prompts])
    state = cell.initial_state(n_keys, condition.reduction)
    logits, state = cell(pad_right(prompts).to(device), state, lengths=lengths.to(device), last_only=True)
    scores, mask = teacher_force(cell, logits, pad_right(answers).to(device), state), padding_mask(answers)  # (B, N)
    found = (scores.is_argmax.cpu() | ~mask).all(1).double().mean()
    nll = scores.nll.cpu().double()[mask].mean()
    return PasskeyResult(condition.operator, condition.size, length, depth, float(found), float(nll), n_keys)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval passkey``."""
    add_condition_arguments(parser, ("full", "sinks:SIZE:4", "h2o", "tova"), (128, 512))
    parser.add_argument(
        "--lengths", nargs="+", type=positive_int, metavar="N", default=[256, 512, 1024, 2048], help="tokens of the texts"
    )
    parser.add_argument(
        "--depths", nargs="+", type=float, metavar="P", default=[0, 0.25, 0.5, 0.75, 1], help="depths of the key, 0 to 1"
    )
    parser.add_argument("--keys", type=positive_int, metavar="N", default=4, help="keys per length and depth (default: 4)")
    parser.add_argument("--seed", metavar="N", type=positive_int, default=1, help="seed of the keys (default: 1)")


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Measure all conditions, lengths and depths."""
    conditions = parse_conditions(args.operators, args.sizes)
    if truncated := [condition for condition in conditions if condition.truncated]:
        raise Error(f"--operators has {truncated[0]}, which has no state to continue from; expected operators")
    if invalid := [depth for depth in args.depths if not 0 <= depth <= 1]:
        raise Error(f"--depths has {invalid[0]}; expected numbers from 0 to 1")
    check_length(inputs.tokenizer, "12345", min(args.lengths))
    answer = inputs.tokenizer.encode(" 12345", add_special_tokens=False).ids
    check_affected(conditions, max(args.lengths) + len(answer), "a text with its key")
    inputs.check_memory(args.keys, [condition.rows for condition in conditions], max(args.lengths))
    sweep = inputs.sweep(args.out, "passkey", keys=args.keys, seed=args.seed)
    rows = {c: {f"{c.key} at {float(d)!r} of {n}": (n, d) for n in args.lengths for d in args.depths} for c in conditions}
    for condition, batch in inputs.pending(sweep, rows, 1):
        for key, (length, depth) in batch.items():
            result = retrieve_keys(inputs.cell, inputs.tokenizer, condition, length, depth, args.keys, args.seed)
            sweep[key] = asdict(result)
    return report(load_results(PasskeyResult, sweep, rows))


def report(results: Sequence[PasskeyResult]) -> Report:
    """Return tables by length, and heat maps by depth and length."""
    lengths, depths = sorted({r.length for r in results}), sorted({r.depth for r in results})
    panels, found, nats = {}, [], []
    for group in by_condition(results).values():
        at, name = {(r.length, r.depth): r for r in group}, group[0].name
        panels[name] = torch.tensor([[at[n, d].found for d in depths] for n in lengths])
        found.append([name, *(f"{mean([at[n, d].found for d in depths]).value:.0%}" for n in lengths)])
        nats.append([name, *(f"{mean([at[n, d].nll for d in depths]).value:.2f}" for n in lengths)])
    columns, n_keys = ["operator", *(f"{n:,} tokens" for n in lengths)], results[0].keys * len(depths)
    tables = [
        Table("Pass keys found", columns, found, f"{n_keys} keys per length, at {len(depths)} depths."),
        Table("Nats per token of the key", columns, nats, "A uniformly random digit costs 2.30."),
    ]
    ticks = ([f"{d:g}" for d in depths], [str(n) for n in lengths])
    title = f"pass keys found, {results[0].keys} per cell"
    maps = HeatMaps(title, "depth, share of the text", "prompt, tokens", panels, "share of keys found", ticks=ticks)
    return Report(tables, [asdict(r) for r in results], {"passkey.png": maps})
