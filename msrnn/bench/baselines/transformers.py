"""transformers as a baseline: the same weights, sdpa attention and its own cache, unpatched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...storage.files import read_json

NAME = "transformers"
MISSING = "transformers is not installed; pip install 'msrnn[transformers]'"


class Transformers:
    """A causal language model of transformers.

    Args:
        export: returns the Hugging Face folder to load.
        dtype, device: of the parameters.
    """

    def __init__(self, export: Callable[[], Path], dtype: torch.dtype, device: torch.device):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        model: Any = transformers.AutoModelForCausalLM  # its type hints are incomplete
        self.model = model.from_pretrained(export(), dtype=dtype, attn_implementation="sdpa").to(device).eval()
        self.cache: Callable[[], Any] = transformers.DynamicCache

    @staticmethod
    def version() -> str:
        """Return the installed version, or an empty string."""
        try:
            import transformers
        except ImportError:
            return ""
        return transformers.__version__

    @torch.no_grad()
    def read(self, ids: Tensor, cache: Any = None) -> Any:
        """Read ``(1, T)`` ids in one dense forward pass, with logits of the last token only, and return the cache."""
        cache = self.cache() if cache is None else cache
        self.model(ids, past_key_values=cache, logits_to_keep=1)
        return cache

    @torch.no_grad()
    def step(self, token: Tensor, cache: Any) -> None:
        """Read one token ``(1,)``, then crop the cache to its previous length."""
        self.model(token[None], past_key_values=cache)
        cache.crop(-1)


def nbytes(cache: Any) -> int:
    """Return the bytes of the keys and values of a ``DynamicCache``."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def is_hugging_face(source: str) -> bool:
    """Return True if ``source`` is a folder that transformers can load."""
    path = Path(source) / "config.json"
    if not path.is_file() or not (any(path.parent.glob("*.safetensors")) or any(path.parent.glob("*.bin"))):
        return False
    return read_json(path).get("model_type") in ("llama", "mistral")
