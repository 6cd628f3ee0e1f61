"""Train the model variants of docs/variants.md and report their losses; a stopped run can be resumed.

Each variant differs from the others of its table in one setting.
"""

import argparse
import sys
from pathlib import Path

from ..argtypes import positive_int, read_text
from ..errors import Error
from ..reporting.figures import check_figure_folder
from ..storage.atomic import atomic_file
from ..storage.output_paths import check_output_file
from ..train.report import CAPTIONS, report
from ..train.variants import run_all
from .eval import save

BEGIN, END = "<!-- begin of tables -->\n", "<!-- end of tables -->\n"
"""Lines of a page that enclose the generated tables."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn variants``."""
    parser.add_argument("text", metavar="TEXT", type=Path, help="UTF-8 training text")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="finished runs, tables, plots")
    parser.add_argument("--chapter", metavar="FILE", type=Path, help="Markdown page to insert the tables and plots into")
    parser.add_argument("--workers", metavar="N", type=positive_int, default=2, help="parallel runs (default: 2)")


def run(args: argparse.Namespace) -> None:
    """Train all variants that ``--out`` does not contain yet, and print the tables."""
    check_figure_folder(args.out)
    if args.chapter is not None:
        replace_tables(read_text(args.chapter), "")
        check_output_file(args.chapter)
    try:
        found = report(run_all(read_text(args.text), args.out, args.workers))
    except KeyboardInterrupt:
        print(f"\nthe same command resumes from the runs in {args.out}", file=sys.stderr)
        raise
    save(found, args.out)
    print(found, end="")
    if args.chapter is not None:
        publish(args.out, args.chapter)


def publish(folder: Path, chapter: Path) -> None:
    """Insert the tables of ``folder`` into the page ``chapter``, and copy the plots next to it."""
    tables, pictures = (folder / "report.md").read_text("utf-8"), sorted(folder.glob("*.png"))
    for picture in pictures:
        with atomic_file(chapter.parent / f"{chapter.stem}-{picture.name}") as path:
            path.write_bytes(picture.read_bytes())
    images = "\n\n".join(f"![{CAPTIONS[picture.name]}]({chapter.stem}-{picture.name})" for picture in pictures)
    page = replace_tables(read_text(chapter), f"\n{tables}\n{images}\n\n")
    with atomic_file(chapter) as path:
        path.write_text(page, "utf-8")


def replace_tables(page: str, tables: str) -> str:
    """Return ``page`` with ``tables`` between the lines ``BEGIN`` and ``END``.

    Raises:
        Error: one of the lines is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Error(f"--chapter has no place for the tables; expected the lines {BEGIN.strip()} and {END.strip()}")
    return before + begin + tables + end + after
