"""The many-token path equals the step loop for every length of chunks and blocks (random cells: tests/cell/test_cell.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from support.operator_paths import assert_paths_agree
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell

import converters
import msrnn
from msrnn import TOVA, Reduction
from msrnn.recurrence import unroll

OPERATORS = ["full", "window:0", "window:5", "sinks:6:2", "h2o:6", "h2o-layer:6", "h2o:7:0", "tova:5", "tova-head:5"]


@dataclass(frozen=True)
class Spread(Reduction):
    """A user-defined operator without weights: the row closest to an older neighbour is evicted."""

    needs_weights: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, seen):
        older = seen.positions[..., None] - seen.positions[..., None, :]  # (B, K, R, R)
        older = older.masked_fill((older <= 0) | (seen.positions < 0)[..., None, :], 10**6)
        return older.amin(-1)[:, :1].double()


@dataclass(frozen=True)
class Popular(Reduction):
    """An additive user-defined operator: the row with the fewest maxima of attention is evicted; age counts a little."""

    stat_names: ClassVar[tuple[str, ...]] = ("wins", "age")
    update_is_additive: ClassVar[bool] = True
    depends_on_row_layout: ClassVar[bool] = False

    def update(self, seen):
        best = (seen.weights == seen.weights.amax(-1, keepdim=True)).to(seen.weights.dtype).mean(2)
        return {"wins": seen.row_stats["wins"] + best, "age": seen.row_stats["age"] + 1}

    def score(self, seen):
        return seen.row_stats["wins"] - 0.1 * seen.row_stats["age"]


@dataclass(frozen=True)
class AllProtected(Reduction):
    """All rows score +inf, so the oldest is evicted."""

    def score(self, seen):
        return torch.full_like(seen.weights.mean(2), torch.inf)


@pytest.mark.parametrize(("chunk", "block"), [(1, 64), (9, 2), (24, 3), (63, 64), (300, 5), (1024, 16)])
@pytest.mark.parametrize("reduction", [*OPERATORS, Spread(5), Popular(5), AllProtected(4)], ids=str)
def test_chunks_and_blocks_do_not_change_the_result(reduction, chunk, block, monkeypatch):
    monkeypatch.setattr("msrnn.cell.chunking.CHUNK_TOKENS", chunk)
    monkeypatch.setattr(unroll, "BLOCK", block)
    monkeypatch.setattr(unroll, "WEIGHT_FREE_BLOCK", block + 1)
    monkeypatch.setattr("msrnn.cell.layer.MLP_CHUNK_TOKENS", block)
    cell, text = tiny_cell(), random_tokens(5, 3, 21)
    lengths = torch.tensor([21, 8, 0])
    assert_paths_agree(reduction, cell, text, lengths)
    expected, _ = step_loop(cell, text, cell.initial_state(3, reduction), lengths)
    last, _ = cell(text, cell.initial_state(3, reduction), lengths=lengths, last_only=True)
    assert_close(last[:2], torch.stack((expected[0, 20], expected[1, 7])), 1e-8)
    assert last[2].isnan().all()


@pytest.mark.parametrize("reduction", ["tova:4", "h2o:5", "window:4", "full", Popular(4)], ids=str)
@pytest.mark.parametrize("lengths", [None, torch.tensor([13, 0, 6])], ids=["equal", "ragged"])
def test_gradients_are_those_of_the_step_loop(reduction, lengths, monkeypatch):
    """Gradients flow through rows that were carried, appended and attended to; evictions are not differentiated."""
    monkeypatch.setattr(unroll, "BLOCK", 4)
    monkeypatch.setattr("msrnn.cell.chunking.CHUNK_TOKENS", 24)
    cell, text = tiny_cell(frozen=False), random_tokens(5, 3, 13)
    weight = torch.randn(3, 13, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradients(read):
        cell.zero_grad()
        logits, state = read(cell.initial_state(3, reduction))
        loss = (logits.nan_to_num() * weight).sum()
        for H in state:  # empty rows are arbitrary
            loss = loss + (H.values.square() + H.keys).masked_fill(H.empty[..., None], 0).sum()
        loss.backward()
        return {name: x.grad.clone() for name, x in cell.named_parameters()}

    folded = gradients(lambda state: cell(text, state, lengths=lengths))
    stepped = gradients(lambda state: step_loop(cell, text, state, lengths))
    for name, x in folded.items():
        assert_close(x, stepped[name], 1e-8)


@pytest.mark.parametrize("reduction", ["tova:5", "h2o:5", "window:5"])
def test_chunks_reuse_the_storage_of_the_call_but_not_of_the_input(reduction, monkeypatch):
    monkeypatch.setattr("msrnn.cell.chunking.CHUNK_TOKENS", 4)
    cell, text, places = tiny_cell(), random_tokens(5, 1, 24), []
    _, given = cell(text[:, :8], cell.initial_state(1, reduction))  # a full cache, sorted
    before, layer = given.clone(), type(cell.layers[0]).unroll

    def watched(self, x, H, **arguments):
        x, after = layer(self, x, H, **arguments)
        places.append((after.keys.data_ptr(), after.values.data_ptr()))
        return x, after

    monkeypatch.setattr(type(cell.layers[0]), "unroll", watched)
    _, end = cell(text[:, 8:], given)
    assert_same(given, before, 0)
    first = places[: cell.config.n_layers]
    assert places == first * 4
    assert not {H.keys.data_ptr() for H in given} & {keys for keys, _ in first}
    monkeypatch.undo()
    assert_same(end, step_loop(cell, text, cell.initial_state(1, reduction))[1], 1e-8)


def test_finished_rows_leave_the_batch(monkeypatch):
    """The layers run without the rows of a ragged batch that have ended."""
    monkeypatch.setattr("msrnn.cell.chunking.CHUNK_TOKENS", 8)
    monkeypatch.setattr(unroll, "BLOCK", 8)
    cell, text, passed = tiny_cell(), random_tokens(5, 4, 40), []
    layer = type(cell.layers[0]).unroll
    monkeypatch.setattr(
        type(cell.layers[0]), "unroll", lambda s, x, *a, **k: passed.append(x[..., 0].numel()) or layer(s, x, *a, **k)
    )
    lengths = torch.tensor([40, 2, 9, 4])
    cell(text, cell.initial_state(4, "tova:5"), lengths=lengths)
    assert sum(passed) / cell.config.n_layers < 1.3 * lengths.sum()


def test_rows_with_tiny_weights_are_exact():
    """Logits differ by about a thousand. A row that earlier queries ignored may receive all attention later."""
    cell, text = tiny_cell(), random_tokens(5, 2, 30)
    for layer in cell.layers:
        layer.q.weight.mul_(40)
    for reduction in ("tova:8", "h2o:8", "tova-head:8"):
        logits, state = cell(text, cell.initial_state(2, reduction))
        expected, end = step_loop(cell, text, cell.initial_state(2, reduction))
        assert_close(logits, expected, 1e-8)
        assert_same(state, end, 1e-8)


def test_memory_is_linear_in_the_length(monkeypatch):
    """The largest attention matrix has block × (size + block) weights per head."""
    seen = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, *a, **k: seen.append(x.numel()) or softmax(x, *a, **k))
    monkeypatch.setattr(unroll, "BLOCK", 4)
    cell = tiny_cell()
    cell(random_tokens(1, 1, 40), cell.initial_state(1, "tova:6"))
    assert max(seen) <= cell.config.n_heads * 4 * (6 + 4)


@pytest.mark.parametrize("reduction", ["tova:32", "h2o:32"])
def test_real_weights_in_float32(reduction, smollm, gguf_path, figure):
    """All positions are equal; near-ties do not occur in this text. Rows are evicted in both blocks of the unroll."""
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = torch.tensor([converters.tokenizer(gguf_path).encode(text).ids[:100]])
    folded, state = smollm(ids, smollm.initial_state(1, reduction))
    by_step, end = step_loop(smollm, ids, smollm.initial_state(1, reduction))
    off = sum(
        sorted(H.positions[0, k].tolist()) != sorted(G.positions[0, k].tolist())
        for H, G in zip(state, end, strict=True)
        for k in range(H.positions.shape[1])
    )
    gap = (folded - by_step).abs().mean().item()
    figure(
        f"{gap:.1e} mean |difference| of logits, unroll and step loop: SmolLM2-135M, {reduction}, 100 tokens; {off} heads off"
    )
    assert off == 0
    assert gap <= 1e-4


@pytest.mark.parametrize("stored", [1, 3])
def test_an_operator_that_needs_keys_gets_copies_of_bounded_size(stored, monkeypatch):
    """The keys of a block are copied for each of its tokens, so the block has few tokens if the state has many rows."""
    cell, text, seen = tiny_cell(), random_tokens(0, 2, 40), []
    _, state = cell(text[:, :24], cell.initial_state(2, "keydiff:20"))
    expected, end = step_loop(cell, text[:, 24:], state)
    score = msrnn.KeyDiff.score
    monkeypatch.setattr(msrnn.KeyDiff, "score", lambda self, x: seen.append(x.keys.shape) or score(self, x))
    monkeypatch.setattr(unroll, "MAX_COPIED_ELEMENTS", stored * state[0].keys.numel())
    found, after = cell(text[:, 24:], state)
    assert_close(found, expected)
    assert_same(after, end, 1e-9)
    assert max(shape[0] for shape in seen) == 2 * stored  # the batch, for each token of the block
    assert max(shape[2] for shape in seen) == 20 + stored


def test_subclass_of_an_operator_without_positions_receives_positions():
    @dataclass(frozen=True)
    class Scaled(TOVA):
        def score(self, seen):
            held = (seen.positions >= 0).sum(-1, keepdim=True)
            return super().score(seen) * (1 + (seen.positions * 7 + held) % 5)[:, :1]

    assert_paths_agree(Scaled(5), text=random_tokens(7, 2, 30), lengths=None)


@pytest.mark.parametrize("reduction", ["full", "window:4", "tova:4", "h2o:5", "keydiff:4"])
@pytest.mark.parametrize("remapping", ["absolute", "inside"])
def test_tokens_that_are_not_read_take_no_position(reduction, remapping):
    """A mask with gaps: each token is rotated and stored at the number of tokens read before it, as in the step loop."""
    cell, text = tiny_cell(), random_tokens(5, 2, 14)
    active = torch.rand(2, 14, generator=torch.Generator().manual_seed(0)) < 0.6
    start = cell.initial_state(2, reduction, places=remapping)
    expected, logits = start, []
    for t in range(14):
        read, expected = cell.step(text[:, t], expected, active=active[:, t])
        logits.append(read)
    x, layers = cell.unroll(text, start, active)
    assert_same(start.with_layers(layers), expected, 1e-9)
    assert_close(cell.compute_logits(x)[active], torch.stack(logits, 1)[active], 1e-9)
