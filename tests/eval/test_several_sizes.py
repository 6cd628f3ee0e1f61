"""Operators with several sizes in experiments: each is one row, in the column of its mean size."""

import json
import math
import statistics

import pytest
from matplotlib.image import imread
from support.tables import unpadded
from support.tiny_models import step_loop
from support.tiny_tokenizer import chat_cell

import converters
from msrnn.cli.main import main
from msrnn.eval.conditions import describe_several_sizes, parse_conditions, unaffected
from msrnn.eval.extrapolation import _file_name
from msrnn.eval.lm import LMResult, report
from msrnn.eval.prefill_cost import PrefillCostResult
from msrnn.eval.prefill_cost import report as prefill_report
from msrnn.eval.retrieval_report import RetrievalResult
from msrnn.eval.retrieval_report import report as retrieval_report
from msrnn.eval.texts import split_into_chunks
from msrnn.eval.throughput import ThroughputResult
from msrnn.eval.throughput import report as throughput_report

BOOK = "The boat was small. The sea was not; and on the 3rd day, the wind rose again! Was it late? \n" * 30
SEVERAL = ["tova-head:12/6", "tova-head:6/5", "tova-head:12,6/5", "window:10,7", "shared:tova-head:4,8", "sinks:full/9:2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("several")
    chat_cell().save(path / "model")
    (path / "book.txt").write_text(BOOK)
    return path


def command(folder, name, *more):
    return ["eval", name, str(folder / "model"), "--text", str(folder / "book.txt"), *map(str, more)]


def test_the_column_is_the_mean_of_the_sizes():
    more = {"tova-head:full/full,8/8": None, "all-layers:tova:6,4": 5, "tova:SIZE,4": 9, "sinks:full/SIZE:1": 9}
    found = parse_conditions([*SEVERAL, *more], [9])
    assert [c.size for c in found] == [9, 6, 9, 9, 6, None, *more.values()]
    assert [str(c) for c in found[-2:]] == ["tova:9,4", "sinks:full/9:1"]


def test_bounds_are_the_sizes_of_bounded_layers_and_heads():
    bounds = [c.bounds for c in parse_conditions(["tova-head:12,6/5", "sinks:full/9:2", "full", "truncated", "h2o:7"], [9])]
    assert bounds == [(12, 6, 5), (9,), (), (9,), (7,)]
    conditions = parse_conditions(["tova-head:12/6", "sinks:full/9:2", "window:10,7"], [9])
    assert unaffected(conditions, 7) == ["tova-head:12/6", "sinks:full/9:2", "window:10,7"]
    assert unaffected(conditions, 8) == ["sinks:full/9:2", "window:10,7"]
    assert unaffected(conditions, 11) == []


def test_a_sentence_names_the_means():
    assert describe_several_sizes(parse_conditions(["full", "tova", "h2o:7"], [9])) == ""
    assert describe_several_sizes(parse_conditions(["tova", "tova-head:12,6/5", "sinks:full/9:2", "tova:SIZE,4"], [9])) == (
        "Operators with several sizes are compared at their mean size, rounded, or at SIZE: "
        "tova-head:12,6/5 (8.75), tova:9,4 (6.5). "
        "Operators with unbounded heads have no such size and are not compared with a bounded reference: sinks:full/9:2."
    )


def test_language_modelling_measures_each_complete_spec_string_once(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = command(folder, "lm", "--chunk", "30", "--chunks", "2", "--operators", "full", "tova", *SEVERAL, "--out", out)
    assert main([*arguments, "--sizes", "6", "9"]) == 0
    capsys.readouterr()
    records = json.loads((out / "report.json").read_text())
    cell = converters.load(folder / "model")
    chunks = split_into_chunks({"book": BOOK}, converters.tokenizer(folder / "model"), 30, 2)
    for operator in SEVERAL:
        found = [r for r in records if r["operator"] == operator]
        assert [r["chunk"] for r in found] == ["book 0", "book 1"]
        for r, chunk in zip(found, chunks, strict=True):
            logits, _ = step_loop(cell, chunk.ids[None, :-1], cell.initial_state(1, operator))
            losses = -logits[0].double().log_softmax(-1).gather(1, chunk.ids[1:, None])
            assert r["nll"] == pytest.approx(float(losses.sum()), abs=1e-4)
    page = unpadded((out / "report.md").read_text())
    assert "| operator | 6 | 9 | unbounded |" in page
    relative = page[page.index("**Nats per token relative to tova") :]
    assert "tova-head:12/6 (9), tova-head:6/5 (5.5), tova-head:12,6/5 (8.75)" in relative
    at = {(r["operator"], r["size"], r["chunk"]): r["nll"] / r["tokens"] for r in records}
    for operator, size in (("tova-head:12/6", 9), ("tova-head:6/5", 6)):
        gaps = [at[operator, size, chunk.name] - at["tova", size, chunk.name] for chunk in chunks]
        row = next(line for line in relative.splitlines() if line.startswith(f"| {operator} |"))
        assert row.split("|")[2 if size == 6 else 3].startswith(f" {statistics.mean(gaps):+.4f} ")
        assert row.count("±") == 1
    assert "| sinks:full/9:2 | | | |" in relative
    assert main([*arguments, "--sizes", "6", "9", "--against", "sinks:full/9:2"]) == 0
    page = unpadded(capsys.readouterr().out)
    relative = page[page.index("**Nats per token relative to sinks:full/9:2") :]
    assert next(line for line in relative.splitlines() if line.startswith("| tova |")).count("±") == 2
    assert min(imread(out / "lm.png").shape[:2]) > 200


def test_a_table_of_complete_spec_strings_needs_no_sizes(folder, capsys):
    operators = ["full", "tova-head:12/6", "sinks:full/9:2"]
    assert main([*command(folder, "lm", "--chunk", "30", "--chunks", "1", "--operators", *operators), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [(r["operator"], r["size"]) for r in records] == [("full", None), ("tova-head:12/6", 9), ("sinks:full/9:2", None)]


def lm_results(**values):
    names = {"full": None, "tova": 8, "tova-head:12/4": 8, "sinks:full/9:2": None}
    return [LMResult(x, names[x], f"book {i}", 10 * y, 10, 40, 1.0) for x, ys in values.items() for i, y in enumerate(ys)]


def test_operators_with_unbounded_heads_are_levels_of_the_figure():
    duo = {"sinks:full/9:2": [2.5, 3.1]}
    several = lm_results(full=[2.0, 3.0], tova=[2.5, 3.5], **{"tova-head:12/4": [2.2, 3.4]}, **duo)
    figure = report(several, "tova").figures["lm.png"]
    assert figure.lines.keys() == {"tova", "tova-head:12/4"}
    assert figure.lines["tova-head:12/4"][0][:2] == pytest.approx((8, 0.3))
    assert figure.horizontal_lines == pytest.approx({"sinks:full/9:2": 0.3})
    assert figure.log_y
    figure = report(lm_results(tova=[2.5, 3.5], **duo), "tova").figures["lm.png"]  # without the unbounded model
    assert figure.y_label == "perplexity"
    assert figure.horizontal_lines == pytest.approx({"sinks:full/9:2": math.exp(2.8)})
    better = {"sinks:full/9:2": [1.5, 2.1]}
    assert not report(lm_results(full=[2.0, 3.0], tova=[2.5, 3.5], **better), "tova").figures["lm.png"].log_y


def test_the_other_experiments_measure_them(folder, tmp_path, capsys):
    operators = ["--operators", "tova", "tova-head:12/6", "sinks:full/9:2", "--sizes", "9"]
    short = ["--tasks", "needle", "--lengths", "450", "--examples", "1", "--depths", "0"]
    assert main([*command(folder, "retrieval", *short, *operators), "--json"]) == 0
    found = [(r["operator"], r["size"]) for r in json.loads(capsys.readouterr().out)]
    assert found == [("full", None), ("tova", 9), ("tova-head:12/6", 9), ("sinks:full/9:2", None)]
    reasoning = ["eval", "reasoning", str(folder / "model"), "--tasks", "lists", "--steps", "1", "--examples", "2"]
    assert main([*reasoning, "--shots", "1", "--max-new-tokens", "4", *operators]) == 0
    page = unpadded(capsys.readouterr().out)
    assert page.count("| tova-head:12/6 |") == page.count("| sinks:full/9:2 |") == 5
    beyond = ["--tokens", "32", "--stretch", "16", "--places", "absolute", "inside", "--out", tmp_path / "beyond"]
    assert main(command(folder, "extrapolation", *beyond, "--operators", "tova-head:12/6", "sinks:full/9:2")) == 0
    page = capsys.readouterr().out
    assert "tova-head:12/6 inside" in page
    assert "sinks:full/9:2 inside" in page  # remapped positions change its bounded heads


def test_the_file_of_a_state_has_a_short_name():
    assert _file_name("tova:8 digest inside") == "tova%3A8 digest inside"
    one, other = (_file_name(f"tova-head:{','.join(['12/6'] * 31 + [last])}") for last in ("7/6", "6/7"))
    assert one != other
    assert max(len(one), len(other)) < 200


def test_the_page_of_the_table_ranks_them_at_their_mean_size(folder, tmp_path):
    short = ["--chunk", "30", "--rounds", "2", "--tasks", "lists", "--steps", "1", "--shots", "1", "--max-new-tokens", "4"]
    operators = ["--operators", "tova", "tova-head:12/6", "sinks:full/9:2", "--sizes", "9"]
    assert main(command(folder, "table", *short, *operators, "--out", tmp_path / "out")) == 0
    page = unpadded((tmp_path / "out" / "report.md").read_text())
    assert "at SIZE: tova-head:12/6 (9). Operators with unbounded heads" in page
    assert "with a bounded reference: sinks:full/9:2." in page
    records = {r["operator"]: r for r in json.loads((tmp_path / "out" / "report.json").read_text())}
    assert {name: r["size"] for name, r in records.items()} == {
        **{"full": None, "tova": 9, "tova-head:12/6": 9, "sinks:full/9:2": None}
    }
    assert {records[name]["lm"]["rank"].rstrip("=") for name in ("tova", "tova-head:12/6")} <= {"1", "2"}
    assert records["sinks:full/9:2"]["lm"]["rank"] is None
    assert records["tova-head:12/6"]["lm"]["from_reference"] is not None
    assert records["sinks:full/9:2"]["lm"]["from_reference"] is None  # tova has no unbounded size
    row = sum(2 * H.keys.shape[3] * 8 + 8 for H in chat_cell().initial_state(1))  # of one head in both layers
    rows = {name: r["nbytes"] // row for name, r in records.items()}
    assert rows == {"full": 60, "tova": 18, "tova-head:12/6": 18, "sinks:full/9:2": 39}


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        (["tova-head:12/6/3"], "TOVA: 3 sizes for a layer of 2 key/value heads"),
        (["tova:12,6,3"], "TOVA: 3 sizes for a cell of 2 layers"),
        (["tova-head:12/40"], None),
        (["tova-head:40/50"], "--sizes: tova-head:40/50 changes nothing in"),
        (["tova-head:full,4/4"], "sizes per layer are 64,32, sizes per head 64/32"),
        (["tova-head:12/6", "tova-head:12/6"], "--operators has tova-head:12/6 twice"),
        (["tova-head:12/4", "tova", "--against", "tova-head:12/4"], "--against is tova-head:12/4, with 8 rows, but the other"),
    ],
)
def test_mistakes_are_refused(operators, message, folder, capsys):
    code = main(command(folder, "lm", "--chunk", "30", "--chunks", "1", "--sizes", "9", "--operators", *operators))
    assert code == (0 if message is None else 1)
    assert (message or "") in capsys.readouterr().err


def test_retention_refuses_several_sizes(folder, capsys):
    assert main(command(folder, "retention", "--chunk", "30", "--operators", "tova-head:12/6")) == 1
    assert "--operators has tova-head:12/6, with several sizes; expected one size for all layers" in capsys.readouterr().err


def test_a_prompt_is_held_as_a_whole_only_if_every_head_holds_it():
    def results(operator, size):
        return [RetrievalResult(operator, size, "needle", 9, 0.0, i, ["1"], "1") for i in range(2)]

    note = "H holds the whole prompt"
    assert note not in retrieval_report([*results("full", None), *results("tova-head:12/6", 9)]).tables[0].note
    assert f"With 9 rows {note}" in retrieval_report([*results("full", None), *results("tova", 9)]).tables[0].note


def test_the_cost_of_one_shot_prefill_with_unbounded_heads_is_a_level():
    rows = [("sinks:full/9:2", None, [[[1.0]], [[0.5]]]), ("full", None, None), ("tova-head:12/6", 9, None)]
    costs = [PrefillCostResult(2.0, 2.5, 10, 0.5, 2.0, 0.5, name, size, "book 0", maps) for name, size, maps in rows]
    curves = prefill_report(costs, 20, 15).figures["prefill-cost.png"].curves
    assert curves.horizontal_lines == {"equal": 0, "sinks:full/9:2": 0.5}
    assert [x for x, *_ in curves.lines["tova-head:12/6"]] == [9]


def test_throughput_is_not_relative_to_operators_with_unbounded_heads():
    rows = [("sinks:full/9:2", None, 50.0), ("full", None, 100.0), ("tova", 8, 300.0)]
    results = [ThroughputResult(x, size, 10**6, 9, 10**7, speed) for x, size, speed in rows]
    assert [row[-1] for row in throughput_report(results, 90, 64).tables[0].rows] == ["0.50", "1.00", "3.00"]
