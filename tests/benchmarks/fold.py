"""``python tests/benchmarks/fold.py FOLDER``: reading a text under an operator beside transformers' dense prefill.

FOLDER is a Hugging Face folder. Both in one process with the same threads, float32, logits of the last token only, in turn; the
ratio is taken pair by pair and its median quoted.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache

import converters


@torch.no_grad()
def main(folder: str, tokens: int, rounds: int, reductions: list[str]) -> None:
    cell = converters.load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = torch.randint(cell.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    ways = {"transformers, dense, sdpa": lambda: model(text, past_key_values=DynamicCache(), logits_to_keep=1)}
    for reduction in reductions:
        ways[reduction] = lambda reduction=reduction: cell(text, cell.initial_state(1, reduction), last_only=True)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            spent[name].append(time.perf_counter() - start)
    first = next(iter(spent.values()))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, {tokens} tokens, {rounds} rounds")
    for name, times in spent.items():
        ratio = statistics.median(a / b for a, b in zip(times, first, strict=True))
        print(f"  {name:28} {statistics.median(times):6.2f} s   × {ratio:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reductions", nargs="+", default=["full", "window:512", "tova:512", "h2o:512"])
    main(**vars(parser.parse_args()))
