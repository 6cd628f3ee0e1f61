"""``python -m msrnn.cli.variants TEXT --out FOLDER``: the variants, trained side by side; a run that was stopped goes on."""

import argparse
import sys
from pathlib import Path

from ..argtypes import positive_int
from ..errors import Error
from ..reporting.figures import check_picture
from ..storage.files import atomic_file
from ..train.report import report
from ..train.variants import run_all
from .eval import save
from .options import read_text

BEGIN, END = "<!-- what came out -->\n", "<!-- until here -->\n"
"""Between these two lines of a chapter the tables stand."""


def main(argv: list[str] | None = None) -> int:
    """0, 1 after a one-sentence refusal, 130 after ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m msrnn.cli.variants", description=__doc__)
    parser.add_argument("text", metavar="TEXT", type=Path, help="what is learnt from (UTF-8)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="every finished run, tables, curves")
    parser.add_argument(
        "--chapter", metavar="FILE", type=Path, help="a page that the tables are written into, curves beside it"
    )
    parser.add_argument("--workers", metavar="N", type=positive_int, default=2, help="runs side by side (default: 2)")
    args = parser.parse_args(argv)
    try:
        check_picture(args.out / "picture.png")
        if args.chapter is not None:
            replaced(read_text(args.chapter), "")
        found = report(run_all(read_text(args.text), args.out, args.workers))
        save(found, args.out)
        print(found, end="")
        if args.chapter is not None:
            publish(args.out, args.chapter)
    except Error as refused:
        print(f"msrnn: {refused}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def publish(folder: Path, chapter: Path) -> None:
    """The tables of ``folder`` into a page, and its curves beside it."""
    tables, pictures = (folder / "report.md").read_text("utf-8"), sorted(folder.glob("*.png"))
    for picture in pictures:
        (chapter.parent / f"{chapter.stem}-{picture.name}").write_bytes(picture.read_bytes())
    shown = "\n".join(f"![{picture.stem}]({chapter.stem}-{picture.name})" for picture in pictures)
    page = replaced(read_text(chapter), f"\n{tables}\n{shown}\n\n")
    with atomic_file(chapter) as beside:
        beside.write_text(page, "utf-8")


def replaced(page: str, between: str) -> str:
    """``page`` with other words between the two marks.

    Raises:
        Error: it has none.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Error(f"the chapter has no place for tables; expected the lines {BEGIN.strip()} and {END.strip()}")
    return before + begin + between + end + after


if __name__ == "__main__":
    sys.exit(main())
