"""Perplexity along a text equals that of the step loop; stopped runs resume, finished runs can be continued."""

import json
import math

import pytest
import torch
from support.tiny_models import random_tokens, step_loop, tiny_cell
from support.tiny_tokenizer import chat_cell

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.eval import extrapolation
from msrnn.eval.extrapolation import ExtrapolationResult, report, score_segment
from msrnn.eval.texts import read_texts, split_into_chunks

TEXTS = {"boat": "The boat was small, the sea was not; and on day three the wind rose again. ", "hill": "A hill; then rain. "}


@pytest.mark.parametrize("places", ["absolute", "inside", "compressed"])
def test_scores_of_a_segment_equal_the_step_loop(places, monkeypatch):
    cell, text = tiny_cell(), random_tokens(2, 2, 24)
    start = cell.initial_state(2, "tova:5", places=places)
    logits, end = step_loop(cell, text[:, :-1], start)
    expected = -logits.log_softmax(-1).gather(2, text[:, 1:, None])[..., 0]
    for room in (2**24, 50 * 2 * 7):  # all at once, and in pieces of 7 tokens
        monkeypatch.setattr(extrapolation, "MAX_LOGITS", room)
        losses, state = score_segment(cell, text, start)
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-8)
        assert state[1].positions.sort().values.equal(end[1].positions.sort().values)
        assert state.places == start.places


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beyond")
    chat_cell().save(folder / "tiny")
    (folder / "books").mkdir()
    for name, text in TEXTS.items():
        (folder / "books" / f"{name}.txt").write_text(text * 9)
    return folder, [
        "eval",
        "extrapolation",
        str(folder / "tiny"),
        "--text",
        str(folder / "books"),
        "--stretch",
        "16",
        "--sizes",
        "8",
    ]


def test_the_command_resumes(arguments, tmp_path, capsys, monkeypatch):
    folder, words = arguments
    whole = [*words, "--tokens", "64", "--out", str(tmp_path / "whole")]
    assert main(whole) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "whole" / "report.md").read_text()
    records = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert [(r["operator"], r["places"], r["start"]) for r in records] == [
        (operator, places, start)
        for operator in ("sinks:SIZE:4", "tova")
        for places in ("absolute", "inside", "compressed")
        for start in (0, 16, 32, 48)
    ]
    cell, tokenizer = converters.load(folder / "tiny"), converters.tokenizer(folder / "tiny")
    ids = torch.stack([c.ids for c in split_into_chunks(read_texts(folder / "books"), tokenizer, 65, 1)])
    for operator, places in (("sinks:8:4", "inside"), ("tova:8", "compressed")):
        logits, _ = step_loop(cell, ids[:, :-1], cell.initial_state(2, operator, places=places))
        losses = -logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        found = [r["nll"] for r in records if r["places"] == places and r["operator"][0] == operator[0]]
        expected = losses.unflatten(1, (4, 16)).sum(-1).T
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=0, atol=1e-6)
    # stopped in the middle of a condition, then run with fewer, equal and equal tokens
    cut, count = [*words, "--out", str(tmp_path / "cut")], []
    with monkeypatch.context() as patch:
        patch.setattr(
            extrapolation,
            "score_segment",
            lambda *all: count.append(1) or (score_segment(*all) if len(count) < 7 else pytest.fail("stop")),
        )
        with pytest.raises(pytest.fail.Exception):
            main([*cut, "--tokens", "64"])
    count.clear()
    monkeypatch.setattr(extrapolation, "score_segment", lambda *all: count.append(1) or score_segment(*all))
    for n, more in ((32, 4 * 2), (64, 2 + 4 * 2), (64, 0)):  # 6 of 24 segments were finished: 4 of one condition, 2 of the next
        count.clear()
        assert main([*cut, "--tokens", str(n)]) == 0
        assert len(count) == more, n
    again = json.loads((tmp_path / "cut" / "report.json").read_text())
    assert [x for r in again for x in r["nll"]] == pytest.approx([x for r in records for x in r["nll"]])
    next((tmp_path / "cut" / "states").glob("tova%3A8 * inside.safetensors")).unlink()
    count.clear()
    assert main([*cut, "--tokens", "80", "--operators", "tova", "--places", "inside"]) == 0
    assert len(count) == 5  # without a saved state the text is read again from the start
    next((tmp_path / "cut" / "cells").glob("tova%3A8 * inside from 32.json")).unlink()
    count.clear()
    assert main([*cut, "--tokens", "80", "--operators", "tova", "--places", "inside"]) == 0
    assert len(count) == 3  # the saved state is after the missing segment
    capsys.readouterr()
    assert main([*cut[:-4], "--stretch", "32", "--tokens", "64", "--sizes", "8", *cut[-2:]]) == 1
    assert "with stretch 16; this one has 32" in capsys.readouterr().err


def test_tables_contain_the_results():
    losses = {"absolute": [[30.0, 20.0], [34.0, 24.0]], "inside": [[29.0, 21.0], [30.0, 20.0]]}
    results = [
        ExtrapolationResult("tova", 8, places, 10 * i, 10, ["a", "b"], nll, 0.5)
        for places, rows in losses.items()
        for i, nll in enumerate(rows)
    ]
    whole = report(results, 15)
    spans, so_far, relative, times = whole.tables
    assert list(spans.columns) == ["operator and places", "to 10", "to 20"]
    assert spans.rows[0] == ["tova:8 absolute", f"{math.exp(2.5):.1f}", f"{math.exp(2.9):.1f}"]
    assert so_far.rows[1] == ["tova:8 inside", f"{math.exp(2.5):.1f}", f"{math.exp(2.5):.1f}"]
    assert relative.rows == [["tova:8 absolute", "", ""], ["tova:8 inside", "+0.0000 ± 0.1000", "-0.4000"]]
    assert times.rows[0] == ["tova:8 absolute", "50.0"]
    picture = whole.figures["beyond.png"]
    assert list(picture.lines) == ["tova:8 inside"]
    (at_10, first, error_10), (at_20, second, error_20) = picture.lines["tova:8 inside"]
    assert (at_10, at_20) == (10, 20)
    assert (first, second) == (pytest.approx(0), pytest.approx(-0.4))
    assert error_10 == pytest.approx(0.1)
    assert math.isnan(error_20)  # two equal differences
    assert picture.horizontal_lines == {"tova:8 absolute": 0.0}
    assert picture.vertical_lines == {"training length": 15}
    assert (picture.x_label, picture.y_label) == ("tokens read", "nats per token above tova:8 absolute")
    assert (picture.log_x, picture.log_y) == (False, False)


def test_curve_of_one_row_shows_perplexities():
    results = [ExtrapolationResult("tova", 8, "absolute", 10 * i, 10, ["a", "b"], [30.0, 20.0 + i], 0.5) for i in range(2)]
    picture = report(results, 15).figures["beyond.png"]
    assert [(x, y) for x, y, _ in picture.lines["tova:8 absolute"]] == [
        (10, pytest.approx(math.exp(2.5))),
        (20, pytest.approx(math.exp(2.55))),
    ]
    assert all(math.isnan(error) for _, _, error in picture.lines["tova:8 absolute"])
    assert (picture.y_label, picture.log_y) == ("perplexity", True)


def test_a_long_line_has_at_most_six_spans_of_equal_length():
    results = [ExtrapolationResult("tova", 8, "absolute", 10 * i, 10, ["a"], [10.0 * i], 0.5) for i in range(8)]
    spans, so_far, _, _ = report(results, 15).tables
    assert list(spans.columns[1:]) == ["to 20", "to 40", "to 60", "to 80"]
    assert spans.rows[0][1:] == [f"{math.exp(x):,.{max(0, 3 - len(str(int(math.exp(x)))))}f}" for x in (0.5, 2.5, 4.5, 6.5)]
    assert so_far.rows[0][2] == f"{math.exp(1.5):.2f}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokens", "60"], "--tokens is 60; expected a multiple of --stretch, 16"),
        (["--tokens", "160000"], "the longest text has"),
        (["--tokens", "64", "--operators", "truncated"], "truncated:8, which carries no state"),
        (["--tokens", "64", "--operators", "nothing"], "no operator is called 'nothing'"),
        (["--tokens", "64", "--operators", "full", "--places", "inside"], "no operator is bounded; expected absolute"),
    ],
)
def test_invalid_arguments_are_refused(arguments, more, message, capsys, monkeypatch):
    monkeypatch.setattr(msrnn.Cell, "forward", lambda *_, **__: pytest.fail("a token was read"))
    assert main([*arguments[1], *more]) == 1
    assert message in capsys.readouterr().err


def test_an_unbounded_state_is_read_at_absolute_positions_only(arguments, capsys):
    assert main([*arguments[1], "--tokens", "16", "--operators", "full", "tova:8", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [r["places"] for r in records if r["operator"] == "full"] == ["absolute"]
