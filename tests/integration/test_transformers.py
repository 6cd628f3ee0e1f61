"""Cells against transformers: unbounded LLaMA, Yi, Mistral with its window, real weights, and the official TOVA code."""

import json

import pytest
import torch
from support.transformers_reference import ROPES, float64_reference, logits_by_steps, save_folder, tiny_reference

import converters
import msrnn

TOKENS = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(1))


def logits_difference(model, tokens, folder, reduction=None):
    """Return the largest difference of logits between the float64 reference and the cell that is loaded from its folder."""
    cell = converters.load(save_folder(model, folder))
    with float64_reference(model):
        expected = logits_by_steps(model, tokens)
    logits, _ = cell(tokens, cell.initial_state(len(tokens), reduction))
    return (logits - expected).abs().max().item()


@pytest.mark.parametrize(
    "fields",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"head_dim": 10},
        *({"rope_parameters": rope, "head_dim": 16, "max_position_embeddings": 24} for rope in ROPES.values()),
    ],
    ids=["mha", "gqa", "mqa", "tied", "head_dim", *ROPES],
)
def test_unbounded_llama_equals_transformers(fields, tmp_path, request, figure):
    worst = logits_difference(tiny_reference(**fields), TOKENS, tmp_path)
    figure(f"{worst:.1e} from transformers in float64: tiny LLaMA, {request.node.callspec.id}")
    assert worst <= 1e-9


def test_unknown_config_field_of_the_reference_fails():
    with pytest.raises(AssertionError, match="n_kv_headz"):
        tiny_reference(n_kv_headz=2)


def test_rope_types_give_different_logits_on_this_text(tmp_path):
    """On a shorter text the comparison with transformers could not distinguish the types."""
    logits = []
    for i, rope in enumerate(ROPES.values()):
        model = tiny_reference(rope_parameters=rope, head_dim=16, max_position_embeddings=24)
        logits.append(converters.load(save_folder(model, tmp_path / str(i)))(TOKENS)[0])
    for i, a in enumerate(logits):
        for b in logits[:i]:
            assert (a - b).abs().max() > 1e-3


def test_llama_equals_transformers_in_float32(tmp_path):
    model = tiny_reference(dtype=torch.float32)
    cell = converters.load(save_folder(model, tmp_path))
    with torch.no_grad():
        assert (cell(TOKENS)[0] - model(TOKENS).logits).abs().max() < 2e-3


@pytest.mark.parametrize("window", [1, 2, 7, 16])
def test_mistral_with_window_w_equals_a_window_of_w_minus_1(window, tmp_path, figure):
    model = tiny_reference("mistral", sliding_window=window)
    cell = converters.load(save_folder(model, tmp_path))
    assert str(cell.default_reduction) == f"window:{window - 1}"
    with float64_reference(model), torch.no_grad():
        expected = model(TOKENS).logits
    worst = (cell(TOKENS)[0] - expected).abs().max()
    figure(f"{worst:.1e} from transformers in float64: tiny Mistral, window {window}")
    assert worst <= 1e-9
    for other in (msrnn.Window(window), msrnn.Full()):
        logits, _ = cell(TOKENS, cell.initial_state(2, other))
        assert (logits - expected).abs().max() > 1e-2


def test_mistral_without_a_window_equals_transformers(tmp_path):
    assert logits_difference(tiny_reference("mistral", sliding_window=None), TOKENS, tmp_path) <= 1e-9


@pytest.mark.parametrize("early", [False, True], ids=["llama", "Yi"])
def test_yi_with_early_and_current_names_equals_transformers(early, tmp_path):
    model = tiny_reference(num_key_value_heads=1, rope_parameters={"rope_type": "default", "rope_theta": 5e6})
    folder = save_folder(model, tmp_path)
    if early:
        rewrite_as_early_yi(folder)
    cell = converters.load(folder)
    assert cell.config.family == ("yi" if early else "llama")
    with float64_reference(model):
        assert (cell(TOKENS)[0] - logits_by_steps(model, TOKENS)).abs().max() <= 1e-9


def rewrite_as_early_yi(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for old, new in (("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2")):
        tensors = {name.replace(old, new): x for name, x in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"model_type": "Yi", "architectures": ["YiForCausalLM"], "rope_theta": rope["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(config))


def test_real_weights_equal_transformers(smollm, hf_folder, figure):
    """512 tokens of the licence in float32; transformers is not patched."""
    from pathlib import Path

    from transformers import AutoModelForCausalLM

    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    tokens = torch.tensor([converters.tokenizer(hf_folder).encode(text).ids[:512]])
    assert tokens.shape == (1, 512)
    model = AutoModelForCausalLM.from_pretrained(hf_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(tokens).logits
    logits, _ = smollm(tokens)
    worst = (logits - expected).abs().max().item()
    figure(f"{worst:.1e} from transformers in float32: SmolLM2-135M, 512 tokens")
    assert worst <= 2e-3
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_tova_equals_the_official_code(smollm, figure):
    """The file in tests/data has the results of the official TOVA code, token by token, on these weights (arXiv:2401.06104)."""
    from pathlib import Path

    official = json.loads((Path(__file__).parents[1] / "data" / "tova_official_smollm2_k64.json").read_text())
    tokens = torch.tensor([official["tokens"]])
    logits, state = smollm(tokens[:, :-1], smollm.initial_state(1, msrnn.TOVA(official["state_size"])))
    nll = -logits[0].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    worst = (nll - torch.tensor(official["nll"])).abs().max().item()
    figure(
        f"{worst:.1e} from the nll of the official TOVA code: SmolLM2-135M, {len(nll)} tokens, size {official['state_size']}"
    )
    assert worst <= 1e-3
    assert logits[0].argmax(-1).tolist() == official["argmax"]
    retained = official["kept_positions_per_layer_after_last_token"]
    assert len(retained) == len(state) == 30
    for H, expected in zip(state, retained, strict=True):
        assert sorted(H.positions[0, 0].tolist()) == sorted(expected)
