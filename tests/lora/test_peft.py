"""Adapters of real PEFT give the same logits here, and ours the same in PEFT, for tiny models of transformers."""

import pytest
import torch
from support.adapters import adapt
from support.tiny_models import assert_close, random_tokens
from support.transformers_reference import float64_reference, tiny_reference

import converters
from msrnn import lora

peft = pytest.importorskip("peft", reason="the package peft is not installed (pip install peft)")

pytestmark = pytest.mark.filterwarnings("default")  # those of peft and transformers
TEXT = random_tokens(2, 2, 11)
LINEAR = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
SETTINGS = {
    "llama": {"target_modules": ["q_proj", "v_proj"], "r": 3, "lora_alpha": 5},
    "mistral": {"target_modules": LINEAR, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 9}},
    "qwen2": {"target_modules": "all-linear", "use_rslora": True, "r": 4},
    "gemma3_text": {"target_modules": r".*\.self_attn\.[kv]_proj", "init_lora_weights": "gaussian"},
    "olmo2": {"target_modules": ["o_proj", "lm_head"], "layers_to_transform": None},
}


def reference(kind):
    return tiny_reference(kind, **({"head_dim": 6} if kind == "gemma3_text" else {}))


def reference_logits(model, inner):
    with torch.no_grad(), float64_reference(inner):
        return model(TEXT).logits


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_adapter_of_peft_gives_the_same_logits_here(kind, tmp_path):
    model = reference(kind)
    cell = converters.load(model)
    base = cell(TEXT)[0]
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **SETTINGS[kind])).eval()
    with torch.no_grad():
        for name, x in adapted.named_parameters():
            if "lora_B" in name:
                x.normal_(0, 0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = reference_logits(adapted, model)
    lora.load_adapter(cell, tmp_path / "adapter")
    assert (expected - base).abs().max() > 1e-2
    assert_close(cell(TEXT)[0], expected)
    assert_close(lora.merge(cell)(TEXT)[0], expected)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gemma3_text"])
def test_an_adapter_of_this_library_gives_the_same_logits_in_peft(kind, tmp_path):
    targets = {"mistral": "all-linear", "qwen2": ("layers.1.q", "up"), "llama": ("q", "v", "head"), "gemma3_text": ("k", "o")}
    cell = adapt(converters.load(reference(kind)), r=3, lora_alpha=7, target_modules=targets[kind])
    lora.save_adapter(cell, tmp_path / "adapter")
    model = reference(kind)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    found = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert len(found) == len(cell.adapters)
    assert_close(cell(TEXT)[0].detach(), reference_logits(adapted, model))
