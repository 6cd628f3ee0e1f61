"""``python tests/benchmarks/fold.py FOLDER --text BOOK``: reading a text under an operator beside transformers' dense prefill.

FOLDER is a Hugging Face folder; without BOOK random ids are read. All ways in one process with the same threads, logits of the
last token only, in turn; the ratio is taken round by round and its median quoted. ``--what ragged`` sets eight texts of 256 to
2,048 tokens beside eight equal ones of as many in all, ``--what memory`` the peak of 32,768 tokens beside that of 2,048, over
the parameters and each in a process of its own.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import converters
from msrnn import Cell, decide

Ways = dict[str, Callable[[], object]]


def read(folder: str, text: str | None, count: int) -> Tensor:
    """``(1, count)`` ids: the first of a book, or random ones."""
    if text is None:
        return torch.randint(converters.config(folder).vocab_size, (1, count), generator=torch.Generator().manual_seed(0))
    ids = converters.tokenizer(folder).encode(Path(text).read_text("utf-8")).ids
    assert len(ids) >= count, f"{text} has {len(ids)} tokens only"
    return torch.tensor([ids[:count]])


@torch.no_grad()
def compare(ways: Ways, rounds: int, per: int = 0) -> None:
    """Every way in turn, ``rounds`` times after one to warm up; times as ratios to those of the first way."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            spent[name].append(time.perf_counter() - start)
    first = next(iter(spent.values()))[1:]
    for name, times in spent.items():
        ratios = sorted(a / b for a, b in zip(times[1:], first, strict=True))
        middle, seconds = statistics.median(ratios), statistics.median(times[1:])
        rate = f"   {per / seconds:,.0f} tokens/s" if per else ""
        print(f"  {name:36} {seconds:7.2f} s   × {middle:.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f}){rate}", flush=True)


def time_operators(folder: str, ids: Tensor, rounds: int, reductions: list[str]) -> None:
    cell = converters.load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ways: Ways = {"transformers, dense, sdpa": lambda: model(ids, past_key_values=DynamicCache(), logits_to_keep=1)}
    for form in reductions:
        ways[form] = lambda form=form: cell(ids, cell.initial_state(1, form), last_only=True)
    compare(ways, rounds)
    count_looks(cell, ids, reductions)


def time_bfloat16(folder: str, ids: Tensor, rounds: int, form: str) -> None:
    cells = {"float32": converters.load(folder), "bfloat16": converters.load(folder, dtype=torch.bfloat16)}
    compare({f"{form}, {n}": lambda c=c: c(ids, c.initial_state(1, form), last_only=True) for n, c in cells.items()}, rounds)


def time_ragged(folder: str, ids: Tensor, rounds: int, form: str) -> None:
    cell, lengths = converters.load(folder), torch.linspace(256, 2048, 8).long()
    equal = torch.full_like(lengths, int(lengths.float().mean()))
    text = ids[:, :2048].expand(8, -1).contiguous()
    ways: Ways = {}
    for name, n in {"8 equal texts": equal, "8 ragged texts": lengths}.items():
        some = text[:, : int(n.max())]
        ways[name] = lambda some=some, n=n: cell(some, cell.initial_state(8, form), lengths=n, last_only=True)
    compare(ways, rounds, per=int(lengths.sum()))


def count_looks(cell: Cell, ids: Tensor, reductions: list[str]) -> None:
    """How many guesses a block takes, each verified by a look at all its tokens; Window and Sinks look at positions alone."""
    guess, counts = decide._guess, [0, 0]

    def counted(cost: Tensor, leaves: Tensor, known: Tensor, settled: Tensor) -> Tensor:
        counts[0] += 1
        counts[1] += not settled.any()
        return guess(cost, leaves, known, settled)

    decide._guess = counted
    for form in reductions:
        counts[:] = [0, 0]
        with torch.no_grad():
            cell(ids, cell.initial_state(1, form), last_only=True)
        if counts[1]:
            print(f"  {form:36} {counts[0] / counts[1]:7.2f} guesses a block")
    decide._guess = guess


def peak(folder: str, ids: Tensor, form: str) -> int:
    """Bytes resident at most while ``ids`` are read, over those before. In a process of its own: a peak never goes down."""
    torch.set_num_threads(2)
    cell = converters.load(folder)
    cell(ids[:, :8], cell.initial_state(1, form), last_only=True)
    before = _status("VmRSS")
    cell(ids, cell.initial_state(1, form), last_only=True)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure_memory(folder: str, text: str | None, form: str) -> None:
    found = []
    for count in (2048, 32768):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(peak, (folder, read(folder, text, count), form)))
        print(f"  {form}, {count:6} tokens: {found[-1] / 1e6:.0f} MB over the parameters", flush=True)
    print(f"  × {found[1] / found[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--what", choices=("operators", "bfloat16", "ragged", "memory"), default="operators")
    parser.add_argument("--text", help="a book")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    names = ["full", "window:512", "sinks:512:4", "tova:512", "h2o:512"]
    parser.add_argument("--reductions", nargs="+", default=names, help="only the first counts but for --what operators")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.what}, {args.rounds} rounds")
    form = args.reductions[0] if args.reductions != names else "tova:512"
    if args.what == "memory":
        return measure_memory(args.folder, args.text, form)
    ids = read(args.folder, args.text, max(args.tokens, 2048))[:, : args.tokens]
    if args.what == "operators":
        return time_operators(args.folder, ids, args.rounds, args.reductions)
    return (time_bfloat16 if args.what == "bfloat16" else time_ragged)(args.folder, ids, args.rounds, form)


if __name__ == "__main__":
    main()
