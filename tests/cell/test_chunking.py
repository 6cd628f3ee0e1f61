"""The chunk loop: chunks give the result of one unroll, and finished rows leave the batch."""

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell

from msrnn.cell import chunking
from msrnn.cell.chunking import ChunkReader
from msrnn.recurrence.records import LayerRecorder

LENGTHS = torch.tensor([11, 4, 0])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_TOKENS", 6)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("reduction", ["full", "tova:4", "h2o:4", "window:2"])
def test_chunks_equal_one_unroll(reduction, recorded):
    cell, text = tiny_cell(), random_tokens(1, 3, 11)
    start = cell.initial_state(3, reduction)
    active = torch.arange(11) < LENGTHS[:, None]
    expected, layers = cell.unroll(text, start, active)
    reader = ChunkReader(cell.unroll, text, LENGTHS, start, [LayerRecorder(), LayerRecorder()] if recorded else None)
    x = torch.zeros_like(expected)
    for chunk in reader:
        assert chunk.x.shape == (len(chunk.rows), chunk.stop - chunk.start, 24)
        assert chunk.active.equal(active[chunk.rows, chunk.start : chunk.stop])
        x[chunk.rows, chunk.start : chunk.stop] = chunk.x
    assert_close(x[active], expected[active], 1e-9)
    if not recorded:  # with recorders the states come from the trace
        assert_same(reader.final_state(), start.with_layers(layers), 1e-9)
        assert reader.final_state().clock.tolist() == LENGTHS.tolist()


def test_finished_rows_leave_the_batch():
    cell, text = tiny_cell(), random_tokens(1, 3, 11)
    chunks = list(ChunkReader(cell.unroll, text, LENGTHS, cell.initial_state(3, "tova:4")))
    assert [chunk.rows.tolist() for chunk in chunks] == [[0, 1], [0, 1], [0]]
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 3), (3, 6), (6, 11)]  # at most 6 tokens of all rows


def test_the_last_logits_of_rows_that_end_anywhere_in_a_chunk():
    cell, text = tiny_cell(), random_tokens(1, 3, 11)
    for n in range(12):
        lengths = torch.tensor([11, n, 3])
        every, _ = cell(text, lengths=lengths)
        last, _ = cell(text, lengths=lengths, last_only=True)
        assert_close(last, every[torch.arange(3), (lengths - 1).clamp(min=0)])


def test_recorded_rows_stay_in_the_batch():
    cell, text = tiny_cell(), random_tokens(1, 3, 11)
    recorders = [LayerRecorder(), LayerRecorder()]
    chunks = list(ChunkReader(cell.unroll, text, LENGTHS, cell.initial_state(3, "tova:4"), recorders))
    assert all(chunk.rows.tolist() == [0, 1, 2] for chunk in chunks)
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]


@pytest.mark.parametrize("T", [0, 5])
def test_state_after_no_tokens_is_a_copy(T):
    cell = tiny_cell()
    _, state = cell(random_tokens(2, 3, 9), cell.initial_state(3, "tova:4"))
    reader = ChunkReader(cell.unroll, random_tokens(1, 3, T), torch.zeros(3, dtype=torch.int64), state)
    assert list(reader) == []
    after = reader.final_state()
    assert_same(after, state)
    assert after[0].keys.data_ptr() != state[0].keys.data_ptr()
