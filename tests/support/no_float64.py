"""An emulation of a device without float64, such as MPS, on the CPU."""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from msrnn.recurrence import operator_answers


class NoFloat64(TorchDispatchMode):
    """Refuses float64 results of operations on tensors of the device. ``x.cpu()`` gives tensors that are not on it."""

    def __init__(self):
        super().__init__()
        self.on_cpu = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        outputs = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        if inputs and all(x in self.on_cpu for x in inputs):
            self.on_cpu.update(dict.fromkeys(outputs, True))
        elif inputs and any(x.dtype == torch.float64 for x in outputs):
            raise TypeError(f"{func}: Cannot convert a MPS Tensor to float64 dtype")
        return result


@contextmanager
def device_without_float64():
    """Let all tensors be on such a device inside of the ``with`` block."""
    mode = NoFloat64()

    def cpu(x):
        copy = x.clone()
        mode.on_cpu[copy] = True
        return copy

    with patch.object(torch.Tensor, "cpu", cpu), patch.object(operator_answers, "DEVICES_WITHOUT_FLOAT64", ("cpu",)), mode:
        yield
