"""A soak reads the requested tokens, and a run that was killed anywhere resumes as if it had not been interrupted."""

import json
import os
import random
from dataclasses import asdict, replace

import pytest
import torch
from support.figures import record_figures
from support.interrupted_writes import interrupted_at_write
from support.tiny_models import assert_same, random_tokens, tiny_cell

import msrnn
from msrnn.diagnostics import soak as module
from msrnn.diagnostics.soak import RECORD, STATE, Interval, draw_soak, soak
from msrnn.storage.staging import PREFIX

CELL = tiny_cell()
OPERATORS = ["window:5", "sinks:7:2", "h2o:6", "h2o-layer:6:0", "tova:5", "tova-head:8"]


def final_state(folder):
    return msrnn.load_state(folder / STATE)


def reproducible(rows):
    """Return the fields that do not depend on time and memory."""
    return [(row.read, row.difference, row.near_ties, row.nbytes) for row in rows]


@pytest.mark.parametrize("reduction", OPERATORS)
def test_text_is_repeated(reduction, tmp_path):
    text = random_tokens(0, 1, 37)[0]
    rows = soak(CELL, tmp_path, 100, reduction, text=text, interval=32)
    assert [row.read for row in rows] == [32, 64, 96, 100]
    assert all(row.difference < 1e-8 and row.near_ties == 0 and row.unroll_ms > 0 and row.step_ms > 0 for row in rows)
    assert len({row.nbytes for row in rows}) == 1
    _, expected = CELL(text.repeat(3)[None, :100], CELL.initial_state(1, reduction))
    assert_same(final_state(tmp_path), expected, 1e-8)
    assert json.loads((tmp_path / RECORD).read_text())["intervals"] == [asdict(row) for row in rows]
    assert sorted(os.listdir(tmp_path)) == [RECORD, STATE]


def test_random_ids_depend_on_seed_and_clock_only(tmp_path):
    for name, n_tokens, seed in (("a", 40, 1), ("a", 70, 1), ("b", 70, 1), ("c", 70, 2)):
        soak(CELL, tmp_path / name, n_tokens, "tova:6", seed=seed, interval=32)
    assert_same(final_state(tmp_path / "a"), final_state(tmp_path / "b"), 1e-8)  # more tokens requested later: the same text
    assert not torch.equal(final_state(tmp_path / "b")[0].keys, final_state(tmp_path / "c")[0].keys)
    ids = torch.cat([module._ids(CELL, None, 1, 500, block) for block in range(20)])
    assert ids.bincount(minlength=50).min() > 130  # of 200 each


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(dtype, tmp_path):
    assert soak(tiny_cell(dtype=dtype), tmp_path, 60, "h2o:6", interval=20)[-1].read == 60


def test_run_stopped_before_any_file_resumes_as_if_uninterrupted(tmp_path):
    uninterrupted = soak(CELL, tmp_path / "whole", 160, "h2o:6", interval=32)
    for n in range(10):  # 5 records, 5 states
        with pytest.raises(KeyboardInterrupt), interrupted_at_write(n):
            soak(CELL, tmp_path / str(n), 160, "h2o:6", interval=32)
        (tmp_path / str(n) / f"{PREFIX}1.safetensors").touch()  # left by a killed process
        assert reproducible(soak(CELL, tmp_path / str(n), 160, "h2o:6", interval=32)) == reproducible(uninterrupted)
        assert_same(final_state(tmp_path / str(n)), final_state(tmp_path / "whole"))  # bit for bit
        assert sorted(os.listdir(tmp_path / str(n))) == [RECORD, STATE]


def test_time_of_an_interval_is_the_mean_over_all_its_tokens(monkeypatch):
    """40 tokens: 24 that are not compared take 6 seconds, 16 take 0.125 seconds each."""
    compare_step = module.compare_step

    def compared(cell, ids, state):
        found, state = compare_step(cell, ids, state)
        return replace(found, unroll_ms=125.0, step_ms=7.0, difference=1e-9, near_ties=3), state

    def unroll(cell, ids, state):
        return (cell(ids, state)[1], 0.25 * ids.shape[1]) if ids.shape[1] else (state, 0.0)

    monkeypatch.setattr(module, "compare_step", compared)
    monkeypatch.setattr(module, "_unroll", unroll)
    state, row = module._read(CELL, random_tokens(0, 1, 40), CELL.initial_state(1, "tova:6"), random.Random(0))
    assert row.unroll_ms == pytest.approx(1e3 * (24 * 0.25 + 16 * 0.125) / 40)
    assert (row.read, row.step_ms, row.difference, row.near_ties, row.nbytes) == (40, 7.0, 1e-9, 3, state.nbytes)


def test_other_text_is_refused(tmp_path):
    soak(CELL, tmp_path, 64, "tova:9", interval=32)
    with pytest.raises(msrnn.Error, match=r"contains a run with text 'random ids'; this one has '[0-9a-f]{16}'"):
        soak(CELL, tmp_path, 120, "tova:9", text=random_tokens(0, 1, 20)[0], interval=32)


def test_invalid_arguments_are_refused(tmp_path):
    for settings, message in (
        ({"reduction": ["tova:5", "full"]}, "reduction is full"),
        ({"reduction": None}, "reduction is full"),
        ({"n_tokens": 0}, "n_tokens is 0; expected an int of at least 1"),
        ({"interval": 0}, "interval is 0; expected an int of at least 1"),
        ({"text": torch.zeros(0).long()}, "T at least 1"),
        ({"text": random_tokens(0, 1, 5)}, r"shape \(1, 5\)"),
        ({"text": torch.tensor([3, 50])}, "ids from 3 to 50; expected 0 to 49"),
    ):
        with pytest.raises(msrnn.Error, match=message):
            soak(CELL, tmp_path, **{"n_tokens": 10, "reduction": "tova:5", **settings})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / RECORD).unlink(), "no record.json"),
        (lambda out: (out / RECORD).write_text("[]"), "JSON object"),
        (lambda out: (out / STATE).write_bytes(b"no"), "safetensors"),
        (lambda out: edit_record(out, lambda rows: rows.pop()), "no row for the 64 tokens"),
        (lambda out: edit_record(out, lambda rows: rows.clear()), "no row for the 64 tokens"),
        (lambda out: edit_record(out, lambda rows: rows[0].pop("read")), "incomplete"),
        (lambda out: edit_record(out, lambda rows: rows[0].update(colour="red")), "incomplete"),
        (lambda out: edit_record(out, lambda rows: rows[0].update(read="red")), "incomplete"),
    ],
)
def test_damaged_folder_is_refused(damage, message, tmp_path):
    soak(CELL, tmp_path, 64, "tova:5", interval=32)
    damage(tmp_path)
    with pytest.raises(msrnn.Error, match=message):
        soak(CELL, tmp_path, 96, "tova:5", interval=32)


def edit_record(out, edit):
    record = json.loads((out / RECORD).read_text())
    edit(record["intervals"])
    (out / RECORD).write_text(json.dumps(record))


def test_panels_show_time_and_memory_against_tokens_read(monkeypatch, tmp_path):
    figures = record_figures(monkeypatch)
    rows = [Interval(1000 * n, 3.0 + n, 30.0 + n, 0.0, 0, n * 10**6, n * 10**8) for n in (1, 2)]
    draw_soak(rows, tmp_path / "soak.png")
    time, process, state = figures[0].axes
    shown = {
        axes.get_ylabel(): {line.get_label(): [*map(list, line.get_data())] for line in axes.lines}
        for axes in (time, process, state)
    }
    assert shown == {
        "ms per token": {"step": [[1, 2], [31, 32]], "unroll": [[1, 2], [4, 5]]},
        "process, MB": {"process, resident (left)": [[1, 2], [100, 200]]},
        "H, MB": {"H (right)": [[1, 2], [1, 2]]},
    }
    assert process.get_xlabel() == "thousand tokens read"
