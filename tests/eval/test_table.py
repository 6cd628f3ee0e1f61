"""The table of an interrupted run equals that of an unbroken one; it stops in time; ties are ties."""

import json

import pytest
from matplotlib.image import imread
from support.tables import unpadded
from support.tiny_tokenizer import chat_cell

from msrnn.cli.main import main
from msrnn.eval import retrieval, table
from msrnn.eval.table import TimeBudget
from msrnn.eval.table_plan import LM, MEMORY, REASONING, RETRIEVAL
from msrnn.eval.table_report import Measured, report

BOOK = "The boat was small. The sea was not; and on the 3rd day, the wind rose again! Was it late? \n" * 30
FILES = ("report.md", "report.json")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("table")
    chat_cell().save(path / "model")
    (path / "book.txt").write_text(BOOK)
    short = ["--chunk", "30", "--rounds", "2", "--tasks", "needle", "arithmetic", "lists", "--length", "450"]
    short += ["--steps", "1", "--shots", "1", "--max-new-tokens", "4"]
    return [
        "eval",
        "table",
        str(path / "model"),
        "--text",
        str(path / "book.txt"),
        *short,
        "--operators",
        "tova",
        "window",
        "--sizes",
        "9",
    ]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main([*words, "--out", str(out)]) == 0
    return out


def test_the_page_has_every_quality_and_the_bytes_of_h(whole):
    page = unpadded((whole / "report.md").read_text())
    assert "| operator | MB of H | lm | rank | retrieval | rank | reasoning | rank |" in page
    for title in ("Nats per token", "Retrieval score, points of 100", "Right answers of 100"):
        assert f"**{title}**" in page
    assert "The time was over" not in page
    records = json.loads((whole / "report.json").read_text())
    assert [(r["operator"], r["size"], r["reference"]) for r in records] == [
        ("full", None, "tova"),
        ("tova", 9, "tova"),
        ("window", 9, "tova"),
    ]
    assert [r["lm"]["items"] for r in records] == [2] * 3
    assert [r["retrieval"]["items"] for r in records] == [6] * 3
    assert [r["reasoning"]["items"] for r in records] == [16] * 3
    cell = chat_cell()
    row = sum(H.keys.shape[1] * (2 * H.keys.shape[3] * 8 + 8) for H in cell.initial_state(1))
    assert [r["nbytes"] // row for r in records] == [30, 9, 9]
    for quality in (LM, RETRIEVAL, REASONING):
        assert min(imread(whole / f"table-{quality}.png").shape[:2]) > 200


def test_the_table_of_an_interrupted_run_equals_that_of_an_unbroken_one(words, whole, tmp_path, monkeypatch):
    out, calls, add = tmp_path / "out", [], TimeBudget.add

    def interrupted(self, kind):
        calls.append(kind)
        if len(calls) == 12:
            raise KeyboardInterrupt
        add(self, kind)

    with monkeypatch.context() as patch:
        patch.setattr(TimeBudget, "add", interrupted)
        assert main([*words, "--out", str(out)]) == 130
    assert not (out / "report.md").exists()
    assert main([*words, "--out", str(out)]) == 0
    for name in FILES:
        assert (out / name).read_text() == (whole / name).read_text()


def test_a_table_has_only_the_qualities_of_its_tasks(words, capsys):
    assert main([*words, "--tasks", "needle", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [sorted(r.keys() & {LM, RETRIEVAL, REASONING}) for r in records] == [[LM, RETRIEVAL]] * 3
    assert main([*words, "--tasks", "lists"]) == 0
    assert "| operator | MB of H | lm | rank | reasoning | rank |" in unpadded(capsys.readouterr().out)


def test_short_runs_continue_each_other(words, whole, tmp_path, monkeypatch, capsys):
    out, left = tmp_path / "out", []
    monkeypatch.setattr(TimeBudget, "fit", lambda self, kind: bool(left) and left.pop())
    left += [True] * 8
    assert main([*words, "--out", str(out)]) == 1
    assert (
        "--minutes 30 was too short for a unit of retrieval under all operators; run the command again"
        in capsys.readouterr().err
    )
    left += [True] * 8
    assert main([*words, "--out", str(out)]) == 0
    assert (
        "The time was over. Finished items: 1 of 2 of lm, 3 of 6 of retrieval, 8 of 16 of reasoning."
        in (out / "report.md").read_text()
    )
    left += [True] * 100
    assert main([*words, "--out", str(out)]) == 0
    for name in FILES:
        assert (out / name).read_text() == (whole / name).read_text()


def test_a_unit_starts_only_if_the_longest_of_its_kind_fits(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(table.time, "monotonic", lambda: now[0])
    budget = TimeBudget(2)
    assert budget.fit(LM)
    now[0] += 50
    budget.add(LM)
    assert budget.fit(LM)
    assert budget.fit(RETRIEVAL)
    now[0] += 21
    assert not budget.fit(LM)  # 50 seconds of 49
    assert budget.fit(RETRIEVAL)
    now[0] += 50
    assert not budget.fit(RETRIEVAL)


def test_a_run_measures_a_unit_although_its_questions_took_all_of_the_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(table.time, "monotonic", lambda: now[0])
    budget = TimeBudget(1)
    now[0] += 90
    assert budget.fit(MEMORY)
    budget.add(MEMORY)
    assert not budget.fit(LM)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--against", "h2o"], "--against is 'h2o'; expected one of the operators, full, tova, window"),
        (["--operators", "truncated"], "truncated:9, which has no state"),
        (["--length", "60"], "needle: a prompt has at most 60 tokens"),
        (["--tasks", "needle", "needle"], "--tasks has needle twice; expected distinct values"),
        (["--sizes", "9", "900"], "--sizes: tova:900 changes nothing in the longest text of"),
    ],
)
def test_invalid_arguments_are_refused_before_any_measurement(more, message, words, capsys, monkeypatch):
    monkeypatch.setattr(TimeBudget, "fit", None)
    assert main([*words, *more]) == 1
    assert message in capsys.readouterr().err


def test_prompts_that_the_machine_cannot_hold_are_not_built(words, capsys, monkeypatch):
    monkeypatch.setattr(retrieval, "generate_questions", lambda *_, **__: pytest.fail("prompts were built"))
    assert main([*words, "--length", "1000000000000"]) == 1
    assert "3 states of 1000000000000 rows need" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--rounds", "--steps", "--shots"])
def test_a_number_of_questions_that_would_take_hours_to_generate_is_refused(option, words, capsys):
    with pytest.raises(SystemExit):
        main([*words, option, "1000000000"])
    assert f"argument {option}: '1000000000' is not an integer from 1 to 1,000" in capsys.readouterr().err


def test_the_page_names_the_text_of_the_bytes_and_sizes_that_evict_nothing(words, tmp_path):
    """A chunk of 30 tokens is read up to the last one; a query of 29 tokens sees all rows if H holds 28."""
    assert main([*words, "--rounds", "1", "--sizes", "27", "28", "--operators", "tova", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert "MB of H: the state after the 30 tokens of the chunk book 0." in page
    assert "In lm (29 tokens at most) nothing is evicted that a later query would see: tova:28." in page
    records = {r["size"]: r["lm"] for r in json.loads((tmp_path / "out" / "report.json").read_text())}
    assert records[28]["from_unbounded"]["difference"] == pytest.approx(0, abs=1e-9)
    assert abs(records[27]["from_unbounded"]["difference"]) > 1e-6


def measured(operator, size, nbytes, lm, right):
    rows = [(MEMORY, [nbytes]), (LM, lm), (RETRIEVAL, right), (REASONING, right)]
    return [Measured(operator, size, quality, str(i), x) for quality, values in rows for i, x in enumerate(values)]


def test_lower_losses_and_higher_scores_are_better():
    results = measured("full", None, 9e6, [2.9, 3.9] * 3, [1] * 6)
    results += measured("tova", 8, 2e6, [3.0, 4.0] * 3, [0] * 6) + measured("h2o", 8, 2e6, [2.0, 3.0] * 3, [1] * 6)
    overview, *qualities = report(results, "tova", "").tables
    assert [table.rows[1][-2:] for table in qualities] == [["better", "1"]] * 3
    assert [row[3::2] for row in overview.rows[1:]] == [["2"] * 3, ["1"] * 3]
    overview, *qualities = report(results, "h2o", "").tables
    assert [table.rows[0][-2:] for table in qualities] == [["worse", "2"]] * 3


def test_one_item_has_no_interval_and_is_a_tie():
    results = measured("full", None, 9e6, [2.9], [1]) + measured("tova", 8, 2e6, [3.0], [0])
    results += measured("h2o", 8, 2e6, [2.0], [1])
    overview, *qualities = report(results, "tova", "").tables
    assert overview.note.startswith("Means over 1 chunk, 1 question, 1 problem: ")
    for quality in qualities:
        assert quality.note.split(".")[0] in ("1 chunk", "1 question", "1 problem")
        assert [row[-2:] for row in quality.rows] == [["", "1="], ["tie", "1="]]
        assert all(cell.endswith(" ± –") for row in quality.rows for cell in row[2:4] if cell)


def test_differences_ranks_and_ties():
    results = measured("tova", 8, 2e6, [3.0, 4.0, 5.0], [0, 1, 1])
    results += measured("window", 8, 1e6, [3.5, 4.6, 5.5], [0, 0, 1])
    results += measured("full", None, 9e6, [2.9, 3.9, 5.0], [1, 1, 1])
    overview, lm, retrieval, _ = report(results, "tova", "").tables
    assert overview.rows == [
        ["full", "9.00", "3.933", "", "100", "", "100", ""],
        ["tova:8", "2.00", "4.000", "1", "67", "1=", "67", "1="],
        ["window:8", "1.00", "4.533", "2", "33", "1=", "33", "1="],
    ]
    assert lm.rows == [
        ["tova:8", "4.000", "+0.067 ± 0.143", "", "", "1"],
        ["window:8", "4.533", "+0.600 ± 0.248", "+0.533 ± 0.143", "worse", "2"],
    ]
    assert retrieval.rows[1] == ["window:8", "33", "-67 ± 143", "-33 ± 143", "tie", "1="]
    figure = report(results, "tova", "").figures["table-lm.png"]
    assert [x for line in figure.lines.values() for x, _, _ in line] == [1.0, 2.0]


@pytest.mark.parametrize(("loss", "log_y"), [(3.1, True), (2.8, False)])
def test_losses_above_the_unbounded_model_are_drawn_on_a_logarithmic_axis(loss, log_y):
    results = measured("full", None, 9e6, [2.9], [1]) + measured("tova", 8, 2e6, [loss], [1])
    figure = report(results, "tova", "").figures["table-lm.png"]
    assert figure.log_y is log_y
    assert list(figure.horizontal_lines) == ([] if log_y else ["unbounded, 9.0 MB"])
    assert "9.0 MB" in figure.y_label + "".join(figure.horizontal_lines)
