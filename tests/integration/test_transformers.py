"""Unbounded, a cell is the model that transformers runs; Mistral's window is a bounded state."""

import json

import pytest
import torch
from support.transformers_reference import ROPES, float64_reference, logits_by_steps, save_folder, tiny_reference

import converters
import msrnn

TOKENS = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(1))


def difference(model, tokens, folder, reduction=None):
    """Largest difference of logits between the float64 reference, stepped, and our cell read from its folder."""
    cell = converters.load(save_folder(model, folder))
    with float64_reference(model):
        expected = logits_by_steps(model, tokens)
    logits, _ = cell(tokens, cell.initial_state(len(tokens), reduction))
    return (logits - expected).abs().max().item()


@pytest.mark.parametrize(
    "facts",
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
def test_unbounded_llama_is_transformers(facts, tmp_path, request, figure):
    worst = difference(tiny_reference(**facts), TOKENS, tmp_path)
    figure(f"{worst:.1e} from transformers in float64: tiny LLaMA, {request.node.callspec.id}")
    assert worst <= 1e-9


def test_a_misspelt_field_of_the_reference_does_not_pass():
    with pytest.raises(AssertionError, match="n_kv_headz"):
        tiny_reference(n_kv_headz=2)


def test_rope_kinds_differ_where_they_should(tmp_path):
    """The test above could not tell the kinds apart if the text were too short for them."""
    logits = []
    for i, rope in enumerate(ROPES.values()):
        model = tiny_reference(rope_parameters=rope, head_dim=16, max_position_embeddings=24)
        logits.append(converters.load(save_folder(model, tmp_path / str(i)))(TOKENS)[0])
    for i, a in enumerate(logits):
        for b in logits[:i]:
            assert (a - b).abs().max() > 1e-3


def test_unpatched_float32_reference(tmp_path):
    model = tiny_reference(dtype=torch.float32)
    cell = converters.load(save_folder(model, tmp_path))
    with torch.no_grad():
        assert (cell(TOKENS)[0] - model(TOKENS).logits).abs().max() < 2e-3


@pytest.mark.parametrize("window", [1, 2, 7, 16])
def test_mistral_is_a_window_of_one_less(window, tmp_path, figure):
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


def test_mistral_without_a_window(tmp_path):
    assert difference(tiny_reference("mistral", sliding_window=None), TOKENS, tmp_path) <= 1e-9


@pytest.mark.parametrize("early", [False, True], ids=["llama", "Yi"])
def test_yi_in_both_spellings(early, tmp_path):
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
    facts = json.loads((folder / "config.json").read_text())
    rope = facts.pop("rope_parameters")
    facts |= {"model_type": "Yi", "architectures": ["YiForCausalLM"], "rope_theta": rope["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(facts))


def test_real_weights(smollm, hf_folder, figure):
    """512 tokens of the licence, float32, transformers as it is."""
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


def test_tova_is_the_authors_own(smollm, figure):
    """The official TOVA code, run token by token on these weights (tests/data, arXiv:2401.06104)."""
    from pathlib import Path

    golden = json.loads((Path(__file__).parents[1] / "data" / "tova_official_smollm2_k64.json").read_text())
    tokens = torch.tensor([golden["tokens"]])
    logits, state = smollm(tokens[:, :-1], smollm.initial_state(1, msrnn.TOVA(golden["state_size"])))
    nll = -logits[0].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    worst = (nll - torch.tensor(golden["nll"])).abs().max().item()
    figure(f"{worst:.1e} from the official TOVA's nll: SmolLM2-135M, {len(nll)} tokens, size {golden['state_size']}")
    assert worst <= 1e-3
    assert logits[0].argmax(-1).tolist() == golden["argmax"]
    kept = golden["kept_positions_per_layer_after_last_token"]
    assert len(kept) == len(state) == 30
    for H, expected in zip(state, kept, strict=True):
        assert sorted(H.positions[0, 0].tolist()) == sorted(expected)
