"""Time the matrix products of SmolLM2-135M in float32 by each kernel: ``python tests/benchmarks/linear.py``.

The choice of kernel in ``msrnn/layers/linear.py`` follows from these figures. The last column is the time to sum the same
bytes, a lower bound of a product with one row.
"""

import statistics
import time

import torch
from torch.nn import functional

from msrnn.layers.linear import HAS_KERNEL, linear

LAYER = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]


def main(rounds: int = 9) -> None:
    about = f"torch {torch.__version__}, {torch.get_num_threads()} threads, oneDNN kernel: {HAS_KERNEL}"
    print(f"{about}; ms, medians of {rounds - 1}")
    plain = [torch.randn(shape) for shape in LAYER * 30 + [(49152, 576)]]
    transposed = [matrix.mT.contiguous().mT for matrix in plain]
    all_weights = torch.cat([matrix.flatten() for matrix in plain])
    for rows in (1, 2, 4, 16, 64):
        x = {width: torch.randn(rows, width) for width in (576, 1536)}
        kernels = {
            "linear": lambda x=x: [functional.linear(x[m.shape[1]], m) for m in plain],
            "linear, stored transposed": lambda x=x: [functional.linear(x[m.shape[1]], m) for m in transposed],
            "msrnn": lambda x=x: [linear(x[m.shape[1]], m) for m in plain],
            "sum": all_weights.sum,
        }
        times: dict[str, list[float]] = {name: [] for name in kernels}
        for _ in range(rounds):
            for name, run in kernels.items():
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
        print(f"  {rows:2} rows   " + "   ".join(f"{name} {statistics.median(t[1:]):6.1f}" for name, t in times.items()))


if __name__ == "__main__":
    main()
