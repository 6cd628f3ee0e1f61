"""Where it breaks: a pass key said somewhere in a long text and asked for at its end (arXiv:2305.16300, sec. 4.2).

The text is filler but for one sentence. A key counts as found if greedy decoding writes all of its digits. Good perplexity does
not mean that it is: an operator that took the key's rows out has lost it for good.
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
from ..reporting.sweep import Sweep
from . import conditions
from .conditions import Entry, entries
from .inputs import Source
from .teacher_forcing import forced

if TYPE_CHECKING:
    import tokenizers

TASK = "There is a pass key hidden in a lot of irrelevant text. Find it and memorize it. I will ask you for it.\n"
FILLER = ("The grass is green.", " The sky is blue.", " The sun is yellow.", " Here we go.", " There and back again.\n")
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "What is the pass key? The pass key is"


def prompt(tokenizer: "tokenizers.Tokenizer", key: str, length: int, depth: float) -> list[int]:
    """A text of ``length`` tokens at most, in whole rounds of filler; ``depth`` of them, 0 … 1, stand before the key.

    Raises:
        Error: ``length`` has no room for the key and the question.
    """
    rounds = "".join(FILLER)

    def ids(n: int) -> list[int]:
        before = round(depth * n)
        return tokenizer.encode(TASK + rounds * before + NEEDLE.format(key=key) + rounds * (n - before) + QUESTION).ids

    bare, one = len(ids(0)), max(1, len(tokenizer.encode(rounds, add_special_tokens=False).ids))
    if bare > length:
        raise Error(f"a text of {length} tokens is too short for a pass key; expected at least {bare}")
    most = (length - bare) // one
    while most and len(ids(most)) > length:
        most -= 1
    return ids(most)


@dataclass(frozen=True)
class Found:
    """Some keys under one operator, at one length of text and one depth.

    Attributes:
        operator, size, length, depth: which.
        found: the share of the keys that were.
        nll: nats a token of the key.
        keys: how many there were.
    """

    operator: str
    size: int | None
    length: int
    depth: float
    found: float
    nll: float
    keys: int


@torch.no_grad()
def ask(
    cell: Cell, tokenizer: "tokenizers.Tokenizer", entry: Entry, length: int, depth: float, n_keys: int, seed: int
) -> Found:
    """Hide and ask for ``n_keys`` random keys of five digits, side by side."""
    chance = random.Random(f"{seed} {length} {depth}")
    keys = [str(chance.randrange(10000, 100000)) for _ in range(n_keys)]
    texts = [prompt(tokenizer, key, length, depth) for key in keys]
    answers = [tokenizer.encode(f" {key}", add_special_tokens=False).ids for key in keys]
    device, lengths = cell.device, torch.tensor([len(text) for text in texts])
    state = cell.initial_state(n_keys, entry.reduction)
    logits, state = cell(padded(texts).to(device), state, lengths=lengths.to(device), last_only=True)
    read = forced(cell, logits, padded(answers).to(device), state)
    right, lost = read.likeliest.cpu(), read.nll.double().cpu()
    real = torch.arange(right.shape[1]) < torch.tensor([[len(answer)] for answer in answers])  # (B, N)
    found, nll = (right | ~real).all(1).double().mean(), lost[real].mean()
    return Found(entry.row, entry.size, length, depth, float(found), float(nll), n_keys)


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """``(B, T)`` int64, shorter rows filled up with zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line's."""
    conditions.add_arguments(parser, ("full", "sinks:SIZE:4", "h2o", "tova"), (128, 512))
    parser.add_argument(
        "--lengths", nargs="+", type=positive_int, metavar="N", default=[256, 512, 1024, 2048], help="of the text, tokens"
    )
    parser.add_argument(
        "--depths", nargs="+", type=float, metavar="P", default=[0, 0.25, 0.5, 0.75, 1], help="of the key, 0 to 1"
    )
    parser.add_argument("--keys", type=positive_int, metavar="N", default=4, help="keys at each place (default: 4)")
    parser.add_argument("--seed", type=positive_int, default=1, help="of the keys (default: 1)")


def run(args: argparse.Namespace, source: Source) -> Report:
    """All operators, sizes, lengths and depths."""
    places = entries(args.operators, args.sizes)
    if cut := [entry for entry in places if entry.truncated]:
        raise Error(f"{cut[0]} cannot be asked; expected operators")
    if wrong := [depth for depth in args.depths if not 0 <= depth <= 1]:
        raise Error(f"--depths has {wrong[0]}; expected numbers from 0 to 1")
    prompt(source.tokenizer, "12345", min(args.lengths), 0)  # what it refuses, it refuses now
    source.check_memory(args.keys, [entry.size for entry in places], max(args.lengths))
    settings = {"experiment": "passkey", "model": source.cell.fingerprint().digest(), "keys": args.keys, "seed": args.seed}
    sweep = Sweep(args.out, settings)
    rows = {e: {f"{e} at {d:g} of {n}": (n, d) for n in args.lengths for d in args.depths} for e in places}
    for entry, now in sweep.pending(rows, 1, source.progress):
        for key, (length, depth) in now.items():
            sweep[key] = asdict(ask(source.cell, source.tokenizer, entry, length, depth, args.keys, args.seed))
    found = [Found(**{**sweep[key], "operator": e.row, "size": e.size}) for e, row in rows.items() for key in row]
    return report(found)


def report(records: Sequence[Found]) -> Report:
    """Tables by length, and the heat maps of depth and length."""
    lengths, depths = sorted({r.length for r in records}), sorted({r.depth for r in records})
    panels, found, nats = {}, [], []
    for operator, size in dict.fromkeys((r.operator, r.size) for r in records):
        mine = {(r.length, r.depth): r for r in records if (r.operator, r.size) == (operator, size)}
        name = operator if size is None else operator.replace("SIZE", str(size)) if "SIZE" in operator else f"{operator}:{size}"
        panels[name] = torch.tensor([[mine[n, d].found for d in depths] for n in lengths])
        found.append([name, *(f"{sum(mine[n, d].found for d in depths) / len(depths):.0%}" for n in lengths)])
        nats.append([name, *(f"{sum(mine[n, d].nll for d in depths) / len(depths):.2f}" for n in lengths)])
    columns, keys = ["operator", *(f"{n:,} tokens" for n in lengths)], records[0].keys * len(depths)
    tables = [
        Table("Pass keys found", columns, found, f"Of {keys} at each length, at {len(depths)} depths."),
        Table("Nats per token of the key", columns, nats, "A digit drawn at random costs 2.30."),
    ]
    ticks = ([f"{d:g}" for d in depths], [str(n) for n in lengths])
    maps = HeatMaps("pass keys found", "depth", "tokens", panels, "share of keys found", ticks=ticks)
    return Report(tables, [asdict(r) for r in records], {"passkey.png": maps})
