"""Runs, tables and page of the variants; the tasks copy and reverse."""

import json
from dataclasses import replace

import pytest
import torch
from matplotlib.image import imread
from support.training import DECODER, train_config, words
from torch.nn.functional import cross_entropy

import msrnn
from msrnn.cli import variants as command
from msrnn.cli.main import main
from msrnn.models.registry import build_random
from msrnn.reporting.sweep import Sweep
from msrnn.train import tasks, variants
from msrnn.train.report import CAPTIONS, report, spread
from msrnn.train.trainer import Diverged, Trainer
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
    Variant,
    measure,
    run_all,
    run_key,
)


def cell(**fields):
    torch.manual_seed(0)
    return build_random(train_config(model={**DECODER, "dropout": 0.0, **fields}).model_config(tasks.SYMBOLS + 1)).double()


def test_episode_targets_are_the_first_chunk_in_order_or_reversed():
    for task in tasks.TASKS:
        first, second, answer = tasks.episodes(task, 5, 7, torch.Generator().manual_seed(1))
        assert first.shape == second.shape == answer.shape == (7, 5)
        assert torch.equal(answer, first if task == "copy" else first.flip(1))
        assert (second[:, 0] == tasks.MARKER).all()
        assert torch.equal(second[:, 1:], answer[:, :-1])
    assert set(tasks.episodes("copy", 50, 50, torch.Generator())[0].unique().tolist()) == set(range(tasks.SYMBOLS))


@pytest.mark.parametrize("fields", [{}, {"memory_tokens": 2}, {"memory_tokens": 2, "recurrent": True}])
def test_gradients_flow_through_both_chunks(fields):
    """Compares with the step loop; a recurrent memory is the only state that is carried between the chunks."""
    network = cell(**fields)
    first, second, answer = tasks.episodes("copy", 5, 3, torch.Generator().manual_seed(1))
    loss = tasks.episode_loss(network, first, second, answer, "window:4")
    state, losses = network.initial_state(3, "window:4"), []
    for token in first.T:
        _, state = network.step(token, state)
    if fields.get("recurrent"):
        state = network.next_segment(state)
    for token, target in zip(second.T, answer.T, strict=True):
        logits, state = network.step(token, state)
        losses.append(cross_entropy(logits, target))
    found, expected = (torch.autograd.grad(x, [*network.parameters()]) for x in (loss, torch.stack(losses).mean()))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(found, expected, strict=True))
    assert min(float(x.abs().max()) for x in found) > 0


def test_accuracy_is_the_fraction_of_correct_symbols(monkeypatch):
    network = cell()
    for off, expected in ((0, 1.0), (1, 0.0)):

        def one_hot(_, first, second, reduction, off=off):
            return torch.nn.functional.one_hot((first.flip(1) + off) % tasks.SYMBOLS, 11).double()

        monkeypatch.setattr(tasks, "second_logits", one_hot)
        assert tasks.accuracy(network, "reverse", 5, "full") == expected
    monkeypatch.undo()
    assert 0 <= tasks.accuracy(network.train(), "copy", 5, "full") < 0.4
    assert network.training


def test_accuracy_is_measured_on_episodes_of_a_seed_that_no_run_has(monkeypatch):
    seeds, episodes = [], tasks.episodes
    monkeypatch.setattr(tasks, "episodes", lambda *args: seeds.append(args[-1].initial_seed()) or episodes(*args))
    assert tasks.accuracy(cell(), "copy", 5, "full") == tasks.accuracy(cell(), "copy", 5, "full")
    assert seeds[0] == seeds[1]
    assert seeds[0] not in range(1000)


def test_variants_of_a_table_have_equal_parameters_steps_and_tokens():
    sizes = {
        name: sum(x.numel() for x in build_random(v.config.model_config(11 if v.task else 256)).parameters())
        for name, v in VARIANTS.items()
    }
    for task in (False, True):
        some = [name for name, v in VARIANTS.items() if bool(v.task) is task]
        assert max(sizes[n] for n in some) < 1.012 * min(sizes[n] for n in some)
        same = {(c.steps, c.batch_size, c.chunk_length, c.lr, c.chunks_per_state) for c in (VARIANTS[n].config for n in some)}
        assert len(same) == 1
    assert len({run_key("", 0, v) for v in VARIANTS.values()}) == len(VARIANTS)  # all variants differ


SMALL = {
    "text": Variant(train_config(model=DECODER, steps=4, reduction="full"), ("full", "tova:6")),
    "task": Variant(
        train_config(model={**DECODER, "memory_tokens": 2, "recurrent": True}, steps=4, chunk_length=5), (), "copy"
    ),
}


def test_finished_runs_are_reused(tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "SEEDS", (0, 1))
    done = run_all(words(), tmp_path, 1, SMALL)
    for name, variant in SMALL.items():
        for seed in (0, 1):
            record = measure(variant, seed, words())
            kept = done[run_key(name, seed, variant)]
            assert kept["results"] == record["results"]
            assert [*map(tuple, kept["curve"])] == record["curve"]
    assert done[run_key("text", 0, SMALL["text"])]["results"] != done[run_key("text", 1, SMALL["text"])]["results"]
    assert list(done[run_key("text", 0, SMALL["text"])]["results"]) == ["full", "tova:6"]
    with monkeypatch.context() as patch:
        patch.setattr(variants, "multiprocessing", None)  # training would fail
        run_all(words(), tmp_path, 1, SMALL)
    with pytest.raises(msrnn.Error, match="contains a run with text"):
        run_all(words(seed=1), tmp_path, 1, SMALL)
    other = replace(SMALL["text"], config=replace(SMALL["text"].config, lr=0.1))
    assert run_key("text", 0, other) != run_key("text", 0, SMALL["text"])


def test_a_diverged_run_has_no_results(monkeypatch):
    optimizer_step = Trainer.optimizer_step

    def diverge(self, loss):
        if len(self.losses) == 2:
            raise Diverged("step 3: the loss is nan")
        return optimizer_step(self, loss)

    monkeypatch.setattr(Trainer, "optimizer_step", diverge)
    record = measure(SMALL["text"], 0, words())
    assert record["results"] == {}
    assert len(record["curve"]) == 2


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


def test_points_of_a_curve_are_means_at_the_last_step_of_their_span(monkeypatch):
    monkeypatch.setattr(variants, "POINTS", 4)
    single = measure(SMALL["text"], 0, words())["curve"]
    assert [step for step, _ in single] == [1, 2, 3, 4]
    monkeypatch.setattr(variants, "POINTS", 2)
    pairs = measure(SMALL["text"], 0, words())["curve"]
    losses = [loss for _, loss in single]
    assert pairs == [(2, pytest.approx(sum(losses[:2]) / 2)), (4, pytest.approx(sum(losses[2:]) / 2))]
    longer = replace(SMALL["text"], config=replace(SMALL["text"].config, steps=5))
    assert [step for step, _ in measure(longer, 0, words())["curve"]] == [2, 4]  # no point of fewer steps


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
