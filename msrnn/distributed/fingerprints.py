"""A few numbers of a split model, which are the same on every rank and equal to those of the whole model."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .share import Share


def sample_values(share: Share, named: Iterable[tuple[str, Tensor]], count: int) -> list[Tensor]:
    """Return ``count`` values of each whole tensor at equal distances, float64 on the CPU. All ranks have to call this.

    Args:
        named: slices of this rank, or whole tensors, each with the name of its parameter or buffer.
    """
    own = [_own_values(share, name, x.detach(), count) for name, x in named]
    values = torch.cat(own).to(share.ranks.device)
    return list(share.ranks.all_reduce_(values, "fingerprints").cpu().split([len(x) for x in own]))


def _own_values(share: Share, name: str, x: Tensor, count: int) -> Tensor:
    """Return the values that this rank contributes, 0 for those of others."""
    place, rank = share.placement(name, x), share.ranks.rank
    if place is None:
        values = x.flatten()[:: max(1, x.numel() // count)][:count].cpu().double()
        return values if rank == 0 else torch.zeros_like(values)
    shape = list(x.shape)
    shape[place.dim] = place.size
    numel = math.prod(shape)
    index = torch.arange(numel, device="cpu")[:: max(1, numel // count)][:count]
    coordinates = list(torch.unravel_index(index, shape))
    start, stop = place.bounds[rank]
    along = coordinates[place.dim]
    coordinates[place.dim] = (along - start).clamp(0, max(0, stop - start - 1))
    owned = (along >= start) & (along < stop)
    for other in place.bounds[:rank]:  # an earlier rank may hold the same slice
        owned &= (along < other[0]) | (along >= other[1])
    found = x[tuple(i.to(x.device) for i in coordinates)].cpu().double()
    return torch.where(owned, found, 0.0)
