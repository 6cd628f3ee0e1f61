"""``python tests/benchmarks/step.py FOLDER``: one token under TOVA(512) beside one of transformers at length 512.

FOLDER is a Hugging Face folder (`make test` leaves one beside the GGUF in the cache). Both in one process, with the same
threads, float32, uncompiled; in turn, in blocks of some tokens; the ratio is taken block by block and its median quoted.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache

import converters
import msrnn


@torch.no_grad()
def main(folder: str, size: int, blocks: int, block: int) -> None:
    cell = converters.load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(cell.config.vocab_size, (1, size + 1), generator=torch.Generator().manual_seed(0))
    states = {"step_": None, "step": None}
    _, full = cell(tokens, cell.initial_state(1, msrnn.TOVA(size)), last_only=True)
    states = dict.fromkeys(states, full)
    states["step_"] = full.clone()
    cache = DynamicCache()
    model(tokens[:, :size], past_key_values=cache)

    def ours(name: str) -> None:
        _, states[name] = getattr(cell, name)(tokens[:, 0], states[name])

    def theirs() -> None:
        model(tokens[:, :1], past_key_values=cache)
        cache.crop(-1)  # back to the same length

    ways = {
        "transformers, DynamicCache, sdpa": theirs,
        "msrnn, step_": lambda: ours("step_"),
        "msrnn, step": lambda: ours("step"),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(blocks + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(block):
                way()
            spent[name].append((time.perf_counter() - start) / block * 1e3)
    assert cache.get_seq_length() == size
    first = spent[next(iter(ways))][1:]  # the first block warms up
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, {size} rows, {blocks} blocks of {block} tokens"
    )
    for name, times in spent.items():
        ratios = [a / b for a, b in zip(times[1:], first, strict=True)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"  {name:34} {statistics.median(times[1:]):6.1f} ms/token   × {middle:.2f} ({low:.2f} … {high:.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--block", type=int, default=8)
    main(**vars(parser.parse_args()))
