"""The model families of Hugging Face that can be read and written: one file per group of families."""

from . import gemma, granite, llama, mistral, olmo, phi, qwen, smollm
from .family import HfFamily

ALL: tuple[HfFamily, ...] = (
    llama.LLAMA,
    llama.MISTRAL,
    llama.YI,
    qwen.QWEN2,
    qwen.QWEN3,
    gemma.GEMMA2,
    gemma.GEMMA3,
    smollm.SMOLLM3,
    mistral.MINISTRAL,
    mistral.MINISTRAL3,
    granite.GRANITE,
    granite.GRANITE_SWA,
    olmo.OLMO2,
    phi.PHI3,
)
BY_MODEL_TYPE: dict[str, HfFamily] = {family.model_type: family for family in ALL} | {"Yi": llama.YI}
"""By ``model_type`` of ``config.json``. Early Yi checkpoints have a capital letter."""
BY_FAMILY: dict[str, HfFamily] = {family.family: family for family in ALL}
"""By ``family`` of msrnn's config."""

__all__ = ["ALL", "BY_FAMILY", "BY_MODEL_TYPE", "HfFamily"]
