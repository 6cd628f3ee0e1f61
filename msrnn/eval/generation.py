"""Long continuations under a bounded state, beside the unbounded model's own (the paper's sec. 5.4, without its judge).

A prompt is a text's chunk. What a bounded model writes is then read by the unbounded one: how likely it finds that text, and
how many of its tokens it would have written there itself. Nobody judges whether the text is good.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..decoding.generate import generate
from ..errors import Error
from ..reporting.report import Report, Table
from ..reporting.statistics import mean
from ..reporting.sweep import Sweep
from . import conditions
from .conditions import Entry, entries
from .inputs import Source, add_text_arguments
from .teacher_forcing import forced
from .texts import Chunk, text_digest


@dataclass(frozen=True)
class Written:
    """One continuation.

    Attributes:
        operator, size, chunk: which, and after which prompt.
        ids: the tokens, the one that ended it included.
        ended: whether one did.
        nll: nats a token that the unbounded model finds in it.
        agreed: the share of its tokens that the unbounded model, having read all before, would have taken.
    """

    operator: str
    size: int | None
    chunk: str
    ids: list[int]
    ended: bool
    nll: float
    agreed: float

    def distinct(self, n: int) -> float:
        """Different runs of n tokens, of all there are; 1 where there is none."""
        runs = [tuple(self.ids[i : i + n]) for i in range(len(self.ids) - n + 1)]
        return len(set(runs)) / len(runs) if runs else 1.0

    def alike(self, other: "Written") -> int:
        """How many tokens both begin with."""
        same = [a == b for a, b in zip(self.ids, other.ids, strict=False)]
        return same.index(False) if False in same else len(same)


@torch.no_grad()
def write(cell: Cell, chunks: Sequence[Chunk], entry: Entry, max_new_tokens: int, seed: int | None = None) -> list[Written]:
    """Continue prompts of the same length side by side: greedily, or with a ``seed`` by drawing at temperature 1."""
    device, eos = cell.device, cell.config.eos_token_ids
    prompts = torch.stack([chunk.ids for chunk in chunks]).to(device)
    chance = None if seed is None else torch.Generator(device).manual_seed(seed)
    state = cell.initial_state(len(chunks), entry.reduction)
    new, _ = generate(
        cell,
        prompts,
        state,
        max_new_tokens=max_new_tokens,
        do_sample=seed is not None,
        eos_token_id=eos,
        generator=chance,
    )
    logits, state = cell(prompts, cell.initial_state(len(chunks), "full"), last_only=True)
    read, found = forced(cell, logits, new, state), []
    for b, chunk in enumerate(chunks):
        ends = torch.isin(new[b], torch.tensor(eos, dtype=torch.int64, device=device)).nonzero()
        n = int(ends[0]) + 1 if len(ends) else new.shape[1]
        nll, agreed = (float(x[b, :n].double().mean()) for x in read)
        found.append(Written(entry.row, entry.size, chunk.name, new[b, :n].tolist(), len(ends) > 0, nll, agreed))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line's."""
    add_text_arguments(parser, chunk=256)
    conditions.add_arguments(parser, ("tova", "sinks:SIZE:4", "h2o"), (64, 128, 256))
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive_int, default=512, help="the longest continuation (default: 512)"
    )
    parser.add_argument(
        "--seed", metavar="N", type=positive_int, help="draw, from this seed on (default: the likeliest token is taken)"
    )
    parser.add_argument("--batch", type=positive_int, metavar="B", default=4, help="prompts side by side (default: 4)")


def run(args: argparse.Namespace, source: Source) -> Report:
    """Continue all prompts under all operators and sizes, and unbounded."""
    places = entries(args.operators, args.sizes)
    if cut := [entry for entry in places if entry.truncated]:
        raise Error(f"{cut[0]} has no state to write from; expected operators")
    if not any(entry.size is None for entry in places):
        places = entries(["full", *args.operators], args.sizes)
    chunks = source.chunks(args)
    source.check_memory(args.batch, [None], args.chunk + args.max_new_tokens)
    about = {
        "experiment": "generation",
        "model": source.cell.fingerprint().digest(),
        "text": text_digest(chunks),
        "chunk": args.chunk,
    }
    sweep = Sweep(args.out, about | {"max_new_tokens": args.max_new_tokens, "seed": args.seed, "batch": args.batch})
    groups = [chunks[i : i + args.batch] for i in range(0, len(chunks), args.batch)]  # drawing depends on who is beside
    rows = {(e, i): {f"{e} after {c.name}": c for c in group} for e in places for i, group in enumerate(groups)}
    for (entry, i), now in sweep.pending(rows, args.batch, source.progress):
        seed = None if args.seed is None else args.seed + i
        for written in write(source.cell, groups[i], entry, args.max_new_tokens, seed):
            if (key := f"{entry} after {written.chunk}") in now:
                sweep[key] = asdict(written)
    found = [Written(**{**sweep[key], "operator": e.row, "size": e.size}) for (e, _), row in rows.items() for key in row]
    return report(found, args.max_new_tokens)


def report(records: Sequence[Written], most: int) -> Report:
    """One row per operator and size."""
    own = {r.chunk: r for r in records if r.size is None}
    rows = []
    for place in dict.fromkeys((r.operator, r.size) for r in records):
        mine = [r for r in records if (r.operator, r.size) == place]

        def over(of: Callable[[Written], float], mine: Sequence[Written] = mine) -> float:
            return mean([of(r) for r in mine]).value

        words = [f"{over(lambda r: len(r.ids)):,.0f}", f"{over(lambda r: r.ended):.0%}", f"{over(lambda r: r.nll):.3f}"]
        words += [f"{over(lambda r: r.agreed):.1%}", f"{over(lambda r: r.alike(own[r.chunk])):,.0f}"]
        words += [f"{over(lambda r, n=n: r.distinct(n)):.3f}" for n in (1, 2, 4)]  # type: ignore[misc]
        rows.append([place[0], "unbounded" if place[1] is None else str(place[1]), *words])
    columns = ["operator", "size", "tokens", "ended", "nats/token", "agreed", "alike", "distinct-1", "distinct-2", "distinct-4"]
    note = (
        f"{len(own)} prompts, up to {most:,} tokens each, means over prompts. Nats a token and agreement: of the text under "
        "the unbounded model. Alike: tokens before the text departs from the unbounded model's own. No judge has read them."
    )
    return Report([Table("Continuations", columns, rows, note)], [asdict(r) for r in records])
