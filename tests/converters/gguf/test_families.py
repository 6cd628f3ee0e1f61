"""GGUF files of Qwen, Gemma and SmolLM3: logits compared with transformers, which also reads the same files."""

import pytest
import torch
from support.gguf_families import FAMILIES, tensors_of, tiny_model, write_family
from support.refusals import refusing
from transformers import AutoModelForCausalLM

import converters
from converters.gguf.reader import open_checkpoint
from msrnn.layers.rotary import LinearRope, Rope, YarnRope

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")
TOKENS = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(1))
"""Five windows long."""
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}


def assert_logits_equal(cell, model):
    expected = model(TOKENS).logits
    assert expected.std() > 0.5
    assert (cell(TOKENS)[0] - expected).abs().max() <= 1e-4 * expected.abs().max()  # float32


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_the_model_that_was_written(family, tmp_path):
    model = tiny_model(family)
    cell = converters.load(write_family(tmp_path / "x.gguf", model, family))
    assert (cell.config.family, cell.config.tied) == (family, model.config.tie_word_embeddings)
    assert_logits_equal(cell, model)


@pytest.mark.parametrize("family", [x for x in FAMILIES if x != "smollm3"])  # transformers does not read smollm3
def test_logits_equal_those_of_transformers_reading_of_the_file(family, tmp_path):
    path = write_family(tmp_path / "x.gguf", tiny_model(family), family)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        assert_logits_equal(converters.load(path), model)


def gemma3(**rope):
    """Return a model with other rotary settings of the layers without a window."""
    full = {"rope_type": "default", "rope_theta": 1e6} | rope
    return {"rope_parameters": {"full_attention": full, "sliding_attention": LOCAL}}


@pytest.mark.parametrize(
    ("family", "fields", "keys"),
    [
        ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0}, {}),
        ("gemma2", {"final_logit_softcapping": 3.0}, {"attention__sliding_window_pattern": 2}),
        ("gemma2", {"sliding_window": 4096}, {"attention__sliding_window": None}),
        ("gemma2", {"num_hidden_layers": 46, "head_dim": 16, "query_pre_attn_scalar": 8}, {}),  # 32 / 4, as in 27B
        ("gemma3", {"num_hidden_layers": 62, "head_dim": 16, "query_pre_attn_scalar": 8}, {}),
        ("gemma3", gemma3(rope_type="linear", factor=8.0), {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}),
        ("gemma3", {"final_logit_softcapping": 3.0}, {"final_logit_softcapping": 3.0}),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, {"attention__sliding_window": None}),
        (
            "gemma3",
            {"layer_types": [f"{x}_attention" for x in ("full", *["sliding"] * 3, *["full"] * 2, "sliding")]},
            {"attention__sliding_window_pattern": [False, True, True, True, False, False, True]},
        ),
        (
            "gemma3",
            {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]},
            {"attention__sliding_window_pattern": 2},
        ),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": LOCAL | {"rope_theta": 1e6},
                    "sliding_attention": LOCAL | {"rope_theta": 50.0},
                }
            },
            {"rope__freq_base_swa": 50.0},
        ),
        ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}, {}),
        (
            "qwen3",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 500.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                }
            },
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 16},
        ),
        ("smollm3", {"num_hidden_layers": 3, "tie_word_embeddings": True}, {}),
    ],
)
def test_keys_change_the_logits_as_in_transformers(family, fields, keys, tmp_path):
    if "head_dim" not in fields and family.startswith("gemma"):
        fields = {"head_dim": 16, "query_pre_attn_scalar": 16} | fields
    model = tiny_model(family, **fields)
    assert_logits_equal(converters.load(write_family(tmp_path / "x.gguf", model, family, **keys)), model)


def test_configs(tmp_path):
    def config_of(family, n, **keys):
        return converters.config(write_family(tmp_path / "x.gguf", tiny_model(family, num_hidden_layers=n), family, **keys))

    config = config_of("gemma3", 12)
    assert config.layer_windows == ((8,) * 5 + (None,)) * 2
    assert config.ropes == ((Rope(10000.0),) * 5 + (Rope(1e6),)) * 2
    assert (config.query_pre_attn_scalar, config.attention_softcap, config.logits_softcap) == (256.0, None, None)
    assert config_of("gemma3", 2, rope__scaling__factor=8.0).rope == LinearRope(1e6, 8.0)
    assert config_of("gemma3", 2, attention__sliding_window_pattern=0).layer_windows == (8, 8)
    config = config_of("gemma2", 4)
    assert (config.layer_windows, config.layer_ropes) == ((8, None, 8, None), ())
    assert (config.attention_softcap, config.logits_softcap, config.rope) == (50.0, 30.0, Rope(10000.0))
    assert config_of("gemma2", 2, rope__freq_base_swa=7.0).layer_ropes == (Rope(7.0), Rope(10000.0))
    config = config_of("smollm3", 8)
    assert [n for n, rope in enumerate(config.ropes) if rope is None] == [3, 7]
    assert isinstance(config_of("qwen2", 2, rope__scaling__type="yarn", rope__scaling__factor=4.0).rope, YarnRope)


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("qwen2", {"attention__sliding_window": 8}, "qwen2.attention.sliding_window is 8; expected 0 or no such key"),
        ("qwen3", {"pooling_type": 3}, "qwen3.pooling_type is 3; expected 0 or no such key, because the architecture qwen3"),
        ("qwen3", {"attention__scale": 0.5}, "qwen3.attention.scale is 0.5; expected 0 or 0.0883883"),
        ("smollm3", {"expert_count": 4}, "smollm3.expert_count is 4; expected 0"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "gemma3.attn_logit_softcapping is 50.0; expected 0"),
        ("gemma3", {"attention__key_length_swa": 8}, "gemma3.attention.key_length_swa is 8; expected 256, the head dimension"),
        ("gemma3", {"attention__sliding_window_pattern": [True, False]}, "expected a number, or a list of 7 truth values"),
        ("gemma3", {"attention__sliding_window_pattern": "2"}, "sliding_window_pattern is '2'; expected an int of at least 0"),
        ("gemma3", {"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0}, "is 'yarn'; expected 'none' or 'linear'"),
        ("gemma2", {"final_logit_softcapping": -3.0}, "logits_softcap"),
    ],
)
def test_other_keys_are_refused(family, keys, message, tmp_path):
    with refusing(message):
        converters.config(write_family(tmp_path / "x.gguf", tiny_model(family), family, **keys))


def test_other_tensors_are_refused(tmp_path, monkeypatch):
    model = tiny_model("qwen3")
    monkeypatch.setattr(
        "support.gguf_families.tensors_of", lambda *x: tensors_of(*x) | {"blk.0.attn_q.bias": TOKENS[0].float().numpy()}
    )
    with refusing("tensor 'blk.0.attn_q.bias' is not part of this architecture"):
        converters.load(write_family(tmp_path / "x.gguf", model, "qwen3"))
    without = {name: x for name, x in tensors_of(tiny_model("qwen2"), "qwen2").items() if name != "blk.1.attn_k.bias"}
    monkeypatch.setattr("support.gguf_families.tensors_of", lambda *x: without)
    with refusing("tensor 'layers.1.k_bias' missing"):
        converters.load(write_family(tmp_path / "x.gguf", tiny_model("qwen2"), "qwen2"))


def test_the_norms_of_gemma_multiply_by_the_numbers_of_the_file(tmp_path):
    """Weights that bfloat16 holds come back exactly; of others, the bits are lost that 1 + weight does not have in float32."""
    model = tiny_model("gemma3")
    for name, x in model.named_parameters():
        if "norm" in name:
            x.copy_(x.bfloat16() if "layernorm" in name else x)
    path = write_family(tmp_path / "x.gguf", model, "gemma3")
    tensors, stored = open_checkpoint(path).tensors, tensors_of(model, "gemma3")
    hf = model.state_dict()
    assert torch.equal(tensors["layers.3.attention_norm.weight"].read(), hf["model.layers.3.input_layernorm.weight"])
    assert torch.equal(
        tensors["layers.3.ffn_output_norm.weight"].read(), hf["model.layers.3.post_feedforward_layernorm.weight"]
    )
    for own, name in (
        ("norm", "output_norm"),
        ("layers.0.q_norm", "blk.0.attn_q_norm"),
        ("layers.6.k_norm", "blk.6.attn_k_norm"),
    ):
        assert torch.equal(1 + tensors[f"{own}.weight"].read(), torch.from_numpy(stored[f"{name}.weight"]))
    found = tensors["norm.weight"].read()
    assert not torch.equal(found, hf["model.norm.weight"])
    assert (found - hf["model.norm.weight"]).abs().max() <= 2.0**-24
