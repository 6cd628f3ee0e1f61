"""Tables, figures and page of the variants."""

import json

import pytest
from matplotlib.image import imread
from support.training import words

from msrnn.cli import variants as command
from msrnn.cli.main import main
from msrnn.reporting.sweep import Sweep
from msrnn.train import tasks
from msrnn.train.report import CAPTIONS, report, spread
from msrnn.train.variants import (
    BASE,
    BOUNDED,
    EVAL_REDUCTIONS,
    LEARNED_ROWS,
    MEMORIES,
    NORMS,
    SEEDS,
    TRAIN_REDUCTIONS,
    VARIANTS,
    run_key,
)


def finished(folder):
    """Return a sweep of untrained runs with known results; one run has diverged."""
    sweep = Sweep(folder, {"text": "x"})
    for i, (name, variant) in enumerate(VARIANTS.items()):
        for seed in SEEDS:
            keys = [variant.task] if variant.task else variant.eval_reductions
            results = {
                key: (i + seed) / 10 + 10 * EVAL_REDUCTIONS.index(key) if key in EVAL_REDUCTIONS else (i + seed) / 10
                for key in keys
            }
            if name == f"trained {TRAIN_REDUCTIONS[0]}" and seed == 1:
                results = {}
            curve = [[10, 3.0 + seed + i], [20, 2.0 + seed + i]]
            sweep[run_key(name, seed, variant)] = {"parameters": 1000 + i, "curve": curve, "results": results, "seconds": 1.0}
    return sweep


def test_every_cell_is_the_result_of_its_row_under_the_operator_of_its_column(tmp_path):
    norms, learned, trained, answered = report(finished(tmp_path)).tables

    def shown(name, key):
        return f"{([*VARIANTS].index(name) + 1) / 10 + 10 * EVAL_REDUCTIONS.index(key):.3f} ± 0.100"

    columns = (("warm-up", "full"), ("warm-up", BOUNDED), ("no warm-up", "full"), ("no warm-up", BOUNDED))
    assert list(norms.columns[2:]) == [
        f"{warmup.removesuffix(' warm-up').replace('no', 'none')}, {key}" for warmup, key in columns
    ]
    for row in norms.rows:
        assert row[2:] == [shown(f"{row[0]}, {warmup}", key) for warmup, key in columns]
    assert list(learned.columns[2:]) == ["full", BOUNDED]
    for row in learned.rows:
        assert row[2:] == [shown(BASE if row[0] == "plain" else row[0], key) for key in learned.columns[2:]]
    assert tuple(trained.columns[1:]) == EVAL_REDUCTIONS
    for row in trained.rows[2:]:  # without the diverged run
        assert row[1:] == [shown(row[0], key) for key in EVAL_REDUCTIONS]
    assert tuple(answered.columns[2:]) == tasks.TASKS
    for row in answered.rows:
        indices = [[*VARIANTS].index(f"{task}, {row[0]}") for task in tasks.TASKS]
        assert row[1] == f"{1000 + indices[0]:,}"
        assert row[2:] == [f"{10 * (i + 1):.1f} ± 10.0" for i in indices]
    assert "Correct symbols of 8, in %; a random guess gives 10." in answered.note


def test_every_dot_is_the_result_of_its_line_under_the_key_of_its_series(tmp_path):
    figures = report(finished(tmp_path)).figures
    bounded = {"full": "full", BOUNDED: BOUNDED}
    expected = {
        "norms.png": {w: ("full", {name: f"{name}, {w}" for name in NORMS}) for w in ("warm-up", "no warm-up")},
        "learned.png": {s: (key, {"plain": BASE, **{x: x for x in LEARNED_ROWS}}) for s, key in bounded.items()},
        "trained.png": {
            key: (key, {"trained full": BASE, **{f"trained {x}": f"trained {x}" for x in TRAIN_REDUCTIONS}})
            for key in EVAL_REDUCTIONS
        },
        "tasks.png": {task: (task, {name: f"{task}, {name}" for name in MEMORIES}) for task in tasks.TASKS},
    }
    assert figures.keys() == expected.keys() == CAPTIONS.keys()
    for file, series in expected.items():
        assert figures[file].series.keys() == series.keys()
        for name, (key, lines) in series.items():
            assert figures[file].series[name].keys() == lines.keys()
            for line, run in lines.items():
                if run == f"trained {TRAIN_REDUCTIONS[0]}":
                    continue  # one of its seeds has diverged
                factor = 100 if file == "tasks.png" else 1
                shift = 0 if file == "tasks.png" else 10 * EVAL_REDUCTIONS.index(key)
                value = ([*VARIANTS].index(run) + 1) / 10 + shift
                assert figures[file].series[name][line] == pytest.approx((factor * value, factor / 10)), (file, name, line)
    diverged = figures["trained.png"].series["full"][f"trained {TRAIN_REDUCTIONS[0]}"]
    i = [*VARIANTS].index(f"trained {TRAIN_REDUCTIONS[0]}")
    assert diverged == pytest.approx(((i + 1) / 10, 0.2 / 2**0.5))  # of the seeds 0 and 2


def test_tables_contain_mean_and_spread(tmp_path):
    found = report(finished(tmp_path))
    norms, learned, trained, answered = found.tables
    assert norms.rows[2][:3] == ["PreNorm, RMSNorm", "1,000", "0.100 ± 0.100"]
    assert learned.rows[0][:3] == ["plain", "1,000", "0.100 ± 0.100"]
    assert trained.rows[0][:2] == ["trained full", "0.100 ± 0.100"]
    assert all("1 of 3 diverged" in cell for cell in trained.rows[1][1:])
    i = [*VARIANTS].index("copy, window:8")
    assert answered.rows[1][2] == f"{10 * (i + 1):.1f} ± 10.0"
    assert "bits per byte" in found.figures["learned.png"].x_label
    assert found.figures["tasks.png"].x_label == "correct symbols of 8, %"
    assert spread([None, None, None]) == "3 of 3 diverged"


def test_tables_and_figures_are_inserted_into_the_page(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text(words(), "utf-8")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin of tables -->\nold\n<!-- end of tables -->\nafter\n")
    monkeypatch.setattr(command, "run_all", lambda text, out, workers: finished(out))
    arguments = ["variants", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"), "--chapter", str(page)]
    assert main(arguments) == 0
    once = page.read_text()
    assert once.startswith("before\n<!-- begin of tables -->\n")
    assert once.endswith("<!-- end of tables -->\nafter\n")
    assert "**Copy and reverse**" in once
    assert "old" not in once
    assert once.count("![") == 4
    for name, caption in CAPTIONS.items():
        assert f"![{caption}](page-{name})" in once
        assert min(imread(tmp_path / f"page-{name}").shape[:2]) > 200
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())) == len(VARIANTS) * len(SEEDS)
    command.publish(tmp_path / "out", page)
    assert page.read_text() == once
    page.write_text("no place")
    capsys.readouterr()
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("msrnn: --chapter has no place for the tables")
    assert main(["variants", str(tmp_path / "nowhere.txt"), "--out", str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err.startswith("msrnn: cannot read")
