"""The norm of all gradients of a split model, for clipping."""

from collections.abc import Iterable

import torch
from torch import nn

from .shard import Shard


@torch.no_grad()
def clip_split_gradients_(shard: Shard, named: Iterable[tuple[str, nn.Parameter]], max_norm: float) -> torch.Tensor:
    """Scale the gradients to a norm of at most ``max_norm`` over the whole model, as ``clip_grad_norm_`` of PyTorch does.

    All ranks have to call this. A parameter that several ranks hold counts once.

    Returns:
        The norm before clipping, the same on all ranks.
    """
    gradients, squares = [], []
    for name, x in named:
        if x.grad is None:
            continue
        place = shard.placement(name, x)
        holders = shard.ranks.size if place is None else place.bounds.count(place.bounds[shard.ranks.rank])
        gradients.append(x.grad)
        squares.append(torch.linalg.vector_norm(x.grad, dtype=torch.promote_types(x.dtype, torch.float32)).square() / holders)
    total = torch.stack(squares).sum() if squares else torch.zeros(())
    norm = shard.ranks.all_reduce_(total, "gradients").sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.dtype))
    return norm
