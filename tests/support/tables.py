"""Helpers for Markdown tables."""

import re


def unpadded(text: str) -> str:
    """Return ``text`` with every run of spaces shortened to one, so that table cells can be compared without padding."""
    return re.sub(" +", " ", text)
