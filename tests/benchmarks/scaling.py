"""Time step and unroll in one process and over two ranks: ``python tests/benchmarks/scaling.py``.

Each process is pinned to one core with one thread; for comparison, one process also uses both cores. The three configurations
run in turn, ``--repeats`` times, each by ``msrnn bench --only scaling``. The model has random weights and the sizes of
SmolLM2-135M, with 8 query and 4 key/value heads instead of 9 and 3, which two ranks cannot share. Linux only: taskset pins a
process. ``--layers`` makes the model smaller; further options, such as ``--rounds``, are those of ``msrnn bench``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

from msrnn.layers.rotary import Rope
from msrnn.models import Config
from msrnn.models.registry import build_random
from msrnn.reporting.report import markdown_table

SMOLLM2_8_HEADS = Config(
    family="llama",
    vocab_size=49152,
    width=576,
    n_layers=30,
    n_heads=8,
    n_kv_heads=4,
    head_dim=64,
    ffn_width=1536,
    norm_eps=1e-5,
    rope=Rope(100000.0),
    context_length=8192,
    tied=True,
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python"]
CONFIGURATIONS = {
    "1 process, 1 core": (1, ["taskset", "-c", "0"]),
    "1 process, 2 cores": (2, ["taskset", "-c", "0,1"]),
    "2 ranks, 1 core each": (1, [*TORCHRUN, "bash", "-c", 'exec taskset -c $LOCAL_RANK "$@"', "bash"]),
}
"""By name, the threads of a process, and the words before the command."""


def measure(folder, name, options):
    """Return the rows of ``msrnn bench --only scaling`` in one configuration: a step, and a text."""
    threads, launcher = CONFIGURATIONS[name]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "bench.json"
        command = [sys.executable, "-m", "msrnn", "bench", str(folder), "--only", "scaling", "--json", str(path), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*launcher, *command], check=True, env=environment, stdout=subprocess.DEVNULL)
        return [entry["row"] for entry in json.loads(path.read_text())["rows"]]


def table(found):
    """Return a table of medians: milliseconds, tokens per second, and ratios to one process on one core."""
    columns = [
        "",
        "step, ms",
        "step, tokens/s",
        "ratio",
        "unroll, tokens/s",
        "ratio",
        "step, model of cost, ms",
        "ratio",
        "measured",
    ]
    values, rows = {}, []
    for name, runs in found.items():
        values[name] = [median(x) for x in zip(*((s["value"], u["value"], s["baseline"]) for s, u in runs), strict=True)]
        first, (step, read, predicted) = next(iter(values.values())), values[name]
        speed = [f"{step:.1f}", f"{1e3 / step:.1f}", f"{first[0] / step:.2f}", f"{read:,.0f}", f"{read / first[1]:.2f}"]
        rows.append([name, *speed, f"{predicted:.1f}", f"{first[2] / predicted:.2f}", runs[-1][0]["note"]])
    return markdown_table(columns, rows)


def main(repeats, layers, options):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        torch.manual_seed(0)
        build_random(Config(**{**vars(SMOLLM2_8_HEADS), "n_layers": layers})).save(folder)
        found = {name: [] for name in CONFIGURATIONS}
        for _ in range(repeats):
            for name in CONFIGURATIONS:
                found[name].append(measure(folder, name, options))
    print(table(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each configuration")
    parser.add_argument("--layers", type=int, default=30)
    known, others = parser.parse_known_args()
    main(**vars(known), options=others)
