"""The model families with presets of published models, :class:`Decoder` for training, and encoders."""

from .config import Config
from .decoder import Decoder
from .decoder_config import DecoderConfig
from .encoder import Encoder, EncoderConfig
from .encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from .gemma2 import GEMMA2_2B, Gemma2, GemmaConfig
from .gemma3 import GEMMA3_270M, Gemma3
from .granite import GRANITE_33_2B, Granite, GraniteConfig
from .granite_swa import GraniteSwa
from .llama import LLAMA_2_7B, LLAMA_3_8B, LLAMA_31_8B, LLAMA_32_1B, Llama
from .memory_encoder import MemoryConfig, MemoryEncoder
from .ministral import MINISTRAL_8B
from .ministral3 import MINISTRAL3_8B, Ministral3, Ministral3Config
from .mistral import MISTRAL_7B_V01, MISTRAL_7B_V02, MISTRAL_7B_V03
from .olmo2 import OLMO2_1B, Olmo2
from .phi3 import PHI3_MINI_4K
from .qwen2 import QWEN25_05B, Qwen2
from .qwen3 import QWEN3_06B, Qwen3
from .smollm3 import SMOLLM3_3B
from .yi import YI_6B, YI_6B_200K

__all__ = [
    "GEMMA2_2B",
    "GEMMA3_270M",
    "GRANITE_33_2B",
    "LLAMA_2_7B",
    "LLAMA_3_8B",
    "LLAMA_31_8B",
    "LLAMA_32_1B",
    "MINISTRAL3_8B",
    "MINISTRAL_8B",
    "MISTRAL_7B_V01",
    "MISTRAL_7B_V02",
    "MISTRAL_7B_V03",
    "OLMO2_1B",
    "PHI3_MINI_4K",
    "QWEN3_06B",
    "QWEN25_05B",
    "SMOLLM3_3B",
    "YI_6B",
    "YI_6B_200K",
    "Config",
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "Gemma2",
    "Gemma3",
    "GemmaConfig",
    "Granite",
    "GraniteConfig",
    "GraniteSwa",
    "Llama",
    "MemoryConfig",
    "MemoryEncoder",
    "Ministral3",
    "Ministral3Config",
    "Olmo2",
    "Qwen2",
    "Qwen3",
]
