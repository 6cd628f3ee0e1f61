"""The page as a file: its data, its size, and that it asks the network for nothing."""

import json
import re

import pytest
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


@pytest.mark.parametrize("name", ["page.html", "page.css", "data.js", "page.js", "controls.js"])
def test_the_parts_are_package_data(name):
    try:
        import tomllib
    except ImportError:
        pytest.skip("Python 3.10 has no tomllib")
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert name in project["tool"]["setuptools"]["package-data"]["msrnn.watch"]
