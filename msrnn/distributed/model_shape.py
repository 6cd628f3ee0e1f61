"""The sizes of a decoder-only model, for the model of cost: parameters and bytes of a token in H on each of several ranks."""

from dataclasses import dataclass
from typing import Any

from ..errors import Error, check_int

ITEMSIZE, POSITION_BYTES = 2, 8
"""Bytes of a weight, key, value or activation in 16 bits, and of an int64 position."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only model.

    Attributes:
        name: for tables.
        layers, width, heads, kv_heads, head_dim, ffn_width, vocab_size: as in its config.
        tied: True if the embedding is the LM head, so that the model has this matrix once.
        mlp_matrices: matrices in the MLP of a layer: 3 if it is gated (gate, up, down), 2 if not (up, down), 0 without an MLP.
    """

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int
    tied: bool = False
    mlp_matrices: int = 3

    @classmethod
    def of(cls, config: Any, name: str = "") -> "Shape":
        """Return the sizes of a config, such as ``cell.config`` or ``converters.config(source)``.

        Biases, norms of heads and norms after a block are not counted (Qwen, Gemma, OLMo); they are less than 0.1 % of a model.
        Learned positions and learned rows of a :class:`~msrnn.models.decoder.Decoder` are not counted either.
        """
        c = config
        sizes = (c.n_layers, c.width, c.n_heads, c.n_kv_heads, c.head_dim, c.ffn_width, c.vocab_size)
        return cls(name, *sizes, c.tied, c.mlp_matrices)

    @property
    def sublayers(self) -> int:
        """Sublayers of a layer, each with a norm and an all-reduce: attention, and the MLP if there is one."""
        return 2 if self.mlp_matrices else 1

    def held_kv_heads(self, ranks: int) -> int:
        """Return the key/value heads of one rank; with more ranks than heads, each head is held by several ranks.

        Raises:
            Error: the heads or the MLP elements cannot be divided between the ranks, as for :func:`msrnn.distribute`.
        """
        check_int("ranks", ranks)
        for name in ("heads", "ffn_width"):
            if (found := getattr(self, name)) % ranks:
                raise Error(f"{name} is {found}; expected a multiple of {ranks}, the number of ranks")
        if self.kv_heads % ranks and ranks % self.kv_heads:
            raise Error(f"kv_heads is {self.kv_heads}; expected a multiple or a divisor of {ranks}, the number of ranks")
        return max(1, self.kv_heads // ranks)

    def parameters(self, ranks: int = 1) -> int:
        """Return the number of parameters of one rank. Norms are whole, all matrices are divided."""
        keys, queries = self.held_kv_heads(ranks) * self.head_dim, self.heads // ranks * self.head_dim
        attention = 2 * self.width * (queries + keys)  # q and o, k and v
        mlp = self.mlp_matrices * self.width * (self.ffn_width // ranks)
        embeddings = (1 if self.tied else 2) * self.width * (self.vocab_size // ranks)
        return self.layers * (attention + mlp + self.sublayers * self.width) + embeddings + self.width

    def row_bytes(self, ranks: int = 1, itemsize: int = ITEMSIZE) -> int:
        """Return the bytes of one token in H on one rank: keys, values and positions of all layers."""
        return self.layers * self.held_kv_heads(ranks) * (2 * self.head_dim * itemsize + POSITION_BYTES)

    def collectives(self, scores: int = 0) -> int:
        """Return the number of collectives of a step: one per sublayer, one for the embedding and one for the logits.

        With ``scores`` that ranks exchange there is one more: the step on a full H sends those of all layers at once.
        """
        return self.sublayers * self.layers + 2 + bool(scores)


LLAMA_2_7B = Shape("LLaMA-2-7B", 32, 4096, 32, 32, 128, 11008, 32000)
LLAMA_2_70B = Shape("LLaMA-2-70B", 80, 8192, 64, 8, 128, 28672, 32000)
MISTRAL_7B = Shape("Mistral-7B", 32, 4096, 32, 8, 128, 14336, 32000)
"""Configs of meta-llama/Llama-2-7b-hf, meta-llama/Llama-2-70b-hf and mistralai/Mistral-7B-v0.1 on the Hugging Face hub."""
