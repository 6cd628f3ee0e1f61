"""Every python block of the README and the docs runs, in order, with the real model where a hub id stands."""

import re
from pathlib import Path

import pytest

from converters import hub

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_there_are_blocks_to_run():
    assert sum(len(BLOCK.findall(page.read_text())) for page in PAGES) >= 8


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda page: page.name)
def test_blocks_run(page, request, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(page.read_text())
    if any("HuggingFaceTB/" in block for block in blocks):
        folder = request.getfixturevalue("hf_folder")
        monkeypatch.setattr(hub, "fetch", lambda *_, **__: folder)  # no network in tests
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert capsys.readouterr().out
