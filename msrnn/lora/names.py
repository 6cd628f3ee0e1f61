"""Names of linear maps in adapters of PEFT: those of the model classes of transformers.

All published families have the same names, except Phi-3 with its fused matrices. Families of this library have its own paths.
Rows of q and k need no permutation: every cell has the order of Hugging Face (half-split), whichever file it was read from.
"""

from ..cell.cell import Cell
from ..errors import Error

PROJECTIONS = {
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
"""The linear maps of a layer, and their paths in a layer of transformers."""
HEAD, HF_HEAD = "head", "lm_head"
OWN_FAMILIES = ("decoder", "encoder-decoder")
"""Families of this library, which transformers does not have."""
FUSED_FAMILIES = ("phi3",)
TEXT_PARTS = ("model.language_model.", "language_model.model.")
"""Beginnings of names of the text part of a model with images; the text model has ``model.`` there."""


def short_name(name: str) -> str:
    """Return our name for a name of transformers: ``q`` for ``q_proj``, ``head`` for ``lm_head``; others stay."""
    parent, _, last = name.rpartition(".")
    for own, path in PROJECTIONS.items():
        block, _, projection = path.partition(".")
        if last == projection:
            outer = parent.removesuffix(block).removesuffix(".").removeprefix("model.")
            return f"{outer}.{own}" if outer else own
    return HEAD if name == HF_HEAD else name


def peft_name(cell: Cell, path: str) -> str:
    """Return the name of a linear map in an adapter of PEFT: ``model.layers.0.self_attn.q_proj`` for ``layers.0.q``."""
    family = cell.config.family
    if family in OWN_FAMILIES:
        return path
    if path == HEAD:
        return HF_HEAD
    layers, number, own = path.split(".")
    return f"model.{layers}.{number}.{PROJECTIONS[own]}"


def check_family(cell: Cell) -> None:
    """Refuse a family without a format of adapters.

    Raises:
        Error: a Phi-3.
    """
    if cell.config.family in FUSED_FAMILIES:
        found = f"the cell is a {cell.config.family}, and its Hugging Face model has q, k and v as one matrix"
        raise Error(f"{found}; expected another family, or a merge of the adapter in memory")


def without_text_part(name: str) -> str:
    """Return the name in a text model for a name in the text part of a model with images."""
    for start in TEXT_PARTS:
        if name.startswith(start):
            return f"model.{name.removeprefix(start)}"
    return name
