"""Preallocated rows: which state may claim the next row, and how many spare rows a buffer has."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.tiny_models import assert_same, random_tokens, tiny_cell

from msrnn.state.row_buffer import RowBuffer, copy_to_buffer, spare_rows


def buffer(rows: int, n_claimed: int) -> RowBuffer:
    return RowBuffer({"keys": torch.zeros(1, 2, rows, 6), "positions": torch.zeros(1, 2, rows).long()}, n_claimed)


def test_shared_buffer_grants_a_row_once():
    shared = buffer(rows=5, n_claimed=3)
    assert not shared.claim(2, shared=True)
    assert shared.claim(3, shared=True)
    assert not shared.claim(3, shared=True)
    assert shared.claim(4, shared=True)
    assert not shared.claim(4, shared=True)


def test_owned_buffer_grants_the_same_row_again():
    owned = buffer(rows=5, n_claimed=5)
    assert owned.claim(4, shared=False)
    assert owned.claim(4, shared=False)


@pytest.mark.parametrize("shared", [False, True])
def test_full_buffer_grants_no_row(shared):
    full = buffer(rows=5, n_claimed=5)
    assert not full.claim(5, shared=shared)


def test_inference_tensors_are_granted_in_inference_mode_only():
    with torch.inference_mode():
        made_inside = buffer(rows=5, n_claimed=3)
    assert not made_inside.claim(3, shared=True)
    with torch.inference_mode():
        assert made_inside.claim(3, shared=True)


def test_one_of_many_threads_gets_a_shared_row():
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            for _ in range(100):
                shared = buffer(rows=5, n_claimed=3)
                assert sum(threads.map(lambda _: shared.claim(3, shared=True), range(8))) == 1  # noqa: B023
    finally:
        sys.setswitchinterval(switch)


@pytest.mark.parametrize("reduction", ["full", "tova:4", ["full", "h2o:4"]])
def test_threads_that_step_from_one_state_get_their_own_rows(reduction):
    cell, text = tiny_cell(), random_tokens(8, 1, 17)
    _, state = cell(text, cell.initial_state(1, reduction))
    tokens = random_tokens(9, 8, 1)
    expected = [cell.step(token, state)[1] for token in tokens]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            for _ in range(25):
                _, state = cell(text, cell.initial_state(1, reduction))
                for found, wanted in zip(threads.map(lambda token: cell.step(token, state)[1], tokens), expected, strict=True):  # noqa: B023
                    assert_same(found, wanted, 1e-12)
    finally:
        sys.setswitchinterval(switch)


def test_row_of_shared_memory_is_not_granted():
    inherited = buffer(rows=5, n_claimed=3)
    inherited.rows["keys"].share_memory_()
    assert not inherited.claim(3, shared=True)
    assert not inherited.claim(3, shared=False)


@pytest.mark.parametrize(
    ("S", "capacity", "expected"),
    [(0, None, 1), (15, None, 1), (32, None, 3), (32, 64, 3), (63, 64, 2), (64, 64, 1), (4, 4, 1)],
)
def test_spare_rows_are_a_sixteenth_up_to_capacity_and_one(S, capacity, expected):
    assert spare_rows(S, capacity) == expected


def test_copy_to_buffer_concatenates_the_batches_and_leaves_spare_rows():
    parts = [{"keys": torch.randn(1, 2, 16, 6), "positions": torch.arange(32).view(1, 2, 16)} for _ in range(2)]
    copied = copy_to_buffer(parts, capacity=None)
    assert copied.rows["keys"].shape == (2, 2, 18, 6)
    for name, x in copied.prefix(16).items():
        assert x.equal(torch.cat([part[name] for part in parts]))


def test_unbounded_states_share_their_common_rows():
    """A pure step writes into the next spare row; a second step from the same state has to copy."""
    cell, text = tiny_cell(), random_tokens(8, 2, 43)
    _, state = cell.step(text[:, 40], cell(text[:, :40])[1])
    _, first = cell.step(text[:, 41], state)
    _, second = cell.step(text[:, 42], state)
    assert first[0].keys.data_ptr() == state[0].keys.data_ptr() != second[0].keys.data_ptr()
    _, third = cell.step_(text[:, 42], first)
    for found, ids in ((state, [40]), (second, [40, 42]), (third, [40, 41, 42])):
        assert_same(found, cell(text[:, [*range(40), *ids]])[1], 1e-9)
