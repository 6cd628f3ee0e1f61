"""The page: one HTML file with its style, its program and the data, which asks the network for nothing."""

import html
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from .codes import PRECISIONS, Precision

MAX_PAGE_BYTES = 3_000_000
"""Size up to which weights and scores are stored as exactly as possible."""


def render_page(document: dict[str, Any]) -> str:
    """Return the page of a document (:func:`~msrnn.watch.document.build_document`)."""
    parts = {
        name: files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "data.js", "page.js", "controls.js")
    }
    parts["title"] = html.escape(f"{' and '.join(run['operator'] for run in document['runs'])} on {document['model']}")
    parts["data"] = json.dumps(document).replace("<", "\\u003c")  # otherwise a token "</script>" would end the data
    template = files(__package__).joinpath("page.html").read_text("utf-8")
    pieces = template.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))


def render_within_limit(build: Callable[[Precision], dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Return the page, and its document, at the finest precision at which the page is at most ``MAX_PAGE_BYTES``.

    A longer text gives a larger page, at the coarsest precision.
    """
    for precision in PRECISIONS:
        document = build(precision)
        page = render_page(document)
        if len(page.encode()) <= MAX_PAGE_BYTES:
            break
    return page, document
