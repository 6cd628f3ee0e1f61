"""Detection of operations that cannot be recorded: those that wait for the device, or that copy from or to the CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MASK_DTYPES = (torch.bool, torch.uint8)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
"""Operations with a result shape that depends on values only if an index is a mask."""
VALUE_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class RecordableOnly(TorchDispatchMode):
    """A context in which an operation that a CUDA graph cannot repeat raises RuntimeError, before it runs.

    These are operations with a result on the CPU, or a result shape, that depends on values on the device; and copies between
    the CPU and the device, which would read CPU memory that is not there any more. On the CPU only the former are found.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in INDEXING:
            waits = any(x.dtype in MASK_DTYPES for x in tree_leaves(args[1]) if isinstance(x, Tensor))
        else:
            waits = any(tag in func.tags for tag in VALUE_TAGS)
        if waits:
            raise RuntimeError(f"{name} waits for the device")
        result = func(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        devices = {x.device for x in (*inputs, *outputs)}
        if len(devices) > 1 and ("copy" in name or any(x.is_cpu and x.ndim for x in inputs)):
            raise RuntimeError(f"{name} copies between {' and '.join(sorted(map(str, devices)))}")
        return result
