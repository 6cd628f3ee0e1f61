"""Sample values of the whole tensors of a split model, the same on every rank, for its fingerprint."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .rank_part import RankPart

NOT_OWNED = -0.0
"""What a rank adds to a value of another rank: the sum of -0.0 and x is x, also if x is -0.0. 0.0 would change its sign."""


def sample_values(rank_part: RankPart, named: Iterable[tuple[str, Tensor]], count: int) -> list[Tensor]:
    """Return values of the whole tensors, as :meth:`~msrnn.state.fingerprint.Fingerprint.of` takes them. Collective.

    Args:
        named: slices of this rank, or whole tensors, each with the name of its parameter or buffer.
        count: maximum number of values of each tensor, at equal distances in the order of memory.

    Returns:
        For each tensor, ``(count,)`` or fewer, float64 on the CPU.
    """
    own = [_own_values(rank_part, name, x.detach(), count) for name, x in named]
    values = torch.cat(own).to(rank_part.ranks.device)
    return list(rank_part.ranks.all_reduce_(values, "fingerprints").cpu().split([len(x) for x in own]))


def _own_values(rank_part: RankPart, name: str, x: Tensor, count: int) -> Tensor:
    """Return the values of this rank, and ``NOT_OWNED`` in place of those of the others, so that the sum has all of them."""
    place, rank = rank_part.placement(name, x), rank_part.ranks.rank
    if place is None:
        values = x.flatten()[:: max(1, x.numel() // count)][:count].cpu().double()
        return values if rank == 0 else torch.full_like(values, NOT_OWNED)
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
    return torch.where(owned, found, NOT_OWNED)
