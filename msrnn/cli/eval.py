"""Run an experiment of the TOVA paper, or a related one (docs/paper.md)."""

import argparse
import json
from pathlib import Path
from types import ModuleType

from ..eval import (
    extrapolation,
    generation,
    lm,
    passkey,
    prefill_cost,
    reasoning,
    recovery,
    retention,
    retrieval,
    table,
    throughput,
    understanding,
)
from ..eval.inputs import EvalInputs
from ..reporting.figures import check_figure_folder, draw
from ..reporting.report import Report
from ..storage.atomic import atomic_file
from ..storage.output_paths import create_folder
from .loading import load_cell, load_tokenizer
from .operator_files import add_operator_file_argument
from .options import add_model_arguments

EXPERIMENTS: dict[str, ModuleType] = {
    "lm": lm,
    "retention": retention,
    "understanding": understanding,
    "generation": generation,
    "passkey": passkey,
    "retrieval": retrieval,
    "reasoning": reasoning,
    "recovery": recovery,
    "table": table,
    "extrapolation": extrapolation,
    "prefill-cost": prefill_cost,
    "throughput": throughput,
}
"""Modules with ``add_arguments(parser)`` and ``run(args, inputs) -> Report``. The module docstring is the help text; its first
paragraph is listed by ``msrnn eval --help``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand per experiment."""
    experiments = parser.add_subparsers(dest="experiment", metavar="EXPERIMENT", required=True)
    for name, module in EXPERIMENTS.items():
        text = (module.__doc__ or "").replace("``", "")
        summary = text.partition("\n\n")[0].replace("\n", " ")
        experiment = experiments.add_parser(name, help=summary, description=text)
        add_model_arguments(experiment)
        module.add_arguments(experiment)
        add_operator_file_argument(experiment)
        experiment.add_argument(
            "--out",
            type=Path,
            metavar="FOLDER",
            help="tables, records, plots; a stopped run resumes from it",
        )
        experiment.add_argument(
            "--figures", choices=("png", "svg", "pdf"), default="png", help="file format of the plots (default: png)"
        )
        experiment.add_argument("--json", action="store_true", help="print the records instead of the tables")


def run(args: argparse.Namespace) -> None:
    """Run the experiment, print its tables, and write the report to ``--out``."""
    if args.out is not None:
        check_figure_folder(args.out)
    inputs = EvalInputs(lambda: load_tokenizer(args), lambda: load_cell(args), progress=True, launch=args.launch)
    report: Report = EXPERIMENTS[args.experiment].run(args, inputs)
    text = json.dumps([dict(record) for record in report.records], indent=1) + "\n" if args.json else str(report)
    print(text, end="")
    if args.out is not None and args.launch.is_first:
        save(report, args.out, args.figures)


def save(report: Report, folder: Path, figures: str = "png") -> None:
    """Write ``report.md``, ``report.json`` and the plots, in the file format ``figures``.

    Raises:
        Error: a file cannot be written.
    """
    create_folder(folder)
    records = [dict(record) for record in report.records]
    for name, text in {"report.md": str(report), "report.json": json.dumps(records, indent=1) + "\n"}.items():
        with atomic_file(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    for name, picture in report.figures.items():
        draw(picture, (folder / name).with_suffix(f".{figures}"))
