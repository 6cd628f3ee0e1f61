"""Check the many-token path against the step loop on a long text: ``unroll_agrees.py MODEL --text FILE --tokens 1500``.

The two paths round sums differently. Where two rows have nearly equal scores (a near-tie), one path may evict one row and the
other path the other. From then on the caches differ, and so do the logits. The check follows the step loop through the whole
text. At each token it compares every eviction with the unroll. Where one differs, the scores of the two rows are compared, and
the unroll is started again from the state of the step loop. So every eviction is compared after equal rows.

The table shows for each operator: differing evictions of all evictions; the largest relative gap between the scores of the two
rows of a differing eviction; mean and maximum |difference| of the logits after equal rows; then, without any restart, mean and
maximum |difference| of the logits, tokens with another argmax, and rows that differ at the end. The exit status is 1 if a gap
or a mean difference after equal rows exceeds the bounds of ``msrnn.diagnostics.invariants`` for the dtype.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import converters
import msrnn
from msrnn.diagnostics.invariants import BOUNDS
from msrnn.recurrence.trace import Trace

REDUCTIONS = ("tova:256", "h2o:256", "sinks:256:4", "morphkv:128:32")


@dataclass
class Agreement:
    """Comparison of one text under one operator.

    Attributes:
        evictions: number of decisions to evict a row; one per layer, or one per key/value head.
        gaps: relative gap of the two scores, for each decision that differs after equal rows.
        mean, largest: |difference| of the logits after equal rows.
        free_mean, free_largest: |difference| of the logits of one unroll without a restart.
        free_argmax: number of tokens with another argmax, without a restart.
        free_rows, rows: number of rows that differ at the end without a restart, and of all rows.
    """

    evictions: int = 0
    gaps: list[float] = field(default_factory=list)
    mean: float = 0.0
    largest: float = 0.0
    free_mean: float = 0.0
    free_largest: float = 0.0
    free_argmax: int = 0
    free_rows: int = 0
    rows: int = 0

    def holds(self, dtype: torch.dtype) -> bool:
        """Return True if every differing decision is a near-tie and the logits after equal rows agree."""
        bound, gap = BOUNDS[dtype]
        return self.mean <= bound and all(x <= gap for x in self.gaps)


@torch.no_grad()
def compare(cell: msrnn.Cell, text: Tensor, reduction: str, progress: bool = False, kv_dtype: str | None = None) -> Agreement:
    """Read ``text (T,)`` by the step loop and by the unroll, and compare every eviction."""
    result, T = Agreement(), len(text)
    state = cell.initial_state(1, reduction, dtype=kv_dtype)
    free_logits, free_end = cell(text[None], state)
    start, origin, (unrolled, trace) = 0, state, cell.scan(text[None], state)
    for t in tqdm(range(T), desc=reduction, disable=not progress):
        before, (logits, state) = state, cell.step(text[t : t + 1], state)
        difference = (logits - unrolled[:, t - start]).abs().double()
        free = (logits - free_logits[:, t]).abs().double()
        result.mean += float(difference.mean()) / T
        result.largest = max(result.largest, float(difference.max()))
        result.free_mean += float(free.mean()) / T
        result.free_largest = max(result.free_largest, float(free.max()))
        result.free_argmax += int(logits.argmax() != free_logits[0, t].argmax())
        ours, theirs = _evicted(before, state), torch.stack([layer.left[0, :, t - start] for layer in trace])  # (L, K)
        result.evictions += _decisions(trace, ours >= 0)
        if not ours.equal(theirs):
            _, scored = cell.scan(text[None, start : t + 1], origin, weights=True, logits=False)
            result.gaps += _gaps(scored, ours, theirs)
            start, origin = t + 1, state
            if start < T:
                unrolled, trace = cell.scan(text[None, start:], state)
    for G, H in zip(free_end, state, strict=True):
        result.rows += H.positions.numel()
        pairs = zip(G.positions[0].tolist(), H.positions[0].tolist(), strict=True)
        result.free_rows += sum(len(set(a) - set(b)) for a, b in pairs)
    return result


def _evicted(before: msrnn.State, after: msrnn.State) -> Tensor:
    """Return ``(L, K)``, the position that a step of one sequence evicted in each head; −1 for none."""

    def totals(state: msrnn.State) -> tuple[Tensor, Tensor]:
        positions = torch.stack(
            [torch.stack(((H.positions[0] >= 0).sum(-1), H.positions[0].clamp(min=0).sum(-1))) for H in state]
        )
        return positions[:, 0], positions[:, 1]

    (n_before, sum_before), (n_after, sum_after) = totals(before), totals(after)
    return torch.where(n_after > n_before, -1, sum_before + before.clock - sum_after)


def _decisions(trace: Trace, evicts: Tensor) -> int:
    """Count the decisions in ``evicts (L, K)``: one per layer if all heads share it."""
    shared = torch.tensor([layer.last_visible.shape[1] == 1 for layer in trace])
    return int(torch.where(shared, evicts.any(1), evicts.sum(1)).sum())


def _gaps(trace: Trace, ours: Tensor, theirs: Tensor) -> list[float]:
    """Return the relative gap of the scores of two rows, for each decision that differs at the last token of ``trace``."""
    gaps = []
    for layer, one, other in zip(trace, ours.tolist(), theirs.tolist(), strict=True):
        assert layer.scores is not None
        for k in range(layer.scores.shape[1]):
            if one[k] != other[k]:
                scores = dict(zip(layer.rows[0, k].tolist(), layer.scores[0, k, -1].tolist(), strict=True))
                a, b = scores[one[k]], scores[other[k]]
                gaps.append(abs(a - b) / (max(abs(a), abs(b)) or 1.0))
    return gaps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--dtype", default="float32", choices=("float64", "float32", "bfloat16", "float16"))
    parser.add_argument("--kv-dtype", choices=("int8",), help="8-bit rows, with the bounds of bfloat16")
    parser.add_argument("--reductions", nargs="+", default=REDUCTIONS)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    cell, tokenizer = converters.load(args.model, dtype=dtype), converters.tokenizer(args.model)
    ids = tokenizer.encode(args.text.read_text(encoding="utf-8")).ids[: args.tokens]
    bounds, rows, wrong = torch.bfloat16 if args.kv_dtype else dtype, args.kv_dtype or args.dtype, False
    for reduction in args.reductions:
        found = compare(cell, torch.tensor(ids), reduction, progress=True, kv_dtype=args.kv_dtype)
        wrong |= not found.holds(bounds)
        print(
            f"{reduction}, {rows}, {len(ids)} tokens: {len(found.gaps)} of {found.evictions} evictions differ, largest "
            f"gap {max(found.gaps, default=0):.1e}; after equal rows mean {found.mean:.1e}, max {found.largest:.1e}; without "
            f"a restart mean {found.free_mean:.1e}, max {found.free_largest:.1e}, {found.free_argmax} other argmax, "
            f"{found.free_rows} of {found.rows} rows{'' if found.holds(bounds) else '  WRONG'}",
            flush=True,
        )
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
