"""A head that a checkpoint stores although its config ties it to the embedding."""

from dataclasses import replace

import torch
from torch import Tensor

from msrnn import Error
from msrnn.storage.lazy_tensors import LazyTensor


def compare_with_head(embed: LazyTensor, head: LazyTensor, config: str, name: str) -> LazyTensor:
    """Return the embedding, which is compared with the stored head when it is read.

    Args:
        embed: the embedding, ``(V, E)``.
        head: the stored head.
        config: the file that ties them, for the message.
        name: the name of the head in the format, for the message.

    Raises:
        Error: by ``read`` of the result, if the two differ.
    """

    def load() -> Tensor:
        x = embed.read()
        if head.shape != embed.shape or not torch.equal(x, head.read()):
            raise Error(f"{config} ties the head to the embedding, but {name!r} differs from it; expected equal tensors")
        return x

    return replace(embed, load=load)
