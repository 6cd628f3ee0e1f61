"""Cells and states that are split over the processes of a torch process group (:mod:`msrnn.distributed`)."""

from typing import Any, TypeVar

from ..cell.cell import Cell
from ..distributed.ranks import Ranks
from ..errors import Error
from ..state.fingerprint import Fingerprint
from ..state.loading import take_own_heads
from ..state.state import State
from ..storage.lazy_tensors import LazyTensor
from .loading import build_frozen, part_of_rank

T = TypeVar("T", Cell, State)


def distribute(whole: T, group: Any = None) -> T:
    """Return the part of a cell or of a state that this process holds. Every process of the group has to call this.

    The result has the class and the methods of the whole cell. Every process of the group has to call each method with the same
    arguments. Heads, MLP and vocabulary are split (:mod:`msrnn.distributed`). ``msrnn.load(folder, group=group)`` and
    ``converters.load`` read only the slices of a process.

    Args:
        whole: a cell with the same parameters on every rank, or a state of such a cell. It is not changed.
        group: a process group of ``torch.distributed``; None: all processes.

    Returns:
        A cell with copies of the slices, frozen or trainable as before; or a state with copies of the rows of this rank's
        heads. The argument itself for a group of one process.

    Raises:
        Error: ``torch.distributed`` is not initialized; numbers of heads, of MLP elements or of ids that do not fit the number
            of ranks; a model of another kind; parameters that differ between the ranks; adapters; an argument that is split
            already.
    """
    if not isinstance(whole, Cell | State):
        raise Error(f"distribute: found {type(whole).__name__}; expected a cell or a state")
    ranks = Ranks.of(group)
    if isinstance(whole, State):
        return take_own_heads(whole, ranks)
    if whole.rank_part is not None:
        raise Error("distribute: the cell is split already; expected a whole cell")
    if whole.adapters:
        raise Error("distribute: the cell has adapters; expected a plain cell (load the adapter after the split)")
    rank_part = part_of_rank(whole.config, ranks)
    known = [x.detach() for x in whole.identifying_tensors]  # the fingerprint of a trainable cell has no values
    ranks.check_same("model", Fingerprint.of(whole.signature, known).digest())
    if rank_part is None:
        return whole
    tensors = {name: LazyTensor.of(x) for name, x in whole.state_dict().items()}
    cell = build_frozen(whole.config, tensors, device=whole.device, rank_part=rank_part).train(whole.training)
    trainable = {name for name, x in whole.named_parameters() if x.requires_grad}
    for name, x in cell.named_parameters():
        x.requires_grad_(name in trainable)
    cell.extra_files = dict(whole.extra_files)
    return cell
