"""Whole tensors and files of a model that may be split. Every rank makes the same calls, and rank 0 writes.

``rank_part`` is None in one process, which then does everything alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from ..errors import Error
from ..storage.atomic import atomic_dir
from ..storage.lazy_tensors import LazyTensor
from .rank_part import RankPart
from .ranks import Ranks
from .saving import WriteTensors, gather_lazily, write_together


def whole_tensor(rank_part: RankPart | None, name: str, x: Tensor) -> LazyTensor:
    """Return the whole of the parameter ``name``, or of a tensor with its shape, from the slice ``x`` of this rank."""
    return LazyTensor.of(x) if rank_part is None else gather_lazily(rank_part.ranks, x.detach(), rank_part.placement(name, x))


def write_whole(rank_part: RankPart | None, tensors: Mapping[str, LazyTensor], write: WriteTensors) -> None:
    """Call ``write`` with whole tensors on rank 0 (:func:`.saving.write_together`)."""
    if rank_part is None:
        write(tensors)
    else:
        write_together(rank_part.ranks, tensors, write)


@contextmanager
def errors_together(ranks: Ranks | None) -> Iterator[None]:
    """Raise an :class:`~msrnn.Error` of the block on every rank if one rank has it (:meth:`.Ranks.raise_together`)."""
    error: Error | None = None
    try:
        yield
    except Error as found:
        error = found
    if ranks is not None:
        ranks.raise_together(error)
    elif error is not None:
        raise error


@contextmanager
def whole_folder(rank_part: RankPart | None, folder: str | Path) -> Iterator[Path]:
    """Yield the staging folder of :func:`~msrnn.storage.atomic.atomic_dir` on rank 0, and ``folder`` on the others.

    Raises:
        Error: as ``atomic_dir`` on rank 0; it is raised on every rank.
    """
    ranks, staged = None if rank_part is None else rank_part.ranks, Path(folder)
    with ExitStack() as stack:
        with errors_together(ranks):
            if ranks is None or ranks.rank == 0:
                staged = stack.enter_context(atomic_dir(folder))
        yield staged
        with errors_together(ranks):
            stack.close()  # renames the folder
