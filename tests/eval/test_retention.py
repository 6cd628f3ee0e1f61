"""Lifetimes and shares equal those of the step loop and the averages of the paper."""

import json
from itertools import accumulate

import pytest
import torch
from matplotlib.image import imread
from support.tables import unpadded
from support.tiny_models import random_tokens, tiny_cell
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

from msrnn.cli.main import main
from msrnn.diagnostics.retention import eviction_steps
from msrnn.eval.conditions import parse_conditions
from msrnn.eval.retention import N_FIRST, RetentionResult, lifetimes, measure_retention, recent_share, report
from msrnn.eval.texts import split_into_chunks
from msrnn.eval.token_classes import character_classes, parts_of_speech

CELL = tiny_cell()
TEXT = "The boat was small, the sea was not; and on the 3rd day the wind rose again. " * 6


@pytest.mark.parametrize("reduction", ["tova:6", "h2o:6", "tova-head:4", "sinks:6:2", "window:5"])
def test_lifetimes_and_shares_equal_the_step_loop(reduction):
    T, size = 30, int(reduction.split(":")[1])
    text = random_tokens(4, 1, T)
    left, state = eviction_steps(CELL, text, reduction)[0], CELL.initial_state(1, reduction)
    seen, held, recent = torch.zeros(2, 2, T, dtype=torch.int64), torch.zeros(2, 2), torch.zeros(2, 2)
    for t, token in enumerate(text.T):
        for l, H in enumerate(state):
            for k in range(2):
                for p in [*H.positions[0, k].tolist(), t]:
                    seen[l, k, p] += 1
        _, state = CELL.step(token, state)
        for l, H in enumerate(state):
            if t >= size:
                held[l] += (H.positions[0] >= 0).sum(-1)
                recent[l] += (H.positions[0] > t - size).sum(-1)
    assert torch.equal(lifetimes(left), seen)
    torch.testing.assert_close(recent_share(left, size), (recent / held).double())
    assert (recent_share(left, size) == 1).all() == reduction.startswith("window")


@pytest.mark.parametrize(("size", "average"), [(256, 249), (512, 481), (1024, 897), (2048, 1537)])
def test_mean_lifetime_equals_the_paper(size, average):
    """arXiv:2401.06104, table 2, row Avg: 4,096 tokens. A window stands for any operator."""
    p = torch.arange(4096)
    assert round(float(lifetimes((p + size).clamp(max=4096)).double().mean())) == average


def concatenated(*parts):
    """Return the concatenated text and the spans of its parts."""
    ends = list(accumulate(map(len, parts)))
    return "".join(parts), list(zip([0, *ends], ends, strict=False))


def test_classes_of_tokens_by_characters():
    expected = {
        **{"The": "word start", " cap": "word start", "tain": "inside word", "'s": "inside word", " boat": "word start"},
        **{"—": "punctuation", "white": "word start", " 3": "number", "rd": "inside word", ",": "punctuation"},
        **{" didn": "word start", "’t": "inside word", "\n\n": "white space", " “": "punctuation", "No": "word start"},
        **{"\nwe": "word start", "’": "punctuation", "re": "inside word", " it": "word start", "'": "punctuation"},
        **{
            "ll": "inside word",
            "!”": "punctuation",
            " €": "punctuation",
            "": "other",
            "x": "word start",
            "_1": "number",
            "\u200b": "other",
        },
    }
    text, spans = concatenated(*expected)
    assert dict(zip(expected, character_classes(text, spans), strict=True)) == expected


def test_parts_of_speech():
    expected = {
        **{"The": "AT0", " cap": "NN1", "tain": "NN1", "’s": "POS", " old": "AJ0", " ship": "NN1", "": "–", " quickly": "AV0"},
        **{" sank": "VVD", ".": "PUN", " It": "PNP", " did": "VDD", "n't": "XX0", " rise": "VVI", "!": "PUN", "\n": "–"},
    }
    text, spans = concatenated(*expected)
    assert dict(zip(expected, parts_of_speech(text, spans), strict=True)) == expected
    assert parts_of_speech("", []) == []
    after = [*expected].index(" It")  # a chunk that starts at the second sentence
    assert parts_of_speech(text, spans[after:]) == [*expected.values()][after:]


def test_a_result_follows_from_the_trace():
    cell, tokenizer = chat_cell(), tiny_tokenizer()
    (chunk,) = split_into_chunks({"book": TEXT}, tokenizer, 50, 1)
    for condition in parse_conditions(["tova", "h2o"], [7]):
        result = measure_retention(cell, chunk, condition, keep_steps=True)
        left = eviction_steps(cell, chunk.ids[None], condition.reduction)[0]
        life = lifetimes(left).double().mean((0, 1))
        assert result.first == life[:N_FIRST].tolist()
        assert result.mean == pytest.approx(float(life.mean()))
        assert result.first_retained == float((left[..., 0] == 50).double().mean())
        assert result.recent == [float(recent_share(layer, 7).mean()) for layer in left]
        assert torch.tensor(result.steps).expand_as(left).equal(left)
        assert len(result.steps[0]) == (1 if condition.operator == "tova" else 2)
        names = character_classes(TEXT, chunk.spans)
        for name, (count, steps) in result.classes.items():
            mine = [life[i] for i in range(1, 50) if names[i] == name]
            assert (count, steps) == (len(mine), pytest.approx(float(sum(mine) / len(mine))))
        assert sum(count for count, _ in result.classes.values()) == 49
    assert measure_retention(cell, chunk, condition).steps is None


def test_classes_are_weighted_by_tokens_and_sorted_by_lifetime():
    cell, tokenizer = chat_cell(), tiny_tokenizer()
    results = split_into_chunks({"a": TEXT.replace("was", "w a s", 2)}, tokenizer, 40, 2)
    records = [measure_retention(cell, c, e, keep_steps=True) for c in results for e in parse_conditions(["tova"], [5, 9])]
    table = next(t for t in report(records).tables if t.title.startswith("Mean lifetime by token class"))
    assert table.columns == ["class", "tokens", "5", "9"]
    assert [float(row[3]) for row in table.rows] == sorted((float(row[3]) for row in table.rows), reverse=True)
    of = {row[0]: row for row in table.rows}["inside word"]
    found = [r.classes["inside word"] for r in records if r.size == 9]
    assert found[0][0] != found[1][0]
    assert of[1] == str(found[0][0] + found[1][0])
    assert of[3] == f"{sum(n * s for n, s in found) / sum(n for n, _ in found):.0f}"


def test_classes_of_several_chunks_are_weighted_by_tokens():
    fields = {
        "operator": "tova",
        "size": 4,
        "mean": 5.0,
        "first": [9.0],
        "first_retained": 1.0,
        "layers": [0],
        "recent": [0.7],
        "seconds": 1.0,
    }
    found = [{"word start": (1, 90.0), "number": (2, 40.0)}, {"word start": (9, 10.0)}]
    results = [
        RetentionResult(chunk=f"c {i}", classes=k, steps=[[[1]]] if i == 0 else None, **fields) for i, k in enumerate(found)
    ]
    table = next(t for t in report(results).tables if t.title.startswith("Mean lifetime by token class"))
    assert table.rows == [["number", "2", "40"], ["word start", "10", "18"]]


def test_each_table_contains_its_own_measure():
    """The first chunk of each size has eviction steps of two layers: 3 tokens, of which the first leaves at step 1 or never."""
    results = [
        RetentionResult(
            *("tova", size, f"c {i}", 100.0 * size + i, [1000.0 * size + i, 7.0], 0.25),
            *([0, 1], [0.5, 0.75 + i / 4], {}, 1.0, steps),
        )
        for size in (4, 8)
        for i, steps in enumerate(([[[1, 3, 3]], [[3, 3, 3]]] if size == 8 else [[[3, 3, 3]], [[1, 3, 3]]], None))
    ]
    found = report(results)
    recent, first_token, lifetime, classes, first = found.tables
    for table in (recent, first_token, lifetime):
        assert table.columns == ["operator", "4", "8"]
        assert "2 chunks" in table.note or table is lifetime
    assert recent.rows == [["tova", "68.8%", "68.8%"]]
    assert first_token.rows == [["tova", "25.0%", "25.0%"]]
    assert lifetime.rows == [["tova", "400", "800"]]
    assert classes.rows == []
    assert first.rows == [["0", "4,000", "8,000"], ["1", "7", "7"]]
    assert found.figures["first-tova.png"].lines["size 4"] == [(0.0, 4000.5, 0.0), (1.0, 7.0, 0.0)]
    assert not found.figures["first-tova.png"].log_x
    leaves, stays = (
        [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
        [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
    )  # the first token twice
    last, layers = found.figures["map-tova.png"].panels, found.figures["layers-tova.png"]
    assert {name: panel.tolist() for name, panel in last.items()} == {"size 4": leaves, "size 8": stays}
    assert {name: panel.tolist() for name, panel in layers.panels.items()} == {"layer 0": leaves, "layer 1": stays}  # of size 8
    assert layers.title.endswith("size 8")


def test_lifetimes_are_one_line_per_condition():
    cell, (chunk,) = chat_cell(), split_into_chunks({"book": TEXT}, tiny_tokenizer(), 50, 1)
    conditions = parse_conditions(["window", "sinks:SIZE:1"], [5])
    curves = report([measure_retention(cell, chunk, c, keep_steps=True) for c in conditions]).figures["lifetimes.png"]
    assert list(curves.lines) == ["window:5", "sinks:5:1"]
    assert curves.steps
    assert [(x, y) for x, y, _ in curves.lines["window:5"]] == [(age, float(age < 5)) for age in range(1, 26)]
    shares = [y for _, y, _ in curves.lines["sinks:5:1"]]
    assert shares == pytest.approx([1] * 3 + [1 / 46] * 22)  # the first token stays, of 50 minus 4 that are observed at age 4


def test_figures_have_labels_and_the_orientation_of_the_paper():
    cell = chat_cell()
    (chunk,) = split_into_chunks({"book": TEXT}, tiny_tokenizer(), 50, 1)
    result = measure_retention(cell, chunk, parse_conditions(["window"], [5])[0], keep_steps=True)
    figures = report([result]).figures
    maps, first = figures["map-window.png"], figures["first-window.png"]
    assert (maps.x_label, maps.y_label, maps.extent, maps.first_token) == ("position", "step", 50, True)
    assert maps.colour_label == "1: in H, 0: not in H"
    assert (first.x_label, first.y_label) == ("token", "steps")
    step, position = torch.arange(50)[:, None], torch.arange(50)
    assert torch.equal(maps.panels["size 5"][:, 1:].bool(), (position <= step) & (position > step - 5))
    assert list(figures["layers-window.png"].panels) == [f"layer {l}" for l in range(len(cell.layers))]
    assert first.lines["size 5"][:2] == [(0.0, 6.0, 0.0), (1.0, 6.0, 0.0)]  # a row is visible to 6 queries


def test_the_command(tmp_path, capsys):
    chat_cell().save(tmp_path / "model")
    (tmp_path / "book.txt").write_text(TEXT)
    arguments = ["eval", "retention", str(tmp_path / "model"), "--text", str(tmp_path), "--chunk", "60", "--chunks", "2"]
    assert main([*arguments, "--sizes", "6", "12", "--operators", "tova", "sinks:SIZE:1", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "| sinks:SIZE:1 | 100.0% | 100.0% |" in unpadded(shown)
    assert [r["size"] for r in json.loads((tmp_path / "out" / "report.json").read_text())] == [6, 6, 12, 12] * 2
    for name in ("first", "map", "layers"):
        assert imread(tmp_path / "out" / f"{name}-sinks-SIZE-1.png").std() > 0.05
    assert main([*arguments, "--operators", "full"]) == 1
    assert "full, which evicts no row of 60 tokens" in capsys.readouterr().err
    assert main([*arguments, "--sizes", "60"]) == 1
    assert "tova:60, which evicts no row" in capsys.readouterr().err
