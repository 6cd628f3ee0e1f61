"""The families: :class:`Llama`, with named configs of LLaMA, Mistral and Yi; :class:`Decoder`, small, to be trained."""

from .config import LLAMA_2_7B, LLAMA_3_8B, LLAMA_31_8B, LLAMA_32_1B, Config
from .decoder import Decoder
from .decoder_config import DecoderConfig
from .llama import Llama
from .mistral import MISTRAL_7B_V01, MISTRAL_7B_V02, MISTRAL_7B_V03
from .yi import YI_6B, YI_6B_200K

__all__ = [
    "LLAMA_2_7B",
    "LLAMA_3_8B",
    "LLAMA_31_8B",
    "LLAMA_32_1B",
    "MISTRAL_7B_V01",
    "MISTRAL_7B_V02",
    "MISTRAL_7B_V03",
    "YI_6B",
    "YI_6B_200K",
    "Config",
    "Decoder",
    "DecoderConfig",
    "Llama",
]
