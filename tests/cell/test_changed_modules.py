"""Modules that a user has wrapped, hooked, pruned or parametrized take effect in every way to read tokens.

The right values are those of transformers with the same change, and of an unchanged cell with merged weights.
"""

import copy

import pytest
import torch
from support.module_changes import CHANGES, CHANGES_OF_A_WEIGHT, MERGED, replace_module
from support.refusals import refusing
from support.tiny_models import assert_close, random_tokens
from support.transformers_reference import float64_reference, tiny_reference
from torch import nn

import converters
import msrnn
from msrnn.models import Decoder, DecoderConfig

NAMES = {  # names in a cell and in transformers
    **{f"layers.0.{name}": f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"},
    **{f"layers.1.{name}": f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")},
    **{
        "layers.1.attention_norm": "model.layers.1.input_layernorm",
        "layers.0.ffn_norm": "model.layers.0.post_attention_layernorm",
    },
    **{"norm": "model.norm", "embed": "model.embed_tokens", "head": "lm_head"},
}
TEXT = random_tokens(5, 2, 12)
REFERENCES = {tied: tiny_reference(tie_word_embeddings=tied) for tied in (False, True)}


def make_cell(kind: str, tied: bool) -> msrnn.Cell:
    """Return a frozen cell with the weights of the reference."""
    llama = converters.load(REFERENCES[tied])
    if kind == "llama":
        return llama
    fields = ("vocab_size", "width", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_width", "norm_eps", "tied")
    c = llama.config
    config = DecoderConfig(**{name: getattr(c, name) for name in fields}, context_length=64, positions=c.rope)
    decoder = Decoder(config).double().eval()
    decoder.load_state_dict(llama.state_dict())
    return decoder.requires_grad_(False)


def read_in_every_way(cell, reduction) -> dict[str, torch.Tensor]:
    """Return the logits ``(B, T, V)`` of each way to read ``TEXT``."""
    B = len(TEXT)
    logits = {
        "call": cell(TEXT, cell.initial_state(B, reduction))[0],
        "scan": cell.scan(TEXT, cell.initial_state(B, reduction))[0],
    }
    for name, step in (("step", cell.step), ("step_", cell.step_)):
        state, parts = cell.initial_state(B, reduction), []
        for token in TEXT.T:
            part, state = step(token, state)
            parts.append(part)
        logits[name] = torch.stack(parts, dim=1)
    _, state = cell(TEXT[:, :3], cell.initial_state(B, reduction))
    logits["call after a call"] = torch.cat((logits["call"][:, :3], cell(TEXT[:, 3:], state)[0]), dim=1)
    return logits


def assert_reads(cell, reduction, expected, atol=1e-9):
    for name, logits in read_in_every_way(cell, reduction).items():
        assert (logits - expected).abs().max() < atol, name


def is_possible(change: str, path: str) -> bool:
    """A norm is no matrix, and does not depend on the scale of its input."""
    return not ("norm" in path and change in ("lora", "lora with a weight", "weight norm", "pre-hook"))


@pytest.mark.parametrize("kind", ["llama", "decoder"])
@pytest.mark.parametrize(
    ("path", "change"), [(path, change) for path in (*NAMES, "tied embed") for change in CHANGES if is_possible(change, path)]
)
@torch.no_grad()
def test_changed_module_gives_the_logits_of_transformers_and_of_merged_weights(change, path, kind):
    tied, path = path == "tied embed", path.removeprefix("tied ")
    reference, cell = copy.deepcopy(REFERENCES[tied]), make_cell(kind, tied)
    plain = make_cell(kind, False) if not tied else make_untied()
    unchanged = cell(TEXT)[0]
    both = tied and change in CHANGES_OF_A_WEIGHT
    CHANGES[change](cell, path)
    cell.requires_grad_(False)
    with float64_reference(reference):
        for name in [NAMES[path], "lm_head"] if both else [NAMES[path]]:
            CHANGES[change](reference, name)
        expected = reference(TEXT).logits
    assert (expected - unchanged).abs().max() > 1e-3
    assert_reads(cell, "full", expected)
    for name in [path, "head"] if both else [path]:
        weight = plain.get_submodule(name).weight
        weight.copy_(MERGED[change](weight, path == "embed"))
    assert_reads(cell, "tova:5", plain(TEXT, plain.initial_state(2, "tova:5"))[0])
    expected = msrnn.generate(plain, TEXT, max_new_tokens=5)[0]
    assert msrnn.generate(cell, TEXT, max_new_tokens=5)[0].equal(expected)


def make_untied() -> msrnn.Cell:
    """Return an untied cell with the weights of the tied reference."""
    cell, tied = make_cell("llama", False), make_cell("llama", True)
    cell.load_state_dict(tied.state_dict() | {"head.weight": tied.embed.weight})
    return cell


ADDED = torch.linspace(-1, 1, 24, dtype=torch.float64)


class AddingLayer(nn.Module):
    """A wrapper of a layer; it passes on all arguments of a call."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def forward(self, *args, **kwargs):
        x, H = self.base(*args, **kwargs)
        return x + ADDED, H


@pytest.mark.parametrize("kind", ["llama", "decoder"])
@pytest.mark.parametrize("change", ["hook", "pre-hook of the next layer", "wrapper", "forward of the instance"])
@torch.no_grad()
def test_changed_layer_gives_the_logits_of_transformers(change, kind):
    reference, cell, twin = copy.deepcopy(REFERENCES[False]), make_cell(kind, False), make_cell(kind, False)
    reference.model.layers[0].register_forward_hook(lambda _, args, x: x + ADDED)
    twin.layers[0].down.register_forward_hook(lambda _, args, x: x + ADDED)  # the same sum
    if change == "hook":
        cell.layers[0].register_forward_hook(lambda _, args, output: (output[0] + ADDED, output[1]))
    elif change == "wrapper":
        replace_module(cell, "layers.0", AddingLayer)
    elif change == "forward of the instance":
        forward = cell.layers[0].forward
        cell.layers[0].forward = lambda *args, **kwargs: (lambda x, H: (x + ADDED, H))(*forward(*args, **kwargs))
    else:
        cell.layers[1].register_forward_pre_hook(lambda _, args: (args[0] + ADDED, *args[1:]))
    with float64_reference(reference):
        assert_reads(cell, "full", reference(TEXT).logits)
    assert_reads(cell, "tova:5", twin(TEXT, twin.initial_state(2, "tova:5"))[0])
    assert msrnn.generate(cell, TEXT, max_new_tokens=5)[0].equal(msrnn.generate(twin, TEXT, max_new_tokens=5)[0])


class NarrowLayer(AddingLayer):
    def forward(self, x, H):
        return self.base(x, H)


class FailingLayer(AddingLayer):
    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs) + None


@pytest.mark.parametrize("read", ["__call__", "scan", "step", "step_"])
def test_a_wrapper_with_another_forward_is_named(read):
    def read_with(wrapper):
        cell = make_cell("llama", False)
        replace_module(cell, "layers.1", wrapper)
        getattr(cell, read)(TEXT[:, 0] if "step" in read else TEXT, cell.initial_state(2, "tova:5"))

    with refusing("NarrowLayer.forward is called as that of a layer: got an unexpected keyword argument"):
        read_with(NarrowLayer)
    with pytest.raises(TypeError, match="can only concatenate tuple"):  # an error within the layer stays as it is
        read_with(FailingLayer)


@torch.no_grad()
def test_hooks_of_the_cell_see_every_call_and_step():
    cell, plain, seen = make_cell("llama", False), make_cell("llama", False), []
    cell.register_forward_pre_hook(lambda module, args: seen.append((module.config, args[0].shape)))
    cell.register_forward_hook(lambda module, args, output: (2 * output[0], *output[1:]))
    for reduction in ("full", "tova:5"):
        assert_reads(cell, reduction, 2 * plain(TEXT, plain.initial_state(2, reduction))[0])
        assert [shape for _, shape in seen[:3]] == [(2, 12), (2, 12), (2,)]  # a call, a scan, a step
        assert len(seen) == 2 + 2 * 12 + 2
        seen.clear()
    msrnn.generate(cell, TEXT, max_new_tokens=5)
    assert [shape for _, shape in seen] == [(2, 12), *[(2,)] * 5]
    assert all(config is cell.config for config, _ in seen)


def test_attributes_that_a_hook_sets_are_those_of_the_cell():
    cell = make_cell("llama", False)
    cell.register_forward_hook(lambda module, args, output: setattr(module, "last", output[0]))
    logits, _ = cell.step(TEXT[:, 0])
    assert cell.last is logits
    cell.register_forward_hook(lambda module, args, output: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cell.step(TEXT[:, 0])


def test_adapters_of_every_module_are_trained():
    """Every adapter gets the gradient of finite differences, by a call and by steps."""
    cell = make_cell("llama", False)
    for path in NAMES:
        if "norm" not in path:
            CHANGES["lora"](cell, path)
    adapters = {name: x for name, x in cell.named_parameters() if x.requires_grad}
    assert len(adapters) == 2 * (len(NAMES) - 3)

    def loss(in_steps):
        state = cell.initial_state(2, "tova:5")
        if not in_steps:
            return cell(TEXT, state)[0].tanh().sum()
        total = torch.zeros((), dtype=torch.float64)
        for token in TEXT.T:
            logits, state = cell.step(token, state)
            total = total + logits.tanh().sum()
        return total

    gradients = [torch.autograd.grad(loss(in_steps), list(adapters.values())) for in_steps in (False, True)]
    for x, a, b in zip(adapters.values(), *gradients, strict=True):
        assert_close(a, b, 1e-8)
        i, values = int(a.abs().argmax()), []
        for delta in (1e-6, -1e-6):
            with torch.no_grad():
                x.view(-1)[i] += delta
                values.append(loss(False))
                x.view(-1)[i] -= delta
        torch.testing.assert_close(a.view(-1)[i], (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ("lora", "head", "the cell has tensor 'head.a'"),
        ("wrapper", "layers.0.q", "the cell has tensor 'layers.0.q.base.weight'"),
        ("pruning", "layers.1.down", "the cell has no tensor 'layers.1.down.weight'"),
        ("parametrization", "norm", "the cell has tensor 'norm.parametrizations.weight.original'"),
    ],
)
def test_save_refuses_tensors_that_load_would_not_read(change, path, message, tmp_path):
    cell = make_cell("llama", False)
    CHANGES[change](cell, path)
    with pytest.raises(msrnn.Error, match=f"{message}; expected the tensors of its config"):
        cell.save(tmp_path / "cell")
    assert not (tmp_path / "cell").exists()
    CHANGES["hook"](cell := make_cell("decoder", True), "layers.0.q")
    cell.save(tmp_path / "hooked")  # a hook is no tensor
