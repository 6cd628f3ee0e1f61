"""The steps in the terminal: the numbers of the page, and the text with evicted tokens struck out."""

import io
import os
import re

import pytest
import torch
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

from msrnn.reductions.registry import parse_reduction
from msrnn.watch.live import LiveSteps, describe_step
from msrnn.watch.observe import observe
from msrnn.watch.run import observe_run

PROMPT = "the boat was\nsmall and the sea was not"
CELL, TOKENIZER = chat_cell(), tiny_tokenizer()
IDS = TOKENIZER.encode(PROMPT).ids
NEW = 5


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def size(monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 20)))
    monkeypatch.delenv("TERM", raising=False)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("spec", ["tova:6", "tova-head:6", "window:4", "full", "tova:900"])
def test_each_step_is_described_with_the_numbers_of_the_page(spec, layer):
    seen, out = [], io.StringIO()
    live = LiveSteps(TOKENIZER, layer, out)

    def on_step(ids, logits, layers):
        seen.append(len(ids))
        live(ids, logits, layers)

    run = observe_run(CELL, IDS, parse_reduction(spec), NEW, on_step)
    assert run.ids == observe_run(CELL, IDS, parse_reduction(spec), NEW).ids
    assert seen == list(range(len(IDS), len(run.ids) + 1))
    lines = out.getvalue().splitlines()
    observed = observe(CELL, torch.tensor([run.ids]), CELL.initial_state(1, spec))[1][layer]
    own, others, tied = observed.decisions()
    for i, n in enumerate(seen):
        line, top = lines[2 * i], lines[2 * i + 1]
        t, p = n - 1, int(observed.evicted[0, n - 1])
        assert line.startswith(f"step {t} reads ")
        assert ("head 0" in line) == (len(observed.weights) > 1)
        if p < 0:
            assert re.search(r"holds \d+ tokens and evicts none", line)
        else:
            assert f"(token {p})" in line or (p == t and "evicts this token" in line)
            assert f"score {float(own[0, t]):.3g}, the lowest of {int(observed.visible[0, t].sum())}; " in line
            assert (f"the next lowest is {float(others[0, t]):.3g}" in line) != bool(tied[0, t])
        assert f" {float(run.top_probabilities[t, 0]):.1%}, " in top


def test_a_terminal_shows_the_text_and_replaces_each_step(size):
    out = Terminal()
    run = observe_run(CELL, IDS, parse_reduction("tova:6"), NEW, LiveSteps(TOKENIZER, 1, out))
    frames = re.split(r"\x1b\[(\d+)A\x1b\[J", out.getvalue())
    assert len(frames) == 2 * (len(run.ids) - len(IDS)) + 1
    for i in range(0, len(frames) - 2, 2):  # the cursor goes up by as many lines as the last step has
        lines = frames[i].splitlines()
        assert int(frames[i + 1]) == -(-len(lines[0]) // 40) + -(-len(lines[1]) // 40) + len(lines[2:])
    last = "".join(frames[-1].splitlines()[2:])
    kept = re.sub(r"\x1b\[9m.*?\x1b\[29m", "", last).replace(" ", "")
    layer = observe(CELL, torch.tensor([run.ids]), CELL.initial_state(1, "tova:6"))[1][1]
    held = [p for p in layer.positions[0, layer.visible[0, -1]].tolist() if p != layer.evicted[0, -1]]
    assert len(held) == 6
    expected = "".join(TOKENIZER.decode([run.ids[p]], skip_special_tokens=False) for p in held)
    assert kept == expected.replace(" ", "").replace("\n", "⏎")


def test_a_long_text_shows_its_last_lines(size):
    out = Terminal()
    observe_run(CELL, IDS * 40, parse_reduction("window:3"), 0, LiveSteps(TOKENIZER, 0, out))
    assert len(out.getvalue().splitlines()) == 2 + 20 - 6


def test_no_codes_without_a_terminal(monkeypatch, size):
    monkeypatch.setenv("TERM", "dumb")
    for out in (Terminal(), io.StringIO()):
        observe_run(CELL, IDS, parse_reduction("tova:6"), 1, LiveSteps(TOKENIZER, 0, out))
        assert "\x1b" not in out.getvalue()


def test_the_token_itself_may_be_evicted():
    _, layers, _ = observe(CELL, torch.tensor([IDS]), CELL.initial_state(1, "window:0"))
    assert "evicts this token: score 0, the lowest of 1;" in describe_step(TOKENIZER, IDS, layers[0], 0)
