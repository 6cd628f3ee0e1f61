"""The published sizes of families beyond LLaMA: config fields as on the hub, tensors of transformers on the meta device."""

from dataclasses import replace

import pytest
import torch

import msrnn
from converters.formats.hf_config import config_from_hf, config_to_hf
from converters.formats.huggingface import tensors_from_hf
from msrnn.models import gemma2, gemma3, granite, ministral, ministral3, olmo2, phi3, qwen2, qwen3, smollm3
from msrnn.models.loading import check_tensors
from msrnn.storage.lazy_tensors import LazyTensor

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {
    **{"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384, "mscale": 1.0},
    **{"mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "llama_4_scaling_beta": 0.1},
}
PUBLISHED = {
    "QWEN25_05B": (
        qwen2.QWEN25_05B,
        (896, 4864, 24, 14, 2, 151936),
        {
            **{"model_type": "qwen2", "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": True},
            **{"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 24, "rms_norm_eps": 1e-6},
            **{"bos_token_id": 151643, "eos_token_id": 151643},
        },
        494_032_768,
    ),
    "QWEN3_06B": (
        qwen3.QWEN3_06B,
        (1024, 3072, 28, 16, 8, 151936),
        {
            **{"model_type": "qwen3", "rope_theta": 1e6, "max_position_embeddings": 40960, "tie_word_embeddings": True},
            **{"head_dim": 128, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 28},
            **{"attention_bias": False, "rope_scaling": None, "bos_token_id": 151643, "eos_token_id": 151645},
        },
        596_049_920,
    ),
    "GEMMA2_2B": (
        gemma2.GEMMA2_2B,
        (2304, 9216, 26, 8, 4, 256000),
        {
            **{"model_type": "gemma2", "rope_theta": 10000.0, "head_dim": 256, "query_pre_attn_scalar": 256},
            **{"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096},
            **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "cache_implementation": "hybrid"},
        },
        2_614_341_888,
    ),
    "GEMMA3_270M": (
        gemma3.GEMMA3_270M,
        (640, 2048, 18, 4, 1, 262144),
        {
            **{"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 10000.0, "head_dim": 256},
            **{"_sliding_window_pattern": 6, "sliding_window": 512, "max_position_embeddings": 32768},
            **{"layer_types": [SLIDING if (i + 1) % 6 else FULL for i in range(18)], "use_bidirectional_attention": False},
        },
        268_098_176,
    ),
    "SMOLLM3_3B": (
        smollm3.SMOLLM3_3B,
        (2048, 11008, 36, 16, 4, 128256),
        {
            **{"model_type": "smollm3", "rope_theta": 5e6, "max_position_embeddings": 65536, "eos_token_id": 128012},
            **{"no_rope_layers": [1, 1, 1, 0] * 9, "layer_types": [FULL] * 36, "max_window_layers": 28, "mlp_bias": False},
        },
        3_075_098_624,
    ),
    "MINISTRAL_8B": (
        ministral.MINISTRAL_8B,
        (4096, 12288, 36, 32, 8, 131072),
        {
            **{"model_type": "ministral", "rope_theta": 1e8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5},
            **{"head_dim": 128, "sliding_window": 32768, "layer_types": [FULL, SLIDING, SLIDING, SLIDING] * 9},
        },
        8_019_808_256,
    ),
    "MINISTRAL3_8B": (
        ministral3.MINISTRAL3_8B,
        (4096, 14336, 34, 32, 8, 131072),
        {"model_type": "ministral3", "max_position_embeddings": 262144, "head_dim": 128, "rope_parameters": YARN},
        8_489_553_920,
    ),
    "GRANITE_33_2B": (
        granite.GRANITE_33_2B,
        (2048, 8192, 40, 32, 8, 49159),
        {
            **{"model_type": "granite", "rope_theta": 1e7, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
            **{"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.015625},
            **{"logits_scaling": 8.0, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
        },
        2_533_539_840,
    ),
    "OLMO2_1B": (
        olmo2.OLMO2_1B,
        (2048, 8192, 16, 16, 16, 100352),
        {
            **{"model_type": "olmo2", "rope_theta": 500000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6},
            **{"eos_token_id": 100257, "pad_token_id": 100277},
        },
        1_484_916_736,
    ),
    "PHI3_MINI_4K": (
        phi3.PHI3_MINI_4K,
        (3072, 8192, 32, 32, 32, 32064),
        {
            **{"model_type": "phi3", "rope_theta": 10000.0, "rope_scaling": None, "sliding_window": 2047},
            **{"original_max_position_embeddings": 4096, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5},
        },
        3_821_079_552,
    ),
}


@pytest.mark.parametrize(("preset", "sizes", "more", "count"), PUBLISHED.values(), ids=PUBLISHED)
def test_tensors_of_the_published_models_are_those_of_the_cell(preset, sizes, more, count):
    """The model of transformers, on the meta device, has the tensors of the cell and the published number of parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**dict(zip(SIZES, sizes, strict=True)), **more}
    reference = AutoConfig.for_model(**fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(reference, dtype=torch.bfloat16)
    assert sum(x.numel() for x in model.parameters()) == count
    config = config_from_hf(fields, {})
    assert config == preset
    assert config_from_hf(reference.to_dict(), {}) == config
    assert config_from_hf(config_to_hf(config, torch.bfloat16), {}) == config
    tensors = tensors_from_hf({name: LazyTensor.of(x) for name, x in model.state_dict().items()}, config)
    assert check_tensors(config, tensors) == torch.bfloat16
    assert sum(torch.Size(x.shape).numel() for x in tensors.values()) == count
    with pytest.raises(msrnn.Error, match=r"gate\.weight' has shape"):
        check_tensors(replace(config, ffn_width=config.ffn_width + 1), tensors)
