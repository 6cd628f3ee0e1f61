"""Print the tables of docs/distributed.md from the model of cost (msrnn/distributed/cost.py):

python docs/site/cost_tables.py
"""

from collections.abc import Iterator

from msrnn.distributed.cost import (
    A100,
    H100,
    V100,
    largest_batch,
    longest_context,
    mean_rows,
    message_bytes,
    sent_bytes,
    smallest_efficient_batch,
    step_time,
)
from msrnn.distributed.model_shape import LLAMA_2_7B, LLAMA_2_70B, MISTRAL_7B, Shape
from msrnn.reporting.report import markdown_table

SHAPES, RANKS, SIZE, LENGTH = (LLAMA_2_7B, LLAMA_2_70B, MISTRAL_7B), (1, 2, 4, 8), 512, 4096
PAPER = {256: (0.15, 139, 8.5), 512: (0.28, 70, 4.8), 1024: (0.56, 35, 3.1), 2048: (1.11, 17, 1.7), 4096: (2.18, 8, 1.0)}
"""Table 1 of arXiv:2401.06104: by size, GB per sequence, largest batch and relative throughput."""
OPERATORS = {
    "full, window, sinks": 0,
    "tova-head, h2o (per head)": 0,
    "tova, h2o-layer, size 512": SIZE + 1,
    "tova, h2o-layer, size 4,096": LENGTH + 1,
}
"""By operators of equal cost, the scores that are exchanged per layer."""


def main() -> None:
    """Print all tables."""
    print(*tables().values(), sep="\n\n")


def tables() -> dict[str, str]:
    """Return the tables in Markdown by name."""
    return {
        "bytes": bytes_per_rank(),
        "messages": bytes_of_messages(),
        "capacity": capacity(),
        "speed": speed(),
        "efficient": efficient_batches(),
        "paper": paper(),
    }


def _cases() -> Iterator[tuple[Shape, int]]:
    return ((shape, ranks) for shape in SHAPES for ranks in RANKS)


def bytes_per_rank() -> str:
    """Return weights and H of one rank in 16 bits."""
    columns = ["model", "ranks", "weights, GB", "key/value heads", f"H of {SIZE} rows, MB", "H per 1,000 tokens, MB"]
    rows = []
    for shape, ranks in _cases():
        row = shape.row_bytes(ranks)
        held = [f"{2 * shape.parameters(ranks) / 1e9:.1f}", str(shape.held_kv_heads(ranks))]
        rows.append([shape.name, str(ranks), *held, f"{SIZE * row / 1e6:.1f}", f"{1000 * row / 1e6:.1f}"])
    return markdown_table(columns, rows)


def bytes_of_messages() -> str:
    """Return what one token adds to the collectives of one layer, in 16 bits."""
    columns = [
        "operator",
        "collectives of a step, LLaMA-2-70B",
        *(f"{shape.name}, bytes" for shape in SHAPES),
        "sent by each of 8 ranks, LLaMA-2-70B",
    ]
    rows = []
    for name, scores in OPERATORS.items():
        found = [message_bytes(shape, scores) for shape in SHAPES]
        n = message_bytes(LLAMA_2_70B, scores)
        sent = sent_bytes(n.layer, 8) + (8 - 1) * n.scores
        rows.append([name, str(LLAMA_2_70B.collectives(scores)), *(f"{x.layer + x.scores:,}" for x in found), f"{sent:,.0f}"])
    return markdown_table(columns, rows)


def capacity() -> str:
    """Return the largest batches and the longest unbounded context of A100 GPUs."""
    columns = ["model", "ranks", f"batch, {SIZE} rows", f"batch, {LENGTH:,} rows", "tokens in an unbounded H, batch 1"]
    rows = []
    for shape, ranks in _cases():
        fits = largest_batch(shape, A100, 1, ranks) > 0
        values = [largest_batch(shape, A100, SIZE, ranks), largest_batch(shape, A100, LENGTH, ranks)]
        values.append(longest_context(shape, A100, ranks))
        rows.append([shape.name, str(ranks), *(f"{x:,}" if fits else "weights do not fit" for x in values)])
    return markdown_table(columns, rows)


def speed() -> str:
    """Return predicted tokens per second under TOVA, and the share of communication."""
    columns = ["model", "ranks", *(f"{gpu.name.split()[0]}, batch {B}" for gpu in (A100, H100) for B in (1, 64))]
    rows = []
    for shape, ranks in _cases():
        values = []
        for gpu in (A100, H100):
            for B in (1, 64):
                if largest_batch(shape, gpu, SIZE, ranks) < B:
                    values.append("–")
                    continue
                found = step_time(shape, gpu, B, SIZE, ranks, SIZE + 1)
                values.append(f"{B / found.total:,.0f} ({found.communication / found.total:.0%})")
        rows.append([shape.name, str(ranks), *values])
    return markdown_table(columns, rows)


def efficient_batches() -> str:
    """Return the batch size from which on communication takes at most a tenth of a step, without an exchange of scores."""
    columns = ["model", "ranks", *(f"{gpu.name.split()[0]}, {rows:,} rows" for gpu in (A100, H100) for rows in (SIZE, LENGTH))]
    lines = []
    for shape, ranks in _cases():
        if ranks > 1:
            found = [smallest_efficient_batch(shape, gpu, rows, ranks) for gpu in (A100, H100) for rows in (SIZE, LENGTH)]
            lines.append([shape.name, str(ranks), *(f"{B:,}" if B else "none" for B in found)])
    return markdown_table(columns, lines)


def paper() -> str:
    """Return Table 1 of the paper next to the prediction for LLaMA-2-7B on one V100 with 32 GB."""
    columns = ["size", "GB per sequence", "paper", "largest batch", "paper ", "relative throughput", "paper  "]
    speeds = {k: PAPER[k][1] / step_time(LLAMA_2_7B, V100, PAPER[k][1], mean_rows(LENGTH, k)).total for k in PAPER}
    rows = []
    for k, (nbytes, batch, relative) in PAPER.items():
        predicted = largest_batch(LLAMA_2_7B, V100, k)
        found = [f"{k * LLAMA_2_7B.row_bytes() / 1e9:.2f}", f"{nbytes:.2f}", str(predicted), str(batch)]
        rows.append([str(k), *found, f"{speeds[k] / speeds[LENGTH]:.1f}", f"{relative:.1f}"])
    return markdown_table(columns, rows)


if __name__ == "__main__":
    main()
