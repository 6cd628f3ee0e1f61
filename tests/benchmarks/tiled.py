"""Measure the memory of tiled attention against the T x T softmax: ``python tests/benchmarks/tiled.py``.

Each line is measured in a separate process: peak resident memory (VmHWM) minus resident memory before. B = 1, one head,
forward and backward pass.
"""

import argparse
import subprocess
import sys
from pathlib import Path

MEASURED = """
import torch
from pathlib import Path
from torch.nn.functional import scaled_dot_product_attention as fused
from msrnn.layers.tiled_attention import attention

def softmax(q, k, v):
    future = torch.ones(len(q[0, 0]), len(q[0, 0]), dtype=torch.bool).triu(1)
    return ((q @ k.mT) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf).softmax(-1) @ v

def read(what):
    return int(Path("/proc/self/status").read_text().split(what + ":")[1].split()[0]) * 1024

kernels = {{
    "softmax": softmax,
    "tiled": lambda q, k, v: attention(q, k, v, causal=True, tile=({tile}, {tile})),
    "fused": lambda q, k, v: fused(q, k, v, is_causal=True),
}}
def run(T):
    q, k, v = (torch.randn(1, 1, T, {D}, requires_grad=True) for _ in range(3))
    kernels["{kernel}"](q, k, v).sum().backward()

run(16)  # the first call loads code
before = read("VmRSS")
run({T})
print(read("VmHWM") - before)
"""


def megabytes(kernel: str, T: int, D: int, tile: int) -> float:
    code = MEASURED.format(kernel=kernel, T=T, D=D, tile=tile)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1e6


def main(lengths: list[int], head_dim: int, tile: int) -> None:
    print(f"float32, head of {head_dim}, tiles of {tile} x {tile}; MB above the resident memory before, forward and backward\n")
    print("| tokens | one T x T matrix | softmax | tiled | PyTorch's fused kernel |\n|---:|---:|---:|---:|---:|")
    for T in lengths:
        found = [megabytes(kernel, T, head_dim, tile) for kernel in ("softmax", "tiled", "fused")]
        print("|", " | ".join([f"{T:,}", f"{4 * T * T / 1e6:.1f}", *(f"{x:.1f}" for x in found)]), "|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--tile", type=int, default=128)
    main(**vars(parser.parse_args()))
