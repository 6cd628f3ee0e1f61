"""Configs of GGUF files: defaults, rope scaling, refusals."""

import numpy as np
import pytest
import torch
from support.gguf_files import to_gguf
from support.refusals import refusing
from support.tiny_models import tiny_cell

from converters.gguf.reader import open_checkpoint
from msrnn.layers.rotary import LinearRope, Llama3Rope, Rope, YarnRope
from msrnn.models.loading import check_tensors


def config_of(path):
    source = open_checkpoint(path)
    check_tensors(source.config, source.tensors)
    return source.config


def test_missing_keys_have_llama_cpps_defaults(write_tiny, cell):
    square = {k: v for k, v in to_gguf(cell).items() if "attn_q" not in k and "attn_output" not in k}
    more = {f"blk.{n}.{x}.weight": np.zeros((24, 24), np.float32) for n in (0, 1) for x in ("attn_q", "attn_output")}
    heads = {f"blk.{n}.{x}.weight": np.zeros((24, 24), np.float32) for n in (0, 1) for x in ("attn_k", "attn_v")}
    gone = {"llama.attention.head_count_kv": None, "llama.attention.key_length": None}
    config = config_of(write_tiny(gone, {**square, **more, **heads}))
    assert (config.n_kv_heads, config.head_dim, config.rope, config.sliding_window) == (4, 6, Rope(10000.0), None)
    assert (config.bos_token_id, config.eos_token_ids, config.family) == (None, (), "llama")


def test_floats_are_read_as_the_shortest_decimals(write_tiny):
    for eps, theta in ((1e-5, 500000.0), (1e-6, 1e6), (0.1, 5e6)):
        config = config_of(write_tiny({"llama.attention.layer_norm_rms_epsilon": eps, "llama.rope.freq_base": theta}))
        assert (config.norm_eps, config.rope) == (eps, Rope(theta))


def test_special_tokens_may_have_id_0(write_tiny):
    ids = {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0}
    config = config_of(write_tiny(ids))
    assert (config.bos_token_id, config.eos_token_ids) == (0, (0,))


def test_special_tokens_window_and_vocabulary(write_tiny):
    ids = {f"tokenizer.ggml.{x}_token_id": n for x, n in (("bos", 3), ("eos", 4), ("eot", 9), ("eom", 11))}
    config = config_of(write_tiny({**ids, "llama.attention.sliding_window": 16, "llama.vocab_size": 50}))
    assert (config.bos_token_id, config.eos_token_ids, config.sliding_window) == (3, (4, 9, 11), 16)
    tokens = [f"token {n}" for n in range(48)] + ["<|im_end|>", "<end_of_turn>"]
    chat = {"tokenizer.chat_template": "{{ messages }}", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": 4}
    chat["tokenizer.ggml.token_type"] = [1] * 48 + [3, 1]  # the last one is an ordinary word
    assert config_of(write_tiny(chat)).eos_token_ids == (4, 48)
    assert config_of(write_tiny({**chat, "tokenizer.ggml.eot_token_id": 7})).eos_token_ids == (4, 7)
    del chat["tokenizer.chat_template"]
    assert config_of(write_tiny(chat)).eos_token_ids == (4,)
    with refusing("'embed.weight' has shape (50, 24); expected (2, 24)"):
        config_of(write_tiny({"tokenizer.ggml.tokens": ["a", "b"]}))


@pytest.mark.parametrize(
    ("scaling", "rope"),
    [
        ({"type": "none", "factor": 4.0}, Rope(10000.0)),
        ({"type": "linear"}, Rope(10000.0)),
        ({"factor": 4.0}, LinearRope(10000.0, 4.0)),
        ({"type": "linear", "factor": 2.5, "finetuned": True}, LinearRope(10000.0, 2.5)),
        ({"type": "yarn", "factor": 4.0}, YarnRope(10000.0, 4.0, 64, 0.1 * np.log(4.0) + 1)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 32, "attn_factor": 0.5, "yarn_beta_fast": 16.0},
            YarnRope(10000.0, 4.0, 32, 0.5 * (0.1 * np.log(4.0) + 1), 16.0),
        ),
    ],
)
def test_rope_scaling(write_tiny, scaling, rope):
    assert config_of(write_tiny({f"llama.rope.scaling.{key}": value for key, value in scaling.items()})).rope == rope


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({"scale_linear": 4.0}, LinearRope(10000.0, 4.0)),
        ({"scale_linear": 4.0, "scaling.type": "linear"}, LinearRope(10000.0, 4.0)),
        ({"scale_linear": 4.0, "scaling.factor": 2.0}, LinearRope(10000.0, 2.0)),
        ({"scale_linear": 4.0, "scaling.type": "none"}, Rope(10000.0)),
        ({"scale_linear": 4.0, "scaling.type": "yarn"}, YarnRope(10000.0, 4.0, 64, 0.1 * np.log(4.0) + 1)),
        ({"scale_linear": 1.0}, Rope(10000.0)),
        ({"scale_linear": 0.0}, Rope(10000.0)),
    ],
)
def test_the_old_key_of_linear_scaling(write_tiny, keys, rope):
    """llama.cpp reads ``rope.scale_linear`` where ``rope.scaling.factor`` is missing, for any type."""
    assert config_of(write_tiny({f"llama.rope.{key}": value for key, value in keys.items()})).rope == rope


OFF = {
    **{"logit_scale": [0.0, 1.0], "embedding_scale": [0.0, 1.0], "residual_scale": [1.0], "attention.scale": [0.0, 6**-0.5]},
    **{"attention.causal": [True], "attention.clamp_kqv": [0.0], "attention.max_alibi_bias": [0.0], "expert_used_count": [2]},
    **{"final_logit_softcapping": [0.0], "use_parallel_residual": [False], "rope.freq_base_swa": [10000.0]},
    **{"tensor_data_layout": ["Meta AI original pth"], "rope.scaling.yarn_ext_factor": [1.0], "pooling_type": [0]},
}
ON = {
    **{"logit_scale": 0.5, "embedding_scale": 12.0, "residual_scale": 0.2, "attention.scale": 0.25, "attention.causal": False},
    **{"attention.clamp_kqv": 8.0, "attention.max_alibi_bias": 8.0, "final_logit_softcapping": 30.0, "pooling_type": 1},
    **{"attn_logit_softcapping": 50.0, "use_parallel_residual": True, "rope.freq_base_swa": 500.0, "swin_norm": True},
    **{"attention.sliding_window_pattern": 2, "attention.temperature_length": 8192, "attention.output_scale": 2.0},
    **{"attention.key_length_swa": 8, "rope.dimension_sections": [1, 2], "rope.scaling.alpha": 2.0, "swiglu_clamp_exp": 7.0},
    **{
        "rope.scaling.attn_factor": 2.0,
        "rope.scaling.yarn_attn_factor": 2.0,
        "a.key.of.tomorrow": "x",
        "expert_shared_count": 1,
    },
}


@pytest.mark.parametrize("key", OFF)
def test_keys_that_change_nothing_are_accepted(write_tiny, key):
    plain = config_of(write_tiny())
    for value in OFF[key]:
        assert config_of(write_tiny({f"llama.{key}": value})) == plain


@pytest.mark.parametrize(("key", "value"), ON.items())
def test_keys_that_change_the_arithmetic_are_refused_by_name(write_tiny, key, value):
    with refusing(f"llama.{key} is {value!r}; expected"):
        config_of(write_tiny({f"llama.{key}": value}))


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64)])
def test_llama3_scaling_is_recovered_from_its_divisors(write_tiny, cell, factor, head_dim):
    """The divisors are computed from transformers' frequencies, as in llama.cpp's converter."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    hf = LlamaConfig(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=settings)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](hf, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    big = tiny_cell(dtype=torch.float32, head_dim=head_dim)
    meta = {"llama.attention.key_length": head_dim, "llama.rope.freq_base": 500000.0}
    tensors = {**to_gguf(big), "rope_freqs.weight": (plain / scaled).numpy()}
    source = open_checkpoint(write_tiny(meta, tensors))
    assert source.config.rope == Llama3Rope(500000.0, factor, 1.0, 4.0, 8192)
    assert not [name for name in source.tensors if "rope" in name]
    with refusing("expected Llama 3's scaling (1, 4, 8192)"):
        config_of(write_tiny(meta, {**tensors, "rope_freqs.weight": (plain / scaled).numpy() * np.float32(1.001)}))
    with refusing("rope_freqs.weight has shape"):
        config_of(write_tiny(meta, {**tensors, "rope_freqs.weight": (plain / scaled).numpy()[1:]}))
    with refusing("scaling.type is 'linear'; expected 'none' in a file with"):
        config_of(write_tiny({**meta, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, tensors))
    ones = config_of(write_tiny(meta, {**tensors, "rope_freqs.weight": np.ones(head_dim // 2, np.float32)}))
    assert ones.rope == Rope(500000.0)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "gemma"}, "general.architecture is 'gemma'; expected one of 'llama', 'smollm3'"),
        ({"general.architecture": None}, "general.architecture is missing; expected one of 'llama'"),
        ({"llama.expert_count": 8}, "expert_count is 8; expected 0"),
        (
            {"general.type": "adapter"},
            "is an adapter (LoRA); expected a model with the adapter merged into it (`llama-export-lora` merges them)",
        ),
        ({"split.count": 3}, "split.count is 3; expected one whole file"),
        ({"llama.block_count": None}, "block_count is missing; expected an int"),
        ({"llama.block_count": 2**31}, "block_count is 2147483648; expected at most 21"),
        ({"llama.block_count": 1}, "tensor 'layers.1.attention_norm.weight' is not part of this model"),
        ({"llama.embedding_length": 2.0}, "embedding_length is 2.0; expected an int"),
        ({"llama.attention.head_count": [4, 4]}, "head_count is [4, 4]; expected an int"),
        ({"llama.attention.head_count_kv": 3}, "config: n_heads is 4; expected a multiple of n_kv_heads, 3"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "epsilon is missing; expected a finite number"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan; expected a finite number"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count is 4; expected 6"),
        ({"llama.attention.value_length": 8}, "value_length is 8; expected 6"),
        ({"llama.rope.freq_base": 0.0}, "theta is 0.0; expected"),
        ({"llama.rope.scaling.type": "longrope"}, "scaling.type is 'longrope'; expected 'none', 'linear' or 'yarn'"),
        ({"llama.rope.scaling.type": "yarn"}, "scaling.factor is missing; expected at least 1"),
        ({"llama.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier is 0.1; expected 0 or no such key"),
        ({"tokenizer.ggml.eos_token_id": 50}, "special token id is 50; expected an id of the vocabulary of 50"),
        ({"llama.vocab_size": 51}, "'embed.weight' has shape (50, 24); expected (51, 24)"),
    ],
)
def test_other_metadata_are_refused(write_tiny, metadata, message):
    with refusing(message):
        config_of(write_tiny(metadata))
