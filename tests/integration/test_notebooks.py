"""`make notebooks` writes valid notebooks with exactly the text and the python blocks of their chapters.

The blocks themselves run in test_docs.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = [
    *("attention", "cell", "by-hand", "operators", "own-operator", "unroll"),
    *("pitfalls", "not-an-rnn", "decoding", "lookahead", "encoder", "class"),
]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("notebooks") / "new"
    subprocess.run([sys.executable, ROOT / "docs/site/notebooks.py", out], check=True, capture_output=True, timeout=60)
    return out


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.ipynb").read_text())


def blocks_and_text(name: str) -> tuple[list[str], list[str]]:
    """Read a chapter line by line: its python blocks, and all lines outside of them that are not empty."""
    blocks, text, inside = [], [], False
    for line in (ROOT / "docs" / f"{name}.md").read_text().splitlines():
        if line.startswith("```"):
            assert line == ("```" if inside else "```python"), "notebooks.py only knows python blocks"
            inside = not inside
            if inside:
                blocks.append("")
        elif inside:
            blocks[-1] += line + "\n"
        elif line.strip():
            text.append(line.strip())
    return blocks, text


def test_main_chapters_are_written(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.ipynb" for name in CHAPTERS)


@pytest.mark.parametrize("name", CHAPTERS)
def test_notebook_follows_the_format(folder, name):
    """Check what the schema of nbformat 4.5 requires of these kinds of cells."""
    notebook = read(folder, name)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]["kernelspec"]) == {"name", "display_name", "language"}
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell_id) for cell_id in ids)
    for cell in notebook["cells"]:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell["cell_type"] in ("markdown", "code")
        assert set(cell) == {"id", "cell_type", "metadata", "source"} | code
        assert cell["metadata"] == {}
        assert cell["source"], "an empty cell"
        assert all(isinstance(line, str) for line in cell["source"])
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        for output in cell.get("outputs", []):
            assert (set(output), output["output_type"]) == ({"output_type", "name", "text"}, "stream")
            assert output["name"] == "stdout"


@pytest.mark.parametrize("name", CHAPTERS)
def test_code_cells_are_the_blocks_of_the_chapter(folder, name):
    blocks, text = blocks_and_text(name)
    cells = read(folder, name)["cells"]
    assert ["".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code"] == blocks
    assert blocks
    others = [line for c in cells[1:] for line in (c["source"] if c["cell_type"] == "markdown" else printed(c))]
    without_links = [[LINK.sub("]", line.strip()) for line in lines if line.strip()] for lines in (others, text)]
    assert without_links[0] == without_links[1]


def test_code_cells_load_the_folder_that_is_given(folder, tmp_path):
    script = ROOT / "docs/site/notebooks.py"
    run = {"check": True, "capture_output": True, "timeout": 60, "cwd": "/"}
    subprocess.run([sys.executable, script, tmp_path, "models/small"], **run)  # a notebook runs in another folder
    loaded = 0
    for name in CHAPTERS:
        for hub, local in zip(read(folder, name)["cells"], read(tmp_path, name)["cells"], strict=True):
            expected = "".join(hub["source"])
            if hub["cell_type"] == "code":
                expected = expected.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "/models/small")
                assert "HuggingFaceTB/" not in expected
                loaded += "/models/small" in expected
            assert "".join(local["source"]) == expected
    assert loaded >= 6


def printed(cell: dict[str, Any]) -> list[str]:
    return [line for output in cell["outputs"] for line in output["text"]]


@pytest.mark.parametrize("name", CHAPTERS)
def test_links_lead_to_notebooks_and_pages(folder, name):
    text = "".join(line for cell in read(folder, name)["cells"] if cell["cell_type"] == "markdown" for line in cell["source"])
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert links
    for link in links:
        if link.endswith(".ipynb"):
            assert (folder / link).is_file(), link
        else:
            assert link.startswith("../../docs/")
            assert (ROOT / link.removeprefix("../../")).is_file(), link
