"""``msrnn eval``: what the experiments have in common on the command line."""

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ..eval import extrapolation, generation, lm, passkey, prefill_cost, retention, throughput, understanding
from ..eval.inputs import Source
from ..reporting.report import Report
from ..storage.files import atomic_file

EXPERIMENTS: dict[str, ModuleType] = {
    "lm": lm,
    "kept": retention,
    "understanding": understanding,
    "generation": generation,
    "passkey": passkey,
    "beyond": extrapolation,
    "shortcut": prefill_cost,
    "throughput": throughput,
}
"""By name, files with ``add_arguments(parser)`` and ``run(args, source) -> Report``; their docstring begins with the help."""


def add_arguments(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the family to the command line's ``commands``; ``parents`` say how a model is named."""
    family = commands.add_parser("eval", help="the paper's experiments, one command each")
    experiments = family.add_subparsers(dest="experiment", metavar="EXPERIMENT", required=True)
    for name, module in EXPERIMENTS.items():
        about, _, _ = (module.__doc__ or "").partition("\n\n")
        parser = experiments.add_parser(name, parents=parents, help=about.replace("\n", " "), description=module.__doc__)
        module.add_arguments(parser)
        parser.add_argument(
            "--out",
            type=Path,
            metavar="FOLDER",
            help="tables, records, pictures, and every finished cell: a run goes on from there",
        )
        parser.add_argument("--json", action="store_true", help="print the records instead of the tables")


def run(args: argparse.Namespace, source: Source) -> None:
    """One experiment: its tables to standard output, and everything to ``--out``.

    Raises:
        Error: what is refused, before the model reads a token.
    """
    if args.out is not None:
        from ..reporting.figures import check_picture

        check_picture(args.out / "picture.png")
    report: Report = EXPERIMENTS[args.experiment].run(args, source)
    text = json.dumps([dict(record) for record in report.records], indent=1) + "\n" if args.json else str(report)
    print(text, end="")
    if args.out is not None:
        save(report, args.out)


def save(report: Report, folder: Path) -> None:
    """``report.md``, ``report.json`` and the pictures.

    Raises:
        Error: they cannot be written.
    """
    from ..reporting.pictures import draw

    records = [dict(record) for record in report.records]
    for name, text in {"report.md": str(report), "report.json": json.dumps(records, indent=1) + "\n"}.items():
        with atomic_file(folder / name) as beside:
            beside.write_text(text, encoding="utf-8")
    for name, picture in report.pictures.items():
        draw(picture, folder / name)
