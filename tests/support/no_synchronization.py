"""A check that code does not wait for a result from the device."""

import torch
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
