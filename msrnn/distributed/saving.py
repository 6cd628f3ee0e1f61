"""Write one file from tensors that are split over the ranks: rank 0 writes it, one tensor at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ..storage.lazy_tensors import LazyTensor
from ..storage.safetensors_io import write_order
from .placement import Placement
from .ranks import Ranks

WriteTensors = Callable[[Mapping[str, LazyTensor]], None]


def gather_lazily(ranks: Ranks, x: Tensor, place: Placement | None) -> LazyTensor:
    """Return the whole tensor as one that is read later. All ranks have to read it; only rank 0 receives the values.

    Args:
        x: the slice of this rank, or the whole tensor if ``place`` is None.
        place: the slices of all ranks.
    """
    if place is None:
        return LazyTensor.of(x)
    return LazyTensor(place.shape_of(tuple(x.shape), place.size), x.dtype, partial(_gather, ranks, x, place))


def _gather(ranks: Ranks, x: Tensor, place: Placement) -> Tensor:
    """Send the slices to rank 0 one after another, so that it holds one slice of another rank at a time."""
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
class _Sent:
    """The tensors of all ranks. Every rank reads each of them once and in the same order, also if the writer stops at an error.

    Attributes:
        begun: True after the ranks have agreed that the writer is ready for the first tensor.
        unread: names of the tensors that are still to be read.
    """

    ranks: Ranks
    tensors: Mapping[str, LazyTensor]
    begun: bool = False
    unread: set[str] = field(default_factory=set)

    def begin(self, error: Exception | None = None) -> None:
        """Wait until the writer reads its first tensor, or raise its error on every rank. Later calls do nothing."""
        if not self.begun:
            self.begun, self.unread = True, set(self.tensors)
            self.ranks.raise_together(error)

    def read(self, name: str) -> Tensor:
        """Return a tensor, as :func:`gather_lazily` does."""
        self.begin()
        self.unread.remove(name)
        return self.tensors[name].read()


def write_together(ranks: Ranks, tensors: Mapping[str, LazyTensor], write: WriteTensors) -> None:
    """Call ``write`` on rank 0. The other ranks read each tensor when it does. All ranks have to call this.

    Args:
        tensors: the same names in the same order on all ranks.
        write: reads each tensor once, in the order of :func:`~msrnn.storage.safetensors_io.write_order`, or raises. If it
            raises before the first one, such as for a path that cannot be written to, nothing is sent.

    Raises:
        Error: ``write`` failed on rank 0; it is raised on every rank.
    """
    sent = _Sent(ranks, tensors)
    error: Exception | None = None
    if ranks.rank == 0:
        try:
            write({name: LazyTensor(x.shape, x.dtype, partial(sent.read, name)) for name, x in tensors.items()})
        except Exception as found:  # the other ranks still send
            error = found
    sent.begin(error)
    for name in write_order(tensors):
        if name in sent.unread:
            sent.read(name)
    ranks.raise_together(error)
