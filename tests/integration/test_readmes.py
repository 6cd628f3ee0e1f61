"""README.md and README.zh.md have the same sections with the same code, commands, figures, links and tables."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```\w*\n.*?^```\n", re.MULTILINE | re.DOTALL)
LANGUAGES = re.compile(r"^\[(?:中文|English)\]\((README\S*\.md)\)\n", re.MULTILINE)  # each file links the other


def sections(name: str) -> list[str]:
    return re.split(r"^## ", LANGUAGES.sub("", (ROOT / name).read_text(), count=1), flags=re.MULTILINE)


def prose(section: str) -> str:
    return re.sub(r"^ {4}.*\n", "", FENCE.sub("", section), flags=re.MULTILINE)


def commands(section: str) -> list[str]:
    """Return the indented lines without comments, and of the list of packages only the names."""
    lines = [re.sub(r" +# .*", "", line).strip() for line in re.findall(r"^ {4}(.*)", FENCE.sub("", section), re.MULTILINE)]
    return [" ".join(re.findall(r"[\w/]+/", line)) if re.match(r"[\w/]+/ ", line) else line for line in lines]


def numbers(section: str) -> list[str]:
    return re.findall(r"\d+(?:[.,]\d+)*", prose(section))


def links(section: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", section)


def inline_code(section: str) -> Counter[str]:
    return Counter(re.findall(r"`([^`]+)`", prose(section)))


def tables(section: str) -> list[tuple[int, list[bool]]]:
    """Return the number of cells of each line of a table, and which of these cells are empty."""
    rows = [line.strip("|").split("|") for line in prose(section).splitlines() if line.startswith("|")]
    return [(len(cells), [not cell.strip(" -") for cell in cells]) for cells in rows]


def code(section: str) -> list[str]:
    return FENCE.findall(section)


def bullets(section: str) -> int:
    return len(re.findall(r"^- ", section, re.MULTILINE))


def test_each_readme_links_the_other_before_its_first_paragraph():
    for name, other in (("README.md", "README.zh.md"), ("README.zh.md", "README.md")):
        assert LANGUAGES.match((ROOT / name).read_text().split("\n\n")[1] + "\n")[1] == other


def test_the_comparison_covers_each_kind():
    text = "## ".join(sections("README.md"))
    for part in (code, commands, numbers, links, inline_code, tables, bullets):
        assert part(text), part.__name__
    assert commands("    msrnn info MODEL    # comment\n    msrnn/cli/   one file\n") == ["msrnn info MODEL", "msrnn/cli/"]


@pytest.mark.parametrize("part", [code, commands, numbers, links, inline_code, tables, bullets], ids=lambda part: part.__name__)
def test_sections_agree(part):
    english, chinese = sections("README.md"), sections("README.zh.md")
    assert len(english) == len(chinese)
    for a, b in zip(english, chinese, strict=True):
        assert part(a) == part(b), a.splitlines()[0]


def test_every_link_leads_to_a_file():
    for link in links("".join(sections("README.zh.md"))):
        assert "://" in link or (ROOT / link).is_file(), link
