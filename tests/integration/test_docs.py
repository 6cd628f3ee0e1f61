"""Every python block of the README and the docs runs, in order, with the real model where a hub id stands.

If an indented block follows, it is what the python block prints. This is compared up to the first block that trains a model,
because its rounding depends on the machine.
"""

import re
import textwrap
from pathlib import Path

import pytest

from converters import hub
from msrnn.bench.sections import OTHER_SECTIONS, SECTIONS, SPECULATIVE_SECTIONS

ROOT = Path(__file__).parents[2]
COURSE = [
    *("attention", "cell", "by-hand", "operators", "own-operator", "unroll", "pitfalls", "not-an-rnn", "class"),
    *("encoder", "tiled", "decoder", "decoding", "lookahead", "converting", "train"),
    *("families", "watch", "chat", "variants"),
]
"""The teaching chapters."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"^```python\n((?:(?!```).*\n)*)```\n\n((?: {4}.*\n)+)", re.MULTILINE)


def test_there_are_blocks_to_run():
    assert sum(len(BLOCK.findall(page.read_text())) for page in PAGES) >= 8
    assert sum(len(OUTPUT.findall(page.read_text())) for page in PAGES) >= 4


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda page: page.name)
def test_blocks_run(page, request, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    blocks, outputs = BLOCK.findall(page.read_text()), dict(OUTPUT.findall(page.read_text()))
    if any("HuggingFaceTB/" in block for block in blocks):
        folder = request.getfixturevalue("hf_folder")
        monkeypatch.setattr(hub, "fetch", lambda *_, **__: folder)  # no network in tests
    names, printed, trained = dict[str, object](), "", False
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
        out = capsys.readouterr().out
        trained |= ".backward()" in block
        if block in outputs and not trained:
            assert out == textwrap.dedent(outputs[block]), block
        printed += out
    assert printed


@pytest.mark.parametrize("name", COURSE)
def test_teaching_chapters_end_with_exercises_and_answers_that_run(name):
    _, heading, exercises = (
        (ROOT / "docs" / f"{name}.md").read_text().partition("## Exercises" if name != "class" else "## Three exercises")
    )
    assert heading
    questions, answers, rest = exercises.partition("\nAnswers" if name != "class" else "\n## Answers")
    assert len(re.findall(r"^\d\. ", questions, re.MULTILINE)) >= 2
    assert answers
    assert BLOCK.search(rest)


def test_sections_of_bench_that_pages_name_exist():
    known = {*SECTIONS, *SPECULATIVE_SECTIONS, *OTHER_SECTIONS}
    pages = [page for page in PAGES if page.name != "log.md"]  # the log also names former sections
    named = {
        name for page in pages for names in re.findall(r"--only ([a-z0-9,-]+)", page.read_text()) for name in names.split(",")
    }
    assert len(named) > 10
    assert named <= known
