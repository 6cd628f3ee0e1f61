"""No step waits for a result from the device."""

import copy

import pytest
import torch
from support.cell_strategies import OPERATORS
from support.no_synchronization import NoSynchronization
from support.tiny_models import random_tokens, tiny_cell


def test_synchronizing_operations_are_detected():
    x = torch.arange(3)
    for operation in (
        lambda: x.max().item(),
        lambda: x[x > 1],
        lambda: bool((x > 1).any()),
        lambda: x.nonzero(),
        lambda: x.equal(x + 0),
    ):
        with pytest.raises(AssertionError, match="waits"), NoSynchronization():
            operation()


@pytest.mark.parametrize("T", [2, 9], ids=["growing", "full"])
@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_no_step_waits_for_the_device(reduction, T):
    """The meta device stands for a device other than the CPU, because paths for the CPU may synchronize."""
    cell = tiny_cell()
    _, state = cell(random_tokens(1, 2, T), cell.initial_state(2, reduction))
    token, some = random_tokens(2, 2, 1)[:, 0], torch.tensor([True, False])
    meta_cell, meta_state = copy.deepcopy(cell).to("meta"), state.to("meta")
    for active in (None, some):
        expected, end = cell.step(token, state, active=active)
        meta_active = None if active is None else active.to("meta")
        for step, start in ((meta_cell.step, meta_state), (meta_cell.step_, meta_state.clone())):
            with NoSynchronization():
                logits, after = step(token.to("meta"), start, active=meta_active)
            assert logits.shape == expected.shape
            assert [H.keys.shape for H in after] == [H.keys.shape for H in end]
