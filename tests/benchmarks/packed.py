"""Time the products of SmolLM2-135M's layers with packed matrices: ``python tests/benchmarks/packed.py``.

For each number of rows: PyTorch's kernels for packed matrices, and products with dequantised parts of the matrices. The bounds
``MAX_KERNEL_ROWS`` in ``msrnn/layers/packed/kernels.py`` follow from these figures.
"""

import time

import torch

from msrnn.layers.packed import kernels
from msrnn.layers.packed.matrix import quantise

LAYER = [(960, 576), (576, 576), (3072, 576), (576, 1536)]  # q, k and v; o; gate and up; down
COPIES, LAYERS = 4, 30


@torch.no_grad()
def main(rounds: int = 5) -> None:
    weights = [torch.randn(shape) * 0.02 for shape in LAYER * COPIES]
    four = [
        (kernels.to_blocks(m.codes, kernels.block_rows(len(m.codes))), kernels.interleave_scales(m)) for m in map(int4, weights)
    ]
    eight = [(m.codes, m.scales) for m in map(int8, weights)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, blocks of {kernels.KERNEL_BLOCK_ROWS} rows; ms")
    for rows in (1, 4, 16, 32, 64, 128, 256):
        x = {width: torch.randn(rows, width).bfloat16() for width in (576, 1536)}
        found = []
        for product, matrices in ((kernels.int4_linear, four), (kernels.int8_linear, eight)):
            for max_rows in (rows, 0):  # kernel, dequantised
                kernels.MAX_KERNEL_ROWS = {4: max_rows, 8: max_rows}
                found.append(min(timed(product, matrices, weights, x) for _ in range(rounds)))
        print(
            "  {:3} rows   int4 kernel {:6.1f}, dequantised {:6.1f}   int8 kernel {:6.1f}, dequantised {:6.1f}".format(
                rows, *found
            )
        )


def timed(product, matrices, weights, x) -> float:
    start = time.perf_counter()
    for matrix, weight in zip(matrices, weights, strict=True):
        product(x[weight.shape[1]], *matrix)
    return (time.perf_counter() - start) * 1e3 * LAYERS / COPIES


def int4(weight):
    return quantise(weight, 4)


def int8(weight):
    return quantise(weight, 8)


if __name__ == "__main__":
    main()
