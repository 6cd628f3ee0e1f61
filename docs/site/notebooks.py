"""Write chapters of the documentation as notebooks: ``python docs/site/notebooks.py build/notebooks [MODEL]``.

A python block becomes a code cell. The indented block after it becomes the output of this cell, all other text markdown cells.
With MODEL, a model folder, the code cells load this folder instead of the hub id.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
CHAPTERS = (
    *("attention", "cell", "by-hand", "operators", "own-operator", "unroll"),
    *("pitfalls", "not-an-rnn", "decoding", "lookahead", "encoder", "class"),
)
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n((?: {4}[^\n]*\n)+))?", re.MULTILINE | re.DOTALL)
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
LINK = re.compile(r"(?<=\]\()([\w./-]+)(?=[)#])")
NOTE = "*This notebook is made from [docs/{0}.md](../../docs/{0}.md) by `make notebooks`. It needs the package `msrnn`.*"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def relink(text: str) -> str:
    """Return the text with links from build/notebooks: to the notebook of a chapter, or to the file in docs/."""

    def target(match: re.Match[str]) -> str:
        stem, _, suffix = match[1].rpartition(".")
        if suffix == "md" and stem in CHAPTERS:
            return f"{stem}.ipynb"
        return f"../../docs/{match[1]}"

    return LINK.sub(target, text)


def notebook(name: str, model: str) -> dict[str, Any]:
    """Return the notebook of a chapter in format 4.5. Its code cells load ``model``."""
    cells: list[dict[str, Any]] = []

    def add(kind: str, text: str, **fields: object) -> None:
        if text.strip():
            source = text.strip("\n").splitlines(keepends=True)
            cells.append({"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}, "source": source, **fields})

    page, end = (DOCS / f"{name}.md").read_text(), 0
    add("markdown", NOTE.format(name))
    for block in BLOCK.finditer(page):
        add("markdown", relink(page[end : block.start()]))
        printed = [line[4:] for line in (block[2] or "").splitlines(keepends=True)]
        outputs = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
        add("code", block[1].replace(HUB_ID, model), execution_count=None, outputs=outputs)
        end = block.end()
    add("markdown", relink(page[end:]))
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def main(folder: Path, model: str = HUB_ID) -> None:
    """Write all notebooks into ``folder``. ``model`` is a hub id or the path of a model folder, which becomes absolute, because
    a notebook runs in its own folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model if model == HUB_ID else str(Path(model).resolve())
    for name in CHAPTERS:
        path = folder / f"{name}.ipynb"
        path.write_text(json.dumps(notebook(name, model), ensure_ascii=False, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
