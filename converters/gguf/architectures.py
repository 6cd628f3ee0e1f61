"""The architectures of GGUF files that are read, and what their files have besides the tensors and keys of LLaMA.

llama.cpp's name of an architecture is also the prefix of its keys and msrnn's name of the family; ``llama`` is also that of
Mistral and Yi. The sources are ``conversion/*.py``, ``src/models/*.cpp`` and ``gguf-py/gguf/constants.py`` of llama.cpp.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..fields import Fields
from ..source import NameTable

LLAMA_LAYER = {
    "attn_norm": "attention_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
HEAD_NORMS = {"attn_q_norm": "q_norm", "attn_k_norm": "k_norm"}
OUTPUT_NORMS = {"post_attention_norm": "attention_output_norm", "post_ffw_norm": "ffn_output_norm"}
BIASES = {f"attn_{x}.bias": f"{x}_bias" for x in "qkv"}
WINDOW = "attention.sliding_window"
GEMMA_KEYS = {
    *(WINDOW, "attention.sliding_window_pattern", "attention.key_length_swa", "attention.value_length_swa"),
    *("rope.freq_base_swa", "rope.dimension_count_swa", "final_logit_softcapping"),
}


@dataclass(frozen=True)
class Architecture:
    """What the files of one architecture have.

    Attributes:
        name: of the architecture, the prefix of its keys and the family.
        layer: names of the weights of a layer that LLaMA does not have.
        keys: further keys that are read, without the prefix.
        interleaved: the rows of q and k are in the order of interleaved pairs; otherwise they are half-split.
        offset_norms: the weights of all norms are stored with 1 added.
        biases: names of the biases of a layer.
    """

    name: str
    layer: Mapping[str, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    interleaved: bool = False
    offset_norms: bool = False
    biases: Mapping[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """The beginning of the architecture's keys."""
        return f"{self.name}."

    @property
    def names(self) -> NameTable:
        """The tensor names."""
        outer = {"token_embd": "embed", "output_norm": "norm", "output": "head"}
        return NameTable(outer=outer, layer={**LLAMA_LAYER, **self.layer}, layers="blk", vectors=self.biases)


ARCHITECTURES = {
    x.name: x
    for x in (
        Architecture("llama", keys=frozenset({WINDOW}), interleaved=True),
        Architecture("smollm3", interleaved=True),
        Architecture("qwen2", biases=BIASES),
        Architecture("qwen3", layer=HEAD_NORMS),
        Architecture("gemma2", layer=OUTPUT_NORMS, keys=frozenset({*GEMMA_KEYS, "attn_logit_softcapping"}), offset_norms=True),
        Architecture("gemma3", layer={**OUTPUT_NORMS, **HEAD_NORMS}, keys=frozenset(GEMMA_KEYS), offset_norms=True),
    )
}
"""The architectures by name."""


def find_architecture(meta: Fields) -> Architecture:
    """Return the architecture of a file.

    Raises:
        Error: one that is not supported, or none.
    """
    found = ARCHITECTURES.get(str(meta.values.get("general.architecture")))
    if found is None:
        known = ", ".join(repr(name) for name in ARCHITECTURES)
        raise meta.error("general.architecture", f"one of {known} ('llama' is also that of Mistral and Yi)")
    return found
