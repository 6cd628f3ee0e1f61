"""Cost of one-shot prefill, compared with explicit step loops and transformers; the table contains the results."""

import json
import math
import statistics

import pytest
import torch
from matplotlib.image import imread
from support.tiny_models import random_tokens, retained_positions, step_loop, tiny_cell
from support.tiny_tokenizer import chat_cell
from support.transformers_reference import save_folder, tiny_reference
from transformers import DynamicCache

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.diagnostics.retention import retention
from msrnn.eval.prefill_cost import PrefillCostResult, common_share, measure_cost, report, retention_maps

CELL = tiny_cell()


def follows(logits, state, rest):
    """Return the mean −ln p of the tokens after a prompt, by the step loop."""
    losses = []
    for token in rest:
        losses.append(-logits[0].log_softmax(-1)[token].item())
        logits, state = CELL.step(token[None], state)
    return statistics.fmean(losses)


@pytest.mark.parametrize("operator", ["tova:5", "h2o:6", "sinks:6:2", "last-queries:6:2", "full"])
def test_both_methods_equal_the_step_loop(operator):
    text = random_tokens(4, 1, 40)[0]
    costs = measure_cost(CELL, text, operator, 25)
    logits, state = step_loop(CELL, text[None, :25], CELL.initial_state(1, operator))
    assert costs.exact == pytest.approx(follows(logits[:, -1], state, text[25:]), abs=1e-8)
    at_once = msrnn.prefill(CELL, text[None, :25], operator)
    assert costs.one_shot == pytest.approx(follows(*at_once, text[25:]), abs=1e-8)
    same = [
        len(set(one) & set(other)) / len(one)
        for G, H in zip(retained_positions(state), retained_positions(at_once[1]), strict=True)
        for one, other in zip(G[0], H[0], strict=True)
    ]
    assert costs.common == pytest.approx(statistics.fmean(same))
    assert costs.tokens == 15
    assert min(costs.exact_seconds, costs.one_shot_seconds) > 0
    if operator == "full":
        assert costs.common == 1
        assert costs.one_shot == pytest.approx(costs.exact, abs=1e-8)
    elif operator in ("tova:5", "h2o:6"):
        assert costs.common < 1
        assert abs(costs.one_shot - costs.exact) > 1e-3


def test_one_shot_prefill_with_a_window_equals_transformers_with_a_truncated_cache(tmp_path):
    """The reference uses transformers only: full attention over the prompt, then the last rows of its cache."""
    model = tiny_reference(dtype=torch.float32)
    cell, text = converters.load(save_folder(model, tmp_path)), random_tokens(1, 1, 30, 61)
    with torch.no_grad():
        out = model(text[:, :20], use_cache=True)
        losses, rows = [], out.past_key_values
        for t in range(20, 30):
            losses.append(-out.logits[0, -1].log_softmax(-1)[text[0, t]].item())
            carried = DynamicCache()
            for l, layer in enumerate(rows.layers):
                carried.update(layer.keys[:, :, -6:], layer.values[:, :, -6:], l)
            out = model(text[:, t : t + 1], past_key_values=carried, position_ids=torch.tensor([[t]]), use_cache=True)
            rows = out.past_key_values
    assert measure_cost(cell, text[0], "window:6", 20).one_shot == pytest.approx(statistics.fmean(losses), abs=1e-4)


def test_common_rows_are_counted_per_head():
    _, one = CELL(random_tokens(0, 2, 9), CELL.initial_state(2, "window:4"), lengths=torch.tensor([9, 2]))
    _, other = CELL(random_tokens(0, 2, 9), CELL.initial_state(2, "sinks:6:3"), lengths=torch.tensor([9, 2]))
    assert common_share(one, other) == (3 + 2) / 6  # three of the positions 5 6 7 8; both of 0 1
    assert common_share(other, one) == (3 + 2) / 8
    assert math.isnan(common_share(CELL.initial_state(1), one.select([0])))


def test_each_method_has_its_own_time(monkeypatch):
    times = iter([1.0, 3.0, 10.0, 15.0])
    monkeypatch.setattr("msrnn.eval.prefill_cost.time.perf_counter", lambda: next(times))
    cost = measure_cost(CELL, random_tokens(0, 1, 20)[0], "tova:5", 12)
    assert (cost.exact_seconds, cost.one_shot_seconds, cost.tokens) == (2, 5, 8)


def test_table_contains_the_results():
    exact, shortcut = [2.0, 2.5, 3.0], [2.2, 2.4, 3.4]
    costs = [
        PrefillCostResult(a, b, 10, c, 2.0, 0.5, "tova", 8, f"book {c}")
        for a, b, c in zip(exact, shortcut, (0.5, 0.6, 0.7), strict=True)
    ]
    (table,) = report(costs, 20, 10).tables
    gaps = [b - a for a, b in zip(exact, shortcut, strict=True)]
    beyond = f"{statistics.fmean(gaps):+.4f} ± {statistics.stdev(gaps) / math.sqrt(3):.4f}"
    expected = ["tova", "8", f"{math.exp(2.5):.1f}", f"{math.exp(8 / 3):.1f}", beyond, "60%", "2.00", "0.50"]
    assert list(table.rows[0]) == expected
    assert "10 tokens" in table.note
    assert "3 chunks" in table.note


def test_maps_are_those_of_both_methods():
    text = random_tokens(4, 1, 30)
    (exact, one_shot), averaged = retention_maps(CELL, text[0], "tova:5", 20)
    assert averaged == (len(CELL.layers), 1)
    assert retention_maps(CELL, text[0], "tova-head:5", 20)[1] == (len(CELL.layers), CELL.config.n_kv_heads)
    assert exact[:, 0].equal(exact[:, 1])  # the first token twice
    assert one_shot[:, 0].equal(one_shot[:, 1])
    exact, one_shot = exact[:, 1:], one_shot[:, 1:]
    torch.testing.assert_close(exact, retention(CELL, text, "tova:5")[0].mean(0))
    assert one_shot[:19].equal(torch.ones(19, 30).tril())
    assert one_shot[19:].sum(1).tolist() == pytest.approx([5] * 11)
    _, state = msrnn.prefill(CELL, text[:, :20], "tova:5")
    positions = torch.stack([H.positions[0] for H in state])  # (L, K, 5)
    assert one_shot[19].tolist() == pytest.approx([(positions == p).float().mean().item() * 5 for p in range(30)])


def test_figure_shows_the_maps_of_the_first_chunk_and_the_paired_differences():
    costs = [
        PrefillCostResult(2.0 + c, 2.0 + c + gap * size, 10, 0.5, 2.0, 0.5, operator, size, f"book {c}", maps)
        for operator in ("tova", "h2o")
        for size in (8, 16)
        for c, gap, maps in ((0, 0.1, [[[1.0]], [[0.5]]]), (1, 0.3, None))
    ]
    figure = report([*costs, PrefillCostResult(2.0, 2.0, 10, 1.0, 2.0, 0.5, "full", None, "book 0")], 20, 15).figures
    (plot,) = figure.values()
    assert {name: values.tolist() for name, values in plot.maps.panels.items()} == {
        "after every token": [[1.0]],
        "once, after the prompt": [[0.5]],
    }
    assert "tova:8" in plot.maps.title
    assert plot.maps.colour_label == "1: in H, 0: not in H"
    assert (plot.maps.extent, plot.maps.prompt) == (20, 15)
    for points in (plot.curves.lines["tova"], plot.curves.lines["h2o"]):
        assert [x for x, _, _ in points] == [8, 16]
        assert [y for _, y, _ in points] == pytest.approx([1.6, 3.2])
        assert [error for _, _, error in points] == pytest.approx([0.8, 1.6])  # half the difference of 0.8 and 2.4
    assert set(plot.curves.lines) == {"tova", "h2o"}
    assert report([PrefillCostResult(2.0, 2.0, 10, 1.0, 2.0, 0.5, "full", None, "book 0")], 20, 15).figures == {}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    chat_cell().save(folder / "tiny")
    (folder / "book.txt").write_text("The boat was small, the sea was not; and on the third day the wind rose again. " * 12)
    return ["eval", "prefill-cost", str(folder / "tiny"), "--text", str(folder / "book.txt"), "--chunk", "40", "--chunks", "2"]


def test_the_command_prints_records_and_resumes(arguments, tmp_path, capsys):
    more = [
        "--prompt",
        "25",
        "--operators",
        "tova",
        "shared:last-queries:SIZE:2",
        "--sizes",
        "6",
        "9",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, *more, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [(r["operator"], r["size"]) for r in records[::2]] == [
        ("tova", 6),
        ("tova", 9),
        *[("shared:last-queries:SIZE:2", n) for n in (6, 9)],
    ]
    assert all(r["tokens"] == 15 and 0 < r["common"] <= 1 for r in records)
    assert imread(tmp_path / "out" / "prefill-cost.png").std() > 0.05
    assert main([*arguments, *more]) == 0
    assert capsys.readouterr().out == (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == records  # with equal times, so nothing was read again
    assert main([*arguments, *more[2:], "--prompt", "26"]) == 1
    assert "prompt 25" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt", "40"], "--prompt is 40; expected less than --chunk, 40"),
        (["--prompt", "9", "--operators", "truncated", "--sizes", "4"], "truncated:4, which has no one-shot prefill"),
        (["--prompt", "9", "--operators", "cam", "--sizes", "8"], "cam:8, which has no one-shot prefill"),
        (["--prompt", "9", "--operators", "nothing"], "no operator is called 'nothing'"),
    ],
)
def test_invalid_arguments_are_refused(arguments, more, message, capsys, monkeypatch):
    monkeypatch.setattr("msrnn.eval.prefill_cost.measure_cost", None)  # before any text is read
    assert main([*arguments, *more]) == 1
    assert message in capsys.readouterr().err


def test_a_prompt_that_is_the_whole_text_is_refused():
    for n in (0, 9, 10):
        with pytest.raises(msrnn.Error, match=f"the prompt has {n} of 9 tokens"):
            measure_cost(CELL, random_tokens(0, 1, 9)[0], "tova:4", n)
