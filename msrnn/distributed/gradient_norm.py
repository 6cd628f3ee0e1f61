"""The norm of all gradients of a split model, for clipping."""

from collections.abc import Iterable

import torch
from torch import nn

from .rank_part import RankPart


@torch.no_grad()
def clip_split_gradients_(rank_part: RankPart, named: Iterable[tuple[str, nn.Parameter]], max_norm: float) -> torch.Tensor:
    """Scale the gradients to a norm of at most ``max_norm`` over the whole model, as ``clip_grad_norm_`` of PyTorch does.

    All ranks have to call this. A parameter that several ranks hold counts once.

    Returns:
        The norm before clipping, the same on all ranks.
    """
    gradients, squares = [], []
    for name, x in named:
        if x.grad is None:
            continue
        place = rank_part.placement(name, x)
        holders = rank_part.ranks.size if place is None else place.bounds.count(place.bounds[rank_part.ranks.rank])
        gradients.append(x.grad)
        squares.append(torch.linalg.vector_norm(x.grad, dtype=torch.promote_types(x.dtype, torch.float32)).square() / holders)
    total = torch.stack(squares).sum() if squares else torch.zeros(())
    norm = rank_part.ranks.all_reduce_(total, "gradients").sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.dtype))
    return norm
