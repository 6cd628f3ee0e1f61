"""The page as a file: its data, its size, and that it asks the network for nothing."""

import json
import re

import pytest
from support.project import PROJECT
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

from msrnn.reductions.registry import parse_reduction
from msrnn.watch.codes import PRECISIONS
from msrnn.watch.document import build_document
from msrnn.watch.page import MAX_PAGE_BYTES, render_page, render_within_limit
from msrnn.watch.run import observe_run

PROMPT = 'x</script><script>alert("1")</script> <!-- \' & {{title}} {{data}}'
CELL, TOKENIZER = chat_cell(), tiny_tokenizer()
IDS = TOKENIZER.encode(PROMPT).ids
RUNS = [observe_run(CELL, IDS, parse_reduction(spec), 4) for spec in ("tova:6", "h2o:6")]


def document(precision=PRECISIONS[0], model="tiny"):
    return build_document(RUNS, TOKENIZER, model, len(IDS), CELL.config.n_heads, precision)


def test_tokens_and_names_cannot_end_the_data_or_the_title():
    given = document(model="</title></script><b>\"'&")
    given["texts"]["3"] = "</script>"
    page = render_page(given)
    assert page.count("</script>") == 4  # the data and three programs
    assert page.count("</title>") == 1
    data = page.partition('<script id="data" type="application/json">')[2].partition("</script>")[0]
    assert json.loads(data) == given


def test_nothing_is_loaded_from_elsewhere():
    page = render_page(document())
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert not re.search(r"https?:|@import|url\(", page)


def test_a_small_page_has_the_finest_precision():
    page, given = render_within_limit(document)
    assert given["precision"]["steps"] == PRECISIONS[0].steps
    assert len(page) < 100_000


def test_a_large_page_has_a_coarser_precision():
    def build(precision):
        given = document(precision)
        return {**given, "padding": "x" * (MAX_PAGE_BYTES if precision in PRECISIONS[:2] else 1)}

    page, given = render_within_limit(build)
    assert given["precision"] == {"steps": PRECISIONS[2].steps, "threshold": PRECISIONS[2].threshold}
    assert len(page) < MAX_PAGE_BYTES


def test_a_page_over_the_limit_has_the_coarsest_precision():
    page, given = render_within_limit(lambda precision: {**document(precision), "padding": "x" * MAX_PAGE_BYTES})
    assert given["precision"]["steps"] == PRECISIONS[-1].steps
    assert len(page) > MAX_PAGE_BYTES


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def mixed(share, one, other):
    """Return ``one`` over ``other`` with opacity ``share``."""
    pairs = [(int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_has_enough_contrast_in_light_and_dark(scheme):
    """WCAG 2, level AA: 4.5 for text, 3 for marks."""
    style = render_page(document()).partition("<style>")[2].partition("</style>")[0]
    blocks = [dict(re.findall(r"--([a-z-]+): ([^;]+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]
    found = {**blocks[0], **blocks[scheme]}
    held = "#" + "".join(f"{int(n):02x}" for n in found["held"].split(","))
    least, more = re.search(r"calc\((\S+) \+ (\S+) \* var\(--w", style).groups()  # opacity by attention weight
    darkest = mixed(float(least) + float(more), held, found["card"])
    for one, other in [
        *[(ink, paper) for ink in ("ink", "soft", "link") for paper in ("page", "card")],
        ("just-ink", "just"),
        ("card", "bar"),
    ]:
        assert contrast(found[one], found[other]) >= 4.5, (one, other)
    assert contrast(found["ink"], darkest) >= 4.5
    assert contrast(found["just"], found["card"]) >= 3
    assert contrast(held, found["gone"]) >= 3


@pytest.mark.parametrize("name", ["page.html", "page.css", "data.js", "page.js", "controls.js"])
def test_the_parts_are_package_data(name):
    assert name in PROJECT["tool"]["setuptools"]["package-data"]["msrnn.watch"]
