"""No step waits for a result from the device."""

import copy

import pytest
import torch
from support.cell_strategies import OPERATORS
from support.tiny_models import random_tokens, tiny_cell
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SYNCHRONIZING = {
    *("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"),
    *("masked_select", "unique", "_unique2", "allclose"),
}


class NoSynchronization(TorchDispatchMode):
    """Raises at every operation with a result, or a result shape, that the CPU has to get from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = [x for x in tree_leaves(args[1:]) if isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)]
        name = func.overloadpacket.__name__
        if name in SYNCHRONIZING or (name.startswith(("index", "_index_put")) and masks):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


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
