"""``msrnn bench``: what was asked for is looked at first, then measured, and what was measured is told even after ctrl-C."""

import argparse
import datetime
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bench.baselines.kvpress import versions
from ..bench.baselines.transformers import Transformers, is_hugging_face
from ..bench.curve import Point, curve
from ..bench.report import as_json, line, markdown
from ..bench.result import Row, Unmeasured
from ..bench.sections import SECTIONS, measure, section
from ..bench.settings import Bench
from ..errors import Error
from ..reductions.registry import parse_reduction
from ..storage.files import atomic_file, write_json

LONGEST = 16
"""Times ``--tokens``: no section reads more."""


def run(args: argparse.Namespace, converters: Any) -> None:
    """Measure what the command line asks for; ``converters`` is the package, which only the command line knows."""
    _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    ids, source = _ids(args, converters)
    with _folder(args, converters) as export:
        bench = Bench(
            load=partial(converters.load, args.model, device=args.device, revision=args.revision),
            export=export,
            tokenizer=partial(converters.tokenizer, args.model, revision=args.revision),
            ids=ids,
            device=torch.device(args.device),
            dtype=getattr(torch, args.dtype),
            tokens=args.tokens,
            size=args.size,
            rounds=args.rounds,
            kvpress=args.kvpress_python,
            progress=True,
        )
        about = _about(args, bench, source)
        tables: dict[str, list[Row]] = {}
        points: list[Point] = []
        complete = False
        try:
            for name in args.only or SECTIONS:
                for row in measure(bench, name):
                    tables.setdefault(section(name).table, []).append(row)
                    print(line(row), file=sys.stderr, flush=True)
            if args.picture:
                points += _points(bench)
            complete = True
        finally:
            _tell(args, about, tables, points, complete)


def _tell(
    args: argparse.Namespace, about: dict[str, str], tables: dict[str, list[Row]], points: list[Point], complete: bool
) -> None:
    print(markdown(about, tables), flush=True)
    if args.json:
        with atomic_file(args.json) as beside:
            write_json(beside, {**as_json(about, tables, complete), "curve": list(map(asdict, points))})
    if points:
        from ..reporting.figures import draw_bench

        draw_bench(points, args.picture, title=f"{Path(args.model).name}, one token after another")


def _points(bench: Bench) -> Iterator[Point]:
    try:
        with torch.no_grad():
            yield from curve(bench)
    except Unmeasured as reason:
        print(f"no picture: {reason}", file=sys.stderr)


# Before any work.


def _check(args: argparse.Namespace) -> None:
    for form in (f"tova:{args.size}", f"h2o:{args.size}", f"sinks:{args.size}:4"):
        parse_reduction(form)
    if args.tokens <= max(args.size, 15):
        raise Error(f"--tokens is {args.tokens}; expected at least 16, and more than --size, {args.size}, or H is never full")
    if args.kvpress_python:
        versions(args.kvpress_python)
    if args.picture:
        from ..reporting.figures import check_picture

        check_picture(args.picture)
    if args.json and (args.json.is_dir() or not args.json.absolute().parent.is_dir()):
        raise Error(f"cannot write {args.json}; expected a file in a folder that is there")


def _ids(args: argparse.Namespace, converters: Any) -> tuple[Tensor, str]:
    """``(N,)`` ids that can be read, and what they are."""
    if args.text is None:
        vocabulary = converters.config(args.model, revision=args.revision).vocab_size
        some = torch.randint(vocabulary, (LONGEST * args.tokens,), generator=torch.Generator().manual_seed(0))
        return some, "random ids"
    try:
        words = args.text.read_text("utf-8")
    except (OSError, UnicodeError) as wrong:
        raise Error(f"cannot read the text ({wrong})") from None
    ids = torch.tensor(converters.tokenizer(args.model, revision=args.revision).encode(words).ids, dtype=torch.int64)
    if len(ids) <= args.size:
        raise Error(f"{args.text} has {len(ids)} tokens; expected more than --size, {args.size}, or H is never full")
    return ids, f"{args.text.name}, {len(ids):,} tokens"


@contextmanager
def _folder(args: argparse.Namespace, converters: Any) -> Iterator[Any]:
    """Gives a Hugging Face folder of the model when asked: its own, or one that is made then and goes in the end."""
    if is_hugging_face(args.model):
        yield lambda: Path(args.model)
        return
    with tempfile.TemporaryDirectory() as folder:

        @lru_cache
        def made() -> Path:
            target = Path(folder) / "hf"
            converters.convert(args.model, target, to="hf", revision=args.revision)
            return target

        yield made


def _about(args: argparse.Namespace, bench: Bench, source: str) -> dict[str, str]:
    cell = bench.cell()
    parameters = sum(x.numel() for x in cell.parameters())
    gpu = bench.device.type == "cuda"
    return {
        "model": f"{Path(args.model).name}, {parameters / 1e6:,.1f} million parameters, {args.dtype}",
        "made for": f"{cell.config.length:,} tokens; time and bytes are measured beyond them too",
        "read": source,
        "machine": torch.cuda.get_device_name(bench.device) if gpu else f"{_processor()}, {torch.get_num_threads()} threads",
        "with": f"torch {torch.__version__}, transformers {Transformers.version() or 'not installed'}",
        "each": f"medians of {args.rounds} rounds of texts, {5 * args.rounds} of steps, all ways in turn",
        "on": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    """The processor's name, or at least its kind."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
