"""Colours of the tokens of one forward pass in a terminal; plain text in other outputs."""

import io
import re

import pytest

from msrnn.text.stream_printer import StreamPrinter

PASSES = (("The", 1), (" sea was", 2), (" calm\n\nand", 4), (" the", 1), (" wind", 1), ("", 3), (" fell", 2))
TEXT = "".join(text for text, _ in PASSES)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(out):
    printer = StreamPrinter(out)
    for text, tokens in PASSES:
        printer.show(text, tokens)
    return printer, out.getvalue()


def test_other_outputs_get_plain_text():
    assert shown(io.StringIO())[1] == TEXT


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_terminals_without_colours_get_plain_text(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert shown(Terminal())[1] == TEXT


def test_neighbouring_groups_differ_and_single_tokens_have_no_colour(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    printer, text = shown(Terminal())
    assert re.sub("\033\\[[0-9]*m", "", text) == TEXT
    runs = re.findall("\033\\[(3[0-9])m(.*?)\033\\[0m", text)
    assert [words for _, words in runs] == [" sea was", " calm", "and", " fell"]
    colours = [colour for colour, _ in runs]
    assert colours[0] != colours[1] == colours[2]
    assert text.startswith("The\033")
    assert "\033[0m the wind\033" in text
    assert printer.summary() == "2.00 tokens per forward pass (7: 3 of 1, 2 of 2, 1 of 3, 1 of 4)"


def test_the_summary_of_plain_decoding_is_empty():
    printer = StreamPrinter(io.StringIO())
    printer.show("a", 1)
    assert printer.summary() == ""
    assert printer.n_tokens == 1
