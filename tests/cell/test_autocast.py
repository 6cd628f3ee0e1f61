"""Training and reading under ``torch.autocast``: projections in 16 bits; states and attention in the dtype of the cell."""

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell, tiny_decoder

from msrnn.models import EncoderDecoder
from msrnn.models.encoder_decoder import EncoderDecoderConfig

TEXT = random_tokens(5, 2, 12)
OPERATORS = ["full", "window:4", "sinks:4:1", "h2o:4", "tova:4", "tova-head:4", "keydiff:4", "cam:8", "morphkv:8:4", "caote:4"]


def gradients(cell, read, reduction, dtype=None):
    """Return the logits, the state and all gradients of a loss of ``read``, under autocast if a dtype is given."""
    cell.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits, state = read(cell, TEXT, cell.initial_state(len(TEXT), reduction))
    logits.log_softmax(-1)[..., 3].mean().backward()
    return logits, state, torch.cat([x.grad.flatten() for x in cell.parameters() if x.grad is not None])


READ = {
    "call": lambda cell, text, state: cell(text, state),
    "scan": lambda cell, text, state: (lambda logits, trace: (logits, trace.at(text.shape[1])))(*cell.scan(text, state)),
    "steps": step_loop,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", OPERATORS)
def test_gradients_under_autocast_are_near_those_of_float32(reduction, dtype):
    cell = tiny_cell(dtype=torch.float32, frozen=False)
    _, _, expected = gradients(cell, READ["call"], reduction)
    for name, read in READ.items():
        logits, state, found = gradients(cell, read, reduction, dtype)
        assert logits.dtype == state.dtype == torch.float32, name
        assert found.isfinite().all()
        near = torch.nn.functional.cosine_similarity(found, expected, dim=0)
        assert near > (0.98 if dtype == torch.bfloat16 else 0.998), (name, near)
    assert (found - expected).abs().max() > 0  # autocast has an effect


@pytest.mark.parametrize("reduction", ["full", "h2o:4", "tova:4"])
def test_step_and_call_keep_the_same_rows_under_autocast(reduction):
    cell = tiny_cell(dtype=torch.float32, frozen=False)
    _, expected, _ = gradients(cell, READ["steps"], reduction, torch.bfloat16)
    for name in ("call", "scan"):
        _, state, _ = gradients(cell, READ[name], reduction, torch.bfloat16)
        assert_same(state.detach(), expected.detach(), 0.2)


@pytest.mark.parametrize("reduction", ["full", "h2o:4", "tova:4"])
@torch.no_grad()
def test_a_step_under_autocast_equals_one_layer_after_the_other(reduction):
    cell = tiny_cell(dtype=torch.float32)
    _, state = step_loop(cell, TEXT, cell.initial_state(2, reduction))
    with torch.autocast("cpu", torch.bfloat16):
        logits, after = cell.step(TEXT[:, 0], state)
        x, layers = cell.embed(TEXT[:, 0]), []
        for layer, H in zip(cell.layers, state, strict=True):
            x, H = layer.step(x, H)
            layers.append(H)
        expected = cell.compute_logits(x).float()
    assert_close(logits, expected, 1e-6)
    assert_same(after, state.with_layers(layers), 1e-6)


@pytest.mark.parametrize(
    "fields", [{}, {"norm": "layer", "norm_placement": "post", "bias": True, "ffn": "gelu", "positions": "alibi"}]
)
def test_decoder_trains_under_autocast(fields):
    cell = tiny_decoder(frozen=False, **fields).float()
    _, _, expected = gradients(cell, READ["call"], "full")
    for name, read in READ.items():
        logits, _, found = gradients(cell, read, "full", torch.bfloat16)
        assert logits.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.98, name


def test_encoder_decoder_trains_under_autocast():
    torch.manual_seed(0)
    cell = EncoderDecoder(EncoderDecoderConfig(width=24, n_layers=2, n_heads=4, ffn_width=32, vocab_size=50)).eval()
    found = []
    for enabled in (False, True):
        for read in (READ["call"], READ["steps"]):
            cell.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                logits, _ = read(cell, TEXT, cell.encode(TEXT))
            logits.log_softmax(-1)[..., 3].mean().backward()
            found.append(torch.cat([x.grad.flatten() for x in cell.parameters()]))
    for other in found[1:]:
        assert torch.nn.functional.cosine_similarity(found[0], other, dim=0) > 0.98


@pytest.mark.parametrize("reduction", ["full", "tova:4"])
def test_float32_adapter_in_a_16_bit_cell(reduction):
    """The residual stream and H keep the dtype of the cell, so a module may return float32."""
    cell = tiny_cell(dtype=torch.bfloat16)
    expected = cell(TEXT, cell.initial_state(2, reduction))[0]
    for path in ("embed", "head", *(f"layers.0.{name}" for name in ("q", "v", "o", "gate", "down"))):
        cell.get_submodule(path).register_forward_hook(lambda _, args, output: output.float())
    logits, state = cell(TEXT, cell.initial_state(2, reduction))
    stepped, _ = step_loop(cell, TEXT, cell.initial_state(2, reduction))
    assert logits.dtype == stepped.dtype == state.dtype == torch.bfloat16
    for found in (logits, stepped):
        assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()
