"""Layers that normalize queries and keys head by head, before the position encoding (Qwen3, Gemma 3)."""

import torch
from torch import Tensor

from ..layers.positional import PositionEncoding
from .llama import LlamaLayer


class HeadNormLayer(LlamaLayer):
    r"""A layer with RMSNorm over the D elements of each query and key (arXiv:2302.05442, sec. 3.1, with RMSNorm).

    The gain of queries is ``q_norm.weight (D,)``, that of keys ``k_norm.weight (D,)``, the same for all heads. Cached keys are
    normalized, so H has rows as in LLaMA.
    """

    def __init__(self, config: object, position_encoding: PositionEncoding):
        super().__init__(config, position_encoding)
        self.q_norm = self.norm_class(self.config.head_dim, self.config.norm_eps)
        self.k_norm = self.norm_class(self.config.head_dim, self.config.norm_eps)

    def normalize_heads(self, qk: Tensor) -> Tensor:
        q, k = qk.split_with_sizes((self.config.n_heads, self.config.n_kv_heads), dim=-2)
        return torch.cat((self.q_norm(q), self.k_norm(k)), dim=-2)
