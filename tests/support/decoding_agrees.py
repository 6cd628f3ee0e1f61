"""Check that speculative decoding writes the tokens of plain decoding: ``decoding_agrees.py MODEL``.

The twenty prompts of ``msrnn/bench/prompts.py`` are continued greedily in float32, in one ragged batch, by ``generate`` and by
each speculative method. Tokens and retained positions must be equal. The step and the unroll round sums differently, so they
may differ at a near-tie: two tokens with nearly equal logits, or two rows with nearly equal scores. Any other difference is an
error.
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
from msrnn.diagnostics.invariants import BOUNDS, compare_step

REDUCTIONS = ("full", "window:64", "sinks:96:4", "h2o:128", "tova:64", "tova:256")
METHODS = {
    "jacobi, block 8": {"block": 8},
    "1 draft of 12": {"ngram": 13, "guesses": 1},
    "auto": {"guesses": "auto"},
    "window 4, 3 drafts of 4": {"window": 4, "ngram": 5, "guesses": 3},
}


class Verdict(NamedTuple):
    """Result of one prompt under one operator by one method; ``outcome`` begins with ``same``, ``near-tie`` or ``WRONG``."""

    reduction: str
    method: str
    name: str
    outcome: str
    tokens_per_step: float


def ragged(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ``(B, T)`` ids, padded on the right, and their lengths."""
    lengths = torch.tensor([len(text) for text in texts])
    return torch.tensor([text + [0] * (int(lengths.max()) - len(text)) for text in texts]), lengths


def compare(cell, texts: dict[str, list[int]], reduction: str, count: int, methods=METHODS) -> Iterator[Verdict]:
    """Continue every text by ``count`` tokens with every method."""
    tokens, lengths = ragged(list(texts.values()))
    start, limits = cell.initial_state(len(texts), reduction), {"max_new_tokens": count, "lengths": lengths}
    greedy, end, _ = msrnn.generate(cell, tokens, start, **limits)
    for method, settings in methods.items():
        decode = msrnn.jacobi if "block" in settings else msrnn.lookahead
        new, after, _, record = decode(cell, tokens, start, **settings, **limits)
        for b, (name, text) in enumerate(texts.items()):
            outcome = "same"
            if not new[b].equal(greedy[b]) or retained(after, b) != retained(end, b):
                outcome = judge(cell, text, reduction, greedy[b], new[b])
            accepted = record.accepted[:, b]
            yield Verdict(reduction, method, name, outcome, float(accepted.sum() / (accepted > 0).sum()))


def retained(state, b: int) -> list:
    """Return the retained positions of row b of the batch, ``[layer][head]``."""
    return [[sorted(p for p in head if p >= 0) for head in H.positions[b].tolist()] for H in state]


def judge(cell, text: list[int], reduction: str, greedy: Tensor, new: Tensor) -> str:
    """Return the outcome for unequal tokens or positions: a near-tie of two rows or of the two most likely tokens, or WRONG."""
    differ = (greedy != new).nonzero()[:, 0].tolist()
    stop = differ[0] if differ else len(greedy)
    _, state = cell(torch.tensor([text]), cell.initial_state(1, reduction), last_only=True)
    if stop and reduction != "full":
        try:
            compared, _ = compare_step(cell, greedy[None, :stop], state)
        except msrnn.Error as wrong:
            return f"WRONG: {wrong}"
        if compared.near_ties:
            return f"near-tie: {compared.near_ties} decisions"
    if not differ:
        return "WRONG: other positions without a near-tie"
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
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    cell, tokenizer = converters.load(args.model, dtype=torch.float32), converters.tokenizer(args.model)
    texts = {prompt.name: prompt.encode(cell, tokenizer) for prompt in PROMPTS}
    found = []
    with tqdm(total=len(args.reductions) * len(args.methods) * len(texts), unit="text") as bar:
        for reduction in args.reductions:
            for verdict in compare(cell, texts, reduction, args.tokens, {method: METHODS[method] for method in args.methods}):
                found.append(verdict)
                bar.update()
                if verdict.outcome != "same":
                    bar.write(f"{verdict.reduction}, {verdict.method}, {verdict.name}: {verdict.outcome}")
    for reduction in args.reductions:
        for method in args.methods:
            some = [v for v in found if (v.reduction, v.method) == (reduction, method)]
            same, near = (sum(v.outcome.startswith(kind) for v in some) for kind in ("same", "near-tie"))
            mean = sum(v.tokens_per_step for v in some) / len(some)
            agreement = f"{same} of {len(some)} the same, {near} near-ties"
            print(f"{reduction:12} {method:26} {agreement}, {mean:.2f} tokens per forward pass")
    return int(any(v.outcome.startswith("WRONG") for v in found))


if __name__ == "__main__":
    sys.exit(main())
