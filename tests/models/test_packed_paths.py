"""All paths of cells with packed weights: step loop, many tokens, ragged batches, decoding, saved states, purity.

Each is compared in float64 with a float cell that has the same numbers.
"""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import assert_unchanged, bounded_operators, copy_tensors, draw_bools, draw_text, examples
from support.packed_models import dequantised, every_packed_cell
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop

import msrnn
from msrnn import Full, Window

KINDS = ["int4", "int8", "packed"]
ROUNDING = 1e-8  # of float64, after a few dozen tokens


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """Cells that compute in float64, and float cells with the same numbers."""
    packed = every_packed_cell(tmp_path_factory.mktemp("exact"))
    return {kind: (cell, dequantised(cell)) for kind, cell in packed.items()}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Cells that compute in bfloat16, by the kernels of PyTorch if the CPU has them."""
    return every_packed_cell(tmp_path_factory.mktemp("half"), None)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@examples(12)
def test_every_path_agrees_with_the_float_cell(kind, exact, data):
    (cell, plain), B = exact[kind], data.draw(st.integers(1, 3))
    size = data.draw(st.integers(1, 7) | st.tuples(st.integers(1, 7), st.integers(1, 7)))
    reduction = data.draw(st.sampled_from([Full(), Window(0), *bounded_operators(size)]))
    text, more = draw_text(data.draw, B), draw_text(data.draw, B, 20)
    lengths = torch.tensor([data.draw(st.integers(0, text.shape[1])) for _ in range(B)])
    start, begin = cell.initial_state(B, reduction), plain.initial_state(B, reduction)
    before = copy_tensors(start)

    logits, state = cell(text, start, lengths=lengths)
    expected, end = plain(text, begin, lengths=lengths)
    stepped, loop = step_loop(cell, text, start, lengths)
    assert_close(logits, expected, ROUNDING)
    assert_close(logits, stepped, ROUNDING)
    assert_same(state, end, ROUNDING)
    assert_same(state, loop, ROUNDING)

    many, after = cell(more, state)  # on a state that is full for some sequences
    expected, end = step_loop(plain, more, end)
    assert_close(many, expected, ROUNDING)
    assert_same(after, end, ROUNDING)

    token, active = random_tokens(5, B, 1)[:, 0], draw_bools(data.draw, B)
    one, fork = cell.step(token, after, active=active)
    expected, other = plain.step(token, end, active=active)
    assert_close(one[active], expected[active], ROUNDING)
    assert_same(fork, other, ROUNDING)
    in_place = after.clone()
    assert_close(cell.step_(token, in_place, active=active)[0][active], one[active], ROUNDING)
    assert_same(in_place, fork, ROUNDING)
    assert_unchanged(start, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["full", "tova:6", "h2o:6", "window:5", "sinks:6:2", "keydiff:6"])
def test_decoding_methods_write_the_same_tokens(kind, reduction, exact):
    cell, plain = exact[kind]
    text, lengths = random_tokens(3, 3, 17), torch.tensor([17, 4, 11])
    limits = {"max_new_tokens": 24, "lengths": lengths}
    greedy = msrnn.generate(cell, text, cell.initial_state(3, reduction), **limits)
    expected = msrnn.generate(plain, text, plain.initial_state(3, reduction), **limits)
    assert greedy.tokens.tolist() == expected.tokens.tolist()
    for decode, settings in (
        (msrnn.jacobi, {"block": 5}),
        (msrnn.lookahead, {"guesses": "auto"}),
        (msrnn.lookahead, {"ngram": 4}),
    ):
        found = decode(cell, text, cell.initial_state(3, reduction), **settings, **limits)
        assert found.tokens.tolist() == greedy.tokens.tolist()
        assert retained_positions(found.state) == retained_positions(greedy.state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [None, "int8"])
@pytest.mark.parametrize("reduction", ["full", "tova:6"])
def test_save_load_continue(kind, rows, reduction, exact, half, tmp_path):
    for name, cell in (("exact", exact[kind][0]), ("half", half[kind])):
        _, state = cell(random_tokens(1, 2, 11), cell.initial_state(2, reduction, dtype=rows))
        cell.save(tmp_path / name)
        state.save(tmp_path / f"{name}-state")
        again, loaded = msrnn.load(tmp_path / name), msrnn.load_state(tmp_path / f"{name}-state")
        assert again.dtype == cell.dtype
        text = random_tokens(2, 2, 9)
        for token in text.T:
            logits, state = cell.step(token, state)
            found, loaded = again.step(token, loaded)
            assert torch.equal(found, logits)
        assert_same(loaded, state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["full", "tova:6", "h2o-layer:6"])
def test_branches_do_not_change_each_other(kind, reduction, half):
    cell = half[kind]
    _, root = cell(random_tokens(1, 2, 9), cell.initial_state(2, reduction))
    before = copy_tensors(root)
    branches = [cell(random_tokens(n, 2, 5), root) for n in (2, 3)]
    assert_unchanged(root, before)
    for n, (logits, state) in zip((2, 3), branches, strict=True):
        again, same = cell(random_tokens(n, 2, 5), root)  # undo: the old state is still there
        assert torch.equal(again, logits)
        assert_same(state, same)
    one, other = (state.select([0]) for _, state in branches)
    joined = msrnn.State.cat([one, other])
    token = torch.tensor([7, 8])
    together, _ = cell.step(token, joined)
    alone = torch.cat([cell.step(token[n : n + 1], state)[0] for n, state in enumerate((one, other))])
    # in bfloat16 products of one row and of two round differently
    assert (together - alone).abs().max() < 0.05 * alone.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["full", "window:5", "tova:6"])
def test_bfloat16_paths_differ_by_rounding_only(kind, reduction, half, exact):
    """Kernels and dequantised products round differently; scores that differ by rounding may evict other rows."""
    cell, plain = half[kind], exact[kind][1]
    text = random_tokens(4, 2, 30)
    expected, _ = plain(text, plain.initial_state(2, reduction))
    many, _ = cell(text, cell.initial_state(2, reduction))
    stepped, _ = step_loop(cell, text, cell.initial_state(2, reduction))
    scale = expected.abs().mean()
    bound = 0.03 if reduction != "tova:6" else 0.5
    assert (many - expected).abs().mean() < bound * scale
    assert (stepped - expected).abs().mean() < bound * scale


@pytest.mark.parametrize("kind", KINDS)
def test_cells_after_changes(kind, exact, half, tmp_path):
    text = random_tokens(4, 2, 12)
    cell, plain = exact[kind]
    expected = plain(text)[0]
    for change in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), torch.nn.DataParallel, lambda x: x.to("cpu")):
        assert_close(change(cell)(text)[0], expected, ROUNDING)
    wide = copy.deepcopy(half[kind]).to(torch.float32)
    wide.save(tmp_path / "wide")
    for again in (wide, msrnn.load(tmp_path / "wide"), msrnn.load(tmp_path / "wide", dtype=torch.float64)):
        assert (again(text)[0] - expected).abs().mean() < 0.02 * expected.abs().mean()  # norms were rounded to bfloat16
    halved = copy.deepcopy(cell).half()(text)[0]
    assert halved.dtype == torch.float16
    assert (halved - expected).abs().mean() < 0.02 * expected.abs().mean()
