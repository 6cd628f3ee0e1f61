"""Memory that an experiment needs, and the settings that a folder belongs to."""

import os

import pytest
import torch
from support.tiny_models import tiny_cell

import msrnn
from msrnn.diagnostics.state_memory import token_bytes
from msrnn.eval import inputs as module
from msrnn.eval.inputs import EvalInputs, total_memory
from msrnn.eval.texts import read_texts

CELL = tiny_cell()
ROW = token_bytes(CELL.initial_state(1, "full"))


@pytest.mark.parametrize(
    ("operators", "length", "rows"),
    [
        *[(["full"], 30, 30), (["tova:8"], 30, 8), (["tova:8", "all-layers:h2o:12", "window:4"], 30, 12)],
        *[(["tova:8", "full"], 30, 30), (["tova:50"], 30, 30)],
    ],
)
def test_the_largest_state_decides(operators, length, rows, monkeypatch):
    """A bounded state has no more rows than the text has tokens."""
    inputs = EvalInputs(lambda: None, lambda: CELL)
    monkeypatch.setattr(module, "total_memory", lambda device: 3 * rows * ROW)
    inputs.check_memory(3, operators, length)
    monkeypatch.setattr(module, "total_memory", lambda device: 3 * rows * ROW - 1)
    with pytest.raises(msrnn.Error, match=f"3 states of {rows} rows need .* GB; the machine has .* GB"):
        inputs.check_memory(3, operators, length)


@pytest.mark.parametrize(
    ("operator", "of_heads", "longest"),
    [("tova-head:8/4", 12, 8), ("tova-head:8/4,9/50", 12 + 9 + 30, 30), ("h2o:full/2", 32, 30), ("shared:h2o:8", 16, 8)],
)
def test_each_head_counts_with_its_own_size(operator, of_heads, longest, monkeypatch):
    """Of two heads per layer, and two layers with the same sizes unless the operator has others."""
    inputs, layers = EvalInputs(lambda: None, lambda: CELL), 1 if "," in operator else 2
    row_of_a_head = ROW // 4
    monkeypatch.setattr(module, "total_memory", lambda device: 3 * layers * of_heads * row_of_a_head)
    inputs.check_memory(3, [operator], 30)
    monkeypatch.setattr(module, "total_memory", lambda device: 3 * layers * of_heads * row_of_a_head - 1)
    with pytest.raises(msrnn.Error, match=f"3 states of {longest} rows need"):
        inputs.check_memory(3, [operator], 30)


def test_an_operator_that_does_not_fit_the_cell_is_refused():
    with pytest.raises(msrnn.Error, match="3 sizes for a layer of 2 key/value heads"):
        EvalInputs(lambda: None, lambda: CELL).check_memory(1, ["tova:8", "tova-head:8/4/6"], 30)


def test_memory_is_that_of_the_machine_or_of_the_gpu(monkeypatch):
    assert total_memory(torch.device("cpu")) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    properties = type("Properties", (), {"total_memory": 7})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert total_memory(torch.device("cuda")) == 7


def test_two_texts_of_one_name_are_refused(tmp_path):
    for name in ("book.md", "other.txt", "book.json"):
        (tmp_path / name).write_text(name)
    assert read_texts(tmp_path) == {"book": "book.md", "other": "other.txt"}
    (tmp_path / "book.txt").write_text("lost")
    with pytest.raises(msrnn.Error, match="has two texts with the name book; expected names that differ without the ending"):
        read_texts(tmp_path)


def test_model_and_tokenizer_are_loaded_once_and_only_when_used():
    loaded = []
    inputs = EvalInputs(lambda: loaded.append("tokenizer") or "t", lambda: loaded.append("cell") or CELL)
    assert loaded == []
    assert (inputs.tokenizer, inputs.tokenizer) == ("t", "t")
    assert inputs.cell is inputs.cell is CELL
    assert loaded == ["tokenizer", "cell"]


def test_a_folder_belongs_to_one_experiment_and_one_model(tmp_path):
    inputs = EvalInputs(lambda: None, lambda: CELL)
    inputs.sweep(tmp_path, "lm", chunk=8)
    inputs.sweep(tmp_path, "lm", chunk=8)
    for other, experiment, settings, message in (
        (CELL, "passkey", {"chunk": 8}, "experiment 'lm'"),
        (CELL, "lm", {"chunk": 9}, "chunk 8"),
        (tiny_cell(seed=1), "lm", {"chunk": 8}, "model '"),
    ):
        with pytest.raises(msrnn.Error, match=f"contains a run with {message}"):
            EvalInputs(lambda: None, lambda other=other: other).sweep(tmp_path, experiment, **settings)
