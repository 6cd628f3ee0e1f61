"""Check that speculative decoding writes the tokens of plain decoding: ``decoding_agrees.py MODEL``.

The twenty prompts of ``msrnn/bench/prompts.py`` are continued greedily in float32, all in one ragged batch, by ``generate`` and
by every way of guessing. Tokens and kept positions have to be the same. Where they are not, a step and the fold have rounded
sums differently; it has to be shown that they did so where it mattered: between two tokens, or two rows, as good as equal.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import converters
import msrnn
from msrnn.bench.prompts import PROMPTS
from msrnn.decoding.generate import read_prompt
from msrnn.diagnostics.invariants import BOUNDS, compare_step

REDUCTIONS = ("full", "window:64", "sinks:96:4", "h2o:128", "tova:64", "tova:256")
WAYS = {
    "jacobi, block 8": {"block": 8},
    "1 guess of 12": {"ngram": 13, "guesses": 1},
    "auto": {"guesses": "auto"},
    "window 4, 3 guesses of 4": {"window": 4, "ngram": 5, "guesses": 3},
}


class Verdict(NamedTuple):
    """What came of one prompt under one operator, by one way: ``same``, ``near-tie``, or ``WRONG``."""

    reduction: str
    way: str
    name: str
    outcome: str
    tokens_per_step: float


def ragged(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """``(B, T)`` ids, right-padded, and their lengths."""
    lengths = torch.tensor([len(text) for text in texts])
    return torch.tensor([text + [0] * (int(lengths.max()) - len(text)) for text in texts]), lengths


def compare(cell, texts: dict[str, list[int]], reduction: str, count: int, ways=WAYS) -> Iterator[Verdict]:
    """Continue every text by ``count`` tokens in every way."""
    tokens, lengths = ragged(list(texts.values()))
    start, facts = cell.initial_state(len(texts), reduction), {"max_new_tokens": count, "lengths": lengths}
    greedy, end = msrnn.generate(cell, tokens, start, **facts)
    for way, settings in ways.items():
        decode = msrnn.jacobi if "block" in settings else msrnn.lookahead
        new, after, record = decode(cell, tokens, start, **settings, **facts)
        for b, (name, text) in enumerate(texts.items()):
            outcome = "same"
            if not new[b].equal(greedy[b]) or held(after, b) != held(end, b):
                outcome = judge(cell, text, reduction, greedy[b], new[b])
            yield Verdict(reduction, way, name, outcome, float(record.accepted[:, b].sum() / (record.accepted[:, b] > 0).sum()))


def held(state, b: int) -> list:
    """``[layer][head]``: the positions that row b of the batch holds."""
    return [[sorted(p for p in head if p >= 0) for head in H.positions[b].tolist()] for H in state]


def judge(cell, text: list[int], reduction: str, greedy: Tensor, new: Tensor) -> str:
    """Whether step and fold, over what was written, part at a near-tie: of two rows, or of the two likeliest tokens."""
    differ = (greedy != new).nonzero()[:, 0].tolist()
    stop = differ[0] if differ else len(greedy)
    _, state = read_prompt(cell, torch.tensor([text]), cell.initial_state(1, reduction), None, 0)
    if stop and reduction != "full":
        try:
            compared, _ = compare_step(cell, greedy[None, :stop], state)
        except msrnn.Error as wrong:
            return f"WRONG: {wrong}"
        if compared.near_ties:
            return f"near-tie: {compared.near_ties} decisions"
    if not differ:
        return "WRONG: other positions, and no near-tie"
    logits, _ = cell(torch.tensor([[*text, *greedy[:stop].tolist()]]), cell.initial_state(1, reduction), last_only=True)
    one, other = logits[0, greedy[stop]], logits[0, new[stop]]
    gap = float((one - other).abs() / torch.maximum(one.abs(), other.abs()))
    near = gap <= BOUNDS[logits.dtype][1] and {int(greedy[stop]), int(new[stop])} == set(logits[0].topk(2).indices.tolist())
    return f"{'near-tie' if near else 'WRONG'}: token {stop}, logits {gap:.1e} apart"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--reductions", nargs="+", default=REDUCTIONS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    args = parser.parse_args()
    cell, tokenizer = converters.load(args.model, dtype=torch.float32), converters.tokenizer(args.model)
    texts = {prompt.name: prompt.encode(cell, tokenizer) for prompt in PROMPTS}
    found = []
    with tqdm(total=len(args.reductions) * len(args.ways) * len(texts), unit="text") as bar:
        for reduction in args.reductions:
            for verdict in compare(cell, texts, reduction, args.tokens, {way: WAYS[way] for way in args.ways}):
                found.append(verdict)
                bar.update()
                if verdict.outcome != "same":
                    bar.write(f"{verdict.reduction}, {verdict.way}, {verdict.name}: {verdict.outcome}")
    for reduction in args.reductions:
        for way in args.ways:
            some = [v for v in found if (v.reduction, v.way) == (reduction, way)]
            same, near = (sum(v.outcome.startswith(kind) for v in some) for kind in ("same", "near-tie"))
            pace = sum(v.tokens_per_step for v in some) / len(some)
            print(f"{reduction:12} {way:26} {same} of {len(some)} the same, {near} near-ties, {pace:.2f} tokens a step")
    return int(any(v.outcome.startswith("WRONG") for v in found))


if __name__ == "__main__":
    sys.exit(main())
