"""The model families: :class:`Llama` with presets of LLaMA, Mistral and Yi, :class:`Decoder` for training, and encoders."""

from .config import Config
from .decoder import Decoder
from .decoder_config import DecoderConfig
from .encoder import Encoder, EncoderConfig
from .encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from .llama import LLAMA_2_7B, LLAMA_3_8B, LLAMA_31_8B, LLAMA_32_1B, Llama
from .memory_encoder import MemoryConfig, MemoryEncoder
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
    "Encoder",
    "EncoderConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "Llama",
    "MemoryConfig",
    "MemoryEncoder",
]
