"""Names, shapes and parameter counts of published models, on the meta device."""

import json
from dataclasses import replace

import pytest
import torch

import converters
import msrnn

LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "architectures": ["LlamaForCausalLM"]}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
SCALED = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
WINDOW = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "max_position_embeddings": 32768}
PUBLISHED = {
    "LLAMA_2_7B": ((4096, 11008, 32, 32, 32, 32000), {"max_position_embeddings": 4096}, 6_738_415_616),
    "LLaMA-2-70B": ((8192, 28672, 80, 64, 8, 32000), {"max_position_embeddings": 4096}, 68_976_648_192),
    "LLAMA_31_8B": (
        (4096, 14336, 32, 32, 8, 128256),
        {"rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": {**SCALED, "factor": 8.0}},
        8_030_261_248,
    ),
    "LLAMA_32_1B": (
        (2048, 8192, 16, 32, 8, 128256),
        {"rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": {**SCALED, "factor": 32.0}, "head_dim": 64}
        | {"tie_word_embeddings": True},
        1_235_814_400,
    ),
    "MISTRAL_7B_V01": (
        (4096, 14336, 32, 32, 8, 32000),
        {**WINDOW, "rope_theta": 10000.0, "sliding_window": 4096},
        7_241_732_096,
    ),
    "MISTRAL_7B_V03": ((4096, 14336, 32, 32, 8, 32768), {**WINDOW, "rope_theta": 1e6, "sliding_window": None}, 7_248_023_552),
    "YI_6B": ((4096, 11008, 32, 32, 4, 64000), {"rope_theta": 5e6, "max_position_embeddings": 4096}, 6_061_035_520),
    "Yi-34B": ((7168, 20480, 60, 56, 8, 64000), {"rope_theta": 5e6, "max_position_embeddings": 4096}, 34_388_917_248),
}


@pytest.mark.parametrize(("name", "sizes", "more", "count"), [(k, *v) for k, v in PUBLISHED.items()], ids=PUBLISHED)
def test_tensors_of_the_published_models_are_those_of_the_cell(name, sizes, more, count):
    """The model of transformers, on the meta device, has the tensors of the cell and the published number of parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from converters.formats.huggingface import config_from_hf, tensors_from_hf
    from msrnn.models.loading import check_tensors
    from msrnn.storage.lazy_tensors import LazyTensor

    fields = {**LLAMA, **dict(zip(SIZES, sizes, strict=True)), **more}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.bfloat16)
    assert sum(x.numel() for x in model.parameters()) == count
    config = config_from_hf(fields, {})
    tensors = tensors_from_hf({name: LazyTensor.of(x) for name, x in model.state_dict().items()}, config)
    assert check_tensors(config, tensors) == torch.bfloat16
    assert sum(torch.Size(x.shape).numel() for x in tensors.values()) == count
    preset = getattr(msrnn.models, name, None)
    if preset is not None:
        named = {"family": preset.family, "bos_token_id": preset.bos_token_id, "eos_token_ids": preset.eos_token_ids}
        assert converters.config(({}, replace(config, **named))) == preset
    else:
        assert name in ("LLaMA-2-70B", "Yi-34B")


def test_the_model_type_of_the_first_yi_checkpoints_is_read(tmp_path):
    sizes, more, _ = PUBLISHED["YI_6B"]
    fields = {**LLAMA, **dict(zip(SIZES, sizes, strict=True)), **more}
    fields |= {"model_type": "Yi", "architectures": ["YiForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "bos_token_id": 1, "eos_token_id": 2}))
    assert converters.config(tmp_path) == msrnn.models.YI_6B
