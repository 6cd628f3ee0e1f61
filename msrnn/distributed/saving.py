"""One file from tensors of which every rank holds a slice: rank 0 writes it, one tensor at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ..storage.lazy_tensors import LazyTensor
from ..storage.safetensors_io import write_order
from .placement import Placement
from .ranks import Ranks

WriteTensors = Callable[[Mapping[str, LazyTensor]], None]


def gathered(ranks: Ranks, x: Tensor, place: Placement | None) -> LazyTensor:
    """Return the whole tensor from slices. All ranks read it, rank 0 receives it. ``place`` None: ``x`` is the whole tensor."""
    if place is None:
        return LazyTensor.of(x)
    return LazyTensor(place.shape_of(tuple(x.shape), place.size), x.dtype, partial(_gather, ranks, x, place))


def _gather(ranks: Ranks, x: Tensor, place: Placement) -> Tensor:
    """Send the slices to rank 0, one after another so that only two are in memory besides the whole."""
    if ranks.rank:
        ranks.send(x, "saving")
        return x.new_empty(place.shape_of(tuple(x.shape), place.size), device="meta")
    whole = x.new_empty(place.shape_of(tuple(x.shape), place.size))
    place.put_(whole, x, 0)
    for rank in range(1, ranks.size):
        start, stop = place.bounds[rank]
        part = x.new_empty(place.shape_of(tuple(x.shape), stop - start))
        place.put_(whole, ranks.receive_(part, rank), rank)
    return whole


@dataclass
class _Once:
    """Reads a tensor once, so that the ranks stay in step although the writer may stop at an error."""

    x: LazyTensor
    is_read: bool = field(default=False)

    def __call__(self) -> Tensor:
        self.is_read = True
        return self.x.read()


def write_together(ranks: Ranks, tensors: Mapping[str, LazyTensor], write: WriteTensors) -> None:
    """Call ``write`` on rank 0 with ``tensors``, which the other ranks read with it. All ranks have to call this.

    Args:
        tensors: the same names in the same order on all ranks.
        write: reads each tensor once, in the order of :func:`~msrnn.storage.safetensors_io.write_order`, or raises.

    Raises:
        Error: ``write`` failed on rank 0; it is raised on every rank.
    """
    sent = {name: _Once(x) for name, x in tensors.items()}
    error: Exception | None = None
    if ranks.rank == 0:
        try:
            write({name: LazyTensor(x.shape, x.dtype, sent[name]) for name, x in tensors.items()})
        except Exception as found:  # the other ranks still send
            error = found
    for name in write_order(tensors):
        if not sent[name].is_read:
            sent[name]()
    ranks.raise_together(error)
