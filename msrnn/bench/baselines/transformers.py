"""transformers as the comparison: the same weights, its fused attention (sdpa), its own cache. Nothing of it is patched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...storage.files import read_json

NAME = "transformers"
MISSING = "transformers is not installed"


class Transformers:
    """A causal model of transformers.

    Args:
        export: gives the Hugging Face folder it is loaded from.
    """

    def __init__(self, export: Callable[[], Path], dtype: torch.dtype, device: torch.device):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        model: Any = transformers.AutoModelForCausalLM  # its types leave out half of it
        self.model = model.from_pretrained(export(), dtype=dtype, attn_implementation="sdpa").to(device).eval()
        self.cache: Callable[[], Any] = transformers.DynamicCache

    @staticmethod
    def version() -> str:
        """Empty where it is not installed."""
        try:
            import transformers
        except ImportError:
            return ""
        return transformers.__version__

    @torch.no_grad()
    def read(self, ids: Tensor, cache: Any = None) -> Any:
        """The dense pass over ``(1, T)`` ids, logits of the last token only; the cache after it."""
        cache = self.cache() if cache is None else cache
        self.model(ids, past_key_values=cache, logits_to_keep=1)
        return cache

    @torch.no_grad()
    def step(self, token: Tensor, cache: Any) -> None:
        """One token ``(1,)``; the cache is cut back to the length it had."""
        self.model(token[None], past_key_values=cache)
        cache.crop(-1)


def nbytes(cache: Any) -> int:
    """Bytes of the keys and values of a ``DynamicCache``."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def is_hugging_face(source: str) -> bool:
    """Whether ``source`` is a folder that transformers can load as it is."""
    path = Path(source) / "config.json"
    if not path.is_file() or not (any(path.parent.glob("*.safetensors")) or any(path.parent.glob("*.bin"))):
        return False
    return read_json(path).get("model_type") in ("llama", "mistral")
