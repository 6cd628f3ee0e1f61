"""What a terminal shows of tokens that came together; elsewhere it is the text and nothing else."""

import io
import re

import pytest

from msrnn.text.stream_printer import Live

PASSES = (("The", 1), (" sea was", 2), (" calm\n\nand", 4), (" the", 1), (" wind", 1), ("", 3), (" fell", 2))
TEXT = "".join(text for text, _ in PASSES)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(out):
    live = Live(out)
    for text, tokens in PASSES:
        live.show(text, tokens)
    return live, out.getvalue()


def test_elsewhere_it_is_the_text():
    assert shown(io.StringIO())[1] == TEXT


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_terminals_without_colours(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert shown(Terminal())[1] == TEXT


def test_neighbours_differ_and_single_tokens_are_plain(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    live, text = shown(Terminal())
    assert re.sub("\033\\[[0-9]*m", "", text) == TEXT
    runs = re.findall("\033\\[(3[0-9])m(.*?)\033\\[0m", text)
    assert [words for _, words in runs] == [" sea was", " calm", "and", " fell"]
    colours = [colour for colour, _ in runs]
    assert colours[0] != colours[1] == colours[2]
    assert text.startswith("The\033")
    assert "\033[0m the wind\033" in text
    assert live.summary() == "2.00 tokens a pass (7: 3 of 1, 2 of 2, 1 of 3, 1 of 4)"


def test_nothing_to_tell_of_plain_decoding():
    live = Live(io.StringIO())
    live.show("a", 1)
    assert live.summary() == ""
    assert live.written == 1
