"""Measure time and memory of a model on this machine, compared with transformers, kvpress and llama.cpp.

docs/bench.md describes the sections. ctrl-C stops the run and prints the rows measured so far.
"""

import argparse
import datetime
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from ..argtypes import positive_int, read_text
from ..bench.baselines import kvpress, llama_cpp
from ..bench.baselines.transformers import Transformers, is_hugging_face
from ..bench.curve import Point, curve, draw_bench
from ..bench.report import as_json, line, markdown
from ..bench.result import Result, SkipBenchmark
from ..bench.sections import OTHER_SECTIONS, RANK_SECTIONS, SECTIONS, SPECULATIVE_SECTIONS, measure, section
from ..bench.settings import Bench
from ..errors import Error, counted, did_you_mean
from ..models.packing import COMPUTE_DTYPE, kind_of_weights, packed_names
from ..models.registry import build_on_meta
from ..reductions.registry import parse_reduction
from ..reporting.figures import check_figure_file
from ..storage.atomic import atomic_file
from ..storage.files import read_json, write_json
from ..storage.model_folder import CONFIG_FILE, FORMAT, open_weights
from ..storage.output_paths import check_output_file
from .loading import load_cell, load_config, load_tokenizer
from .options import add_model_arguments, check_device

MAX_FACTOR = 16
"""Maximum number of tokens that a section reads, as a multiple of ``--tokens``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn bench``."""
    add_model_arguments(parser, dtype="float32", lora=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # the formatter would break names at their hyphens
    known = {**SECTIONS, **SPECULATIVE_SECTIONS, **OTHER_SECTIONS}
    parser.epilog = "sections:\n" + "\n".join(f"  {name:14}{section.summary}" for name, section in known.items())
    sections = parser.add_mutually_exclusive_group()
    text = "comma-separated names of sections to run (default: all except those of --decode, and agreement)"
    sections.add_argument("--only", type=section_names, metavar="NAME,...", help=text)
    sections.add_argument(
        "--decode",
        action="store_const",
        const=list(SPECULATIVE_SECTIONS),
        dest="only",
        help=f"run the sections on speculative decoding: {', '.join(SPECULATIVE_SECTIONS)}",
    )
    parser.add_argument("--text", metavar="FILE", type=Path, help="UTF-8 text to read (default: random ids)")
    parser.add_argument("--tokens", metavar="N", type=positive_int, default=2048, help="length of a text (default: 2048)")
    parser.add_argument(
        "--size", metavar="N", type=positive_int, default=512, help="maximum number of rows in H (default: 512)"
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=positive_int,
        default=3,
        help="repetitions of a text; steps have five times as many (default: 3)",
    )
    parser.add_argument("--threads", metavar="N", type=positive_int, help="number of CPU threads (default: that of PyTorch)")
    parser.add_argument(
        "--kvpress-python", metavar="PYTHON", type=Path, help="Python interpreter with kvpress, for the section kvpress"
    )
    parser.add_argument(
        "--llama-cpp-python",
        metavar="PYTHON",
        type=Path,
        help="Python interpreter with llama-cpp-python, for the section llama-cpp",
    )
    text = "GGUF file of the same model, for the section llama-cpp (default: MODEL, if it is one)"
    parser.add_argument("--gguf", metavar="FILE", type=Path, help=text)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all results as JSON")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="also measure and plot time and bytes against position")


def section_names(text: str) -> list[str]:
    """Parse comma-separated section names, as an argparse type.

    Raises:
        ArgumentTypeError: a name is unknown.
    """
    names, known = text.split(","), [*SECTIONS, *SPECULATIVE_SECTIONS, *OTHER_SECTIONS]
    if unknown := [name for name in names if name not in known]:
        found = f"{unknown[0]!r} is not a section{did_you_mean(unknown[0], known)}"
        raise argparse.ArgumentTypeError(f"{found}; expected some of {', '.join(known)}")
    return list(dict.fromkeys(names))


def run(args: argparse.Namespace) -> None:
    """Check the arguments, measure, and print what was measured, also after ctrl-C."""
    _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    ids, source = _ids(args)
    sections = args.only or (SECTIONS if args.launch.size == 1 else RANK_SECTIONS)
    print(f"measuring {args.model}; sections: {', '.join(sections)}", file=sys.stderr, flush=True)
    with _hugging_face_folder(args) as export:
        bench = Bench(
            load=partial(load_cell, args),
            export=export,
            tokenizer=partial(load_tokenizer, args),
            ids=ids,
            device=torch.device(args.device),
            dtype=getattr(torch, args.dtype),
            packed_dtype=COMPUTE_DTYPE if _has_packed_weights(args) else None,
            tokens=args.tokens,
            size=args.size,
            rounds=args.rounds,
            kvpress=args.kvpress_python,
            llama_cpp=args.llama_cpp_python,
            gguf=args.gguf or (Path(args.model) if args.model.endswith(".gguf") else None),
            progress=True,
            ranks=args.launch.size,
        )
        about = _about(args, bench, source)
        tables: dict[str, list[Result]] = {}
        points: list[Point] = []
        complete = False
        try:
            for name in sections:
                for row in measure(bench, name):
                    tables.setdefault(section(name).table, []).append(row)
                    print(line(row), file=sys.stderr, flush=True)
            if args.picture:
                points += _points(bench)
            complete = True
        finally:
            _write(args, about, tables, points, complete)


def _check(args: argparse.Namespace) -> None:
    check_device(args)
    for spec in (f"tova:{args.size}", f"h2o:{args.size}", f"sinks:{args.size}:4"):
        parse_reduction(spec)
    if args.tokens <= max(args.size, 15):
        raise Error(f"--tokens is {args.tokens}; expected at least 16, and more than --size, {args.size}, so that H is full")
    if args.kvpress_python:
        kvpress.versions(args.kvpress_python)
    if args.llama_cpp_python:
        llama_cpp.version(args.llama_cpp_python)
    if args.gguf and not args.gguf.is_file():
        raise Error(f"--gguf is {args.gguf}; expected a file")
    if args.picture and args.launch.size > 1:
        raise Error(f"--picture is {args.picture} for {args.launch.size} ranks; expected one process")
    if args.picture:
        check_figure_file(args.picture)
    if args.json:
        check_output_file(args.json)


def _has_packed_weights(args: argparse.Namespace) -> bool:
    """Return True if the cell will have packed weights, by ``--weights`` or because MODEL is a folder of such a cell."""
    folder = Path(args.model)
    if args.weights or not (folder / CONFIG_FILE).is_file() or read_json(folder / CONFIG_FILE).get("format") != FORMAT:
        return args.weights is not None
    return bool(packed_names(open_weights(folder)))


def _ids(args: argparse.Namespace) -> tuple[Tensor, str]:
    """Return ``(N,)`` int64 ids to read, and a description of their source."""
    if args.text is None:
        size, generator = load_config(args).vocab_size, torch.Generator().manual_seed(0)
        return torch.randint(size, (MAX_FACTOR * args.tokens,), generator=generator), "random ids"
    words = read_text(args.text)
    ids = torch.tensor(load_tokenizer(args).encode(words).ids, dtype=torch.int64)
    if len(ids) <= args.size:
        raise Error(f"--text has {counted(len(ids), 'token')}; expected more than --size, {args.size}, so that H is full")
    return ids, f"{args.text.name}, {len(ids):,} tokens"


@contextmanager
def _hugging_face_folder(args: argparse.Namespace) -> Iterator[Callable[[], Path]]:
    """Yield a function that returns MODEL as a Hugging Face folder; a converted folder is temporary."""
    import converters

    if is_hugging_face(args.model):
        yield lambda: Path(args.model)
        return
    with tempfile.TemporaryDirectory() as folder:

        @lru_cache
        def convert() -> Path:
            target = Path(folder) / "hf"
            converters.convert(args.model, target, to="hf", revision=args.revision)
            return target

        yield convert


def _points(bench: Bench) -> Iterator[Point]:
    try:
        with torch.no_grad():
            yield from curve(bench)
    except SkipBenchmark as reason:
        print(f"no plot: {reason}", file=sys.stderr)


def _write(
    args: argparse.Namespace, about: dict[str, str], tables: dict[str, list[Result]], points: list[Point], complete: bool
) -> None:
    print(markdown(about, tables), flush=True)
    if args.json and args.launch.is_first:
        with atomic_file(args.json) as path:
            write_json(path, {**as_json(about, tables, complete), "curve": list(map(asdict, points))})
    if points:
        draw_bench(points, args.picture, title=f"{Path(args.model).name}, one step")


def _about(args: argparse.Namespace, bench: Bench, source: str) -> dict[str, str]:
    cell = bench.cell()
    parameters = sum(x.numel() for x in build_on_meta(cell.config).parameters())
    kind = kind_of_weights(cell)
    dtypes = f"{kind} with {str(cell.dtype).removeprefix('torch.')}, baselines in {args.dtype}" if kind else args.dtype
    gpu = bench.device.type == "cuda"
    machine = torch.cuda.get_device_name(bench.device) if gpu else f"{_cpu_name()}, {torch.get_num_threads()} threads"
    return {
        "model": f"{Path(args.model).name}, {parameters / 1e6:,.1f} million parameters, {dtypes}",
        "training length": f"{cell.config.context_length:,} tokens; time and bytes are also measured beyond it",
        "text": source,
        "machine": machine + (f" on each of {bench.ranks} ranks" if bench.ranks > 1 else ""),
        "versions": f"torch {torch.__version__}, transformers {Transformers.version() or 'not installed'}",
        "medians": f"{args.rounds} rounds for texts, {5 * args.rounds} for steps; implementations interleaved",
        "date": datetime.date.today().isoformat(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
