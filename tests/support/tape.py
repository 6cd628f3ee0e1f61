"""A stand-in for a CUDA graph on the CPU: it records tensor operations with the tensors that they read and write."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Records every operation of the last call of a function, and repeats the operations without the function.

    As in a CUDA graph, the operations read and write the memory that they read and wrote when they were recorded. What Python
    code computes is fixed: numbers, branches, and which tensor an attribute refers to.
    """

    def __init__(self, device=None):
        super().__init__()
        self.operations = []

    def record(self, run):
        run()  # as the warm-up of a CUDA graph
        with self:
            run()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, recorded in self.operations:
            result = func(*args, **kwargs)
            for old, new in zip(_tensors(recorded), _tensors(result), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


def _tensors(x):
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)]


class NothingRecorded(Tape):
    """On the meta device tensors have no values, so there is nothing to repeat."""

    def replay(self):
        pass
