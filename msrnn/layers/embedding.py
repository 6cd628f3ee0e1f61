"""Token embedding."""

from torch import Tensor, nn

from ..errors import Error
from .linear import linear


class Embedding(nn.Embedding):
    """``nn.Embedding`` that skips random initialization on the meta device, where it would import the compiler of PyTorch."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


def tied_logits(x: Tensor, embedding: nn.Module) -> Tensor:
    """Return the logits of an LM head that is tied to the embedding, ``(…, E) -> (…, V)``.

    Raises:
        Error: as :func:`embedding_weight`.
    """
    logits = getattr(embedding, "logits", None)  # packed in 8 bits, or split over several processes
    return linear(x, embedding_weight(embedding)) if logits is None else logits(x)


def embedding_weight(module: nn.Module) -> Tensor:
    """Return the weight ``(V, E)`` of the module in the place of an embedding, which may be a wrapper such as a LoRA adapter.

    A tied LM head multiplies by this weight, so an adapter of the embedding changes the lookup only, as in transformers.

    Raises:
        Error: the module has no attribute ``weight`` and does not contain one ``nn.Embedding``.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        return weight
    inner = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    if len(inner) != 1:
        raise Error(f"embed is {type(module).__name__} without a weight; expected a module that contains one nn.Embedding")
    return inner[0].weight
