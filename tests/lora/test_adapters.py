"""An adapted cell computes what a cell with the merged weights computes, on every path; only the adapters are trained."""

import copy
import pickle

import pytest
import torch
from support.adapters import TARGETS, adapt, merged_weights
from support.refusals import refusing
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell
from torch.nn.functional import cross_entropy

import converters
import msrnn
from msrnn import lora
from msrnn.layers.linear import Linear
from msrnn.models import Decoder, DecoderConfig
from msrnn.train.data import TrainBatch
from msrnn.train.trainer import chunk_loss

TEXT = random_tokens(3, 2, 14)
SETTINGS = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS}


def plain_twin(adapted, scaling=5 / 3):
    """Return a cell without adapters, with weights that were merged by hand."""
    twin = tiny_cell()
    twin.load_state_dict(merged_weights(adapted, scaling))
    return twin.requires_grad_(False)


@pytest.mark.parametrize("reduction", ["full", "tova:5", "h2o:6"])
@torch.no_grad()
def test_every_path_equals_a_cell_with_merged_weights(reduction):
    cell = adapt(tiny_cell(), **SETTINGS)
    twin = plain_twin(cell)
    logits, state = cell(TEXT, cell.initial_state(2, reduction))
    expected, expected_state = step_loop(twin, TEXT, twin.initial_state(2, reduction))
    assert (expected - tiny_cell()(TEXT)[0]).abs().max() > 0.1
    assert_close(logits, expected, 1e-10)
    assert_close(step_loop(cell, TEXT, cell.initial_state(2, reduction))[0], expected, 1e-10)
    assert_close(cell.scan(TEXT, cell.initial_state(2, reduction))[0], expected, 1e-10)
    assert_same(state, expected_state, 1e-10)
    tokens = msrnn.generate(twin, TEXT, twin.initial_state(2, reduction), max_new_tokens=6).tokens
    assert msrnn.generate(cell, TEXT, cell.initial_state(2, reduction), max_new_tokens=6).tokens.equal(tokens)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@torch.no_grad()
def test_merge_gives_a_plain_cell_that_is_saved_and_loaded(dtype, bound, tmp_path):
    cell = adapt(tiny_cell().to(dtype), **SETTINGS)
    before, names = cell(TEXT)[0], tiny_cell().state_dict().keys()
    merged = lora.merge(cell)
    assert merged is cell
    assert cell.state_dict().keys() == names
    assert not cell.adapters
    assert {type(x) for x in cell.layers[0].children() if isinstance(x, torch.nn.Linear)} == {Linear}
    assert not any(x.requires_grad for x in cell.parameters())
    after = cell(TEXT)[0]
    assert (after - before).abs().max() <= bound * before.abs().max()
    cell.save(tmp_path / "merged")
    assert msrnn.load(tmp_path / "merged")(TEXT)[0].equal(after)
    converters.convert(tmp_path / "merged", tmp_path / "hf", to="hf")
    assert converters.load(tmp_path / "hf").layers[1].down.weight.equal(cell.layers[1].down.weight)


def test_rslora_divides_by_the_root_of_the_rank():
    cell = adapt(tiny_cell(), **SETTINGS, use_rslora=True)
    assert_close(cell(TEXT)[0].detach(), plain_twin(cell, 5 / 3**0.5)(TEXT)[0], 1e-10)


def test_a_new_adapter_changes_nothing_and_remove_restores_the_cell():
    cell, plain = tiny_cell(), tiny_cell()
    weight = cell.layers[0].q.weight
    lora.add(cell)
    assert list(cell.adapters) == ["layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v"]
    assert cell(TEXT)[0].equal(plain(TEXT)[0])
    trained = {name for name, x in cell.named_parameters() if x.requires_grad}
    assert trained == lora.adapter_parameters(cell).keys()
    assert trained == {f"layers.{i}.{name}.lora_{part}" for i in (0, 1) for name in "qv" for part in "AB"}
    assert lora.remove(cell).layers[0].q.weight is weight
    assert cell.state_dict().keys() == plain.state_dict().keys()
    assert not any(x.requires_grad for x in cell.parameters())


def test_the_generator_alone_decides_on_the_initial_values():
    values = []
    for state in (0, 1):
        torch.manual_seed(state)
        cell = lora.add(tiny_cell(), generator=torch.Generator().manual_seed(7))
        values.append(cell.adapters["layers.1.v"].lora_A)
    assert values[0].equal(values[1])
    assert values[0].abs().max() > 0


@pytest.mark.parametrize("reduction", ["tova:5", "sinks:6:2"])
def test_gradients_through_an_operator_equal_those_of_the_step_loop(reduction):
    cell = adapt(tiny_cell(), **SETTINGS)
    parameters = [*lora.adapter_parameters(cell).values()]
    loss, _ = chunk_loss(cell, TrainBatch(TEXT[:, :-1], TEXT[:, 1:], True), None, reduction)
    logits, _ = _steps(cell, TEXT[:, :-1], reduction)
    expected = cross_entropy(logits.flatten(0, 1), TEXT[:, 1:].flatten())
    for a, b in zip(*(torch.autograd.grad(x, parameters) for x in (loss, expected)), strict=True):
        assert_close(a, b, 1e-10)
        assert b.abs().max() > 1e-6


def _steps(cell, text, reduction):
    state, logits = cell.initial_state(len(text), reduction), []
    for token in text.T:
        read, state = cell.step(token, state)
        logits.append(read)
    return torch.stack(logits, dim=1), state


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_adapters_of_packed_weights_get_the_gradients_of_the_dequantised_cell(weights):
    fields = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    from support.transformers_reference import tiny_reference

    packed = converters.load(tiny_reference(**fields), weights=weights, dtype=torch.float64)
    plain = converters.load((_dequantised(packed), packed.config), dtype=torch.float64)
    settings = {"r": 2, "target_modules": "all-linear"}
    found = []
    for cell in (packed, plain):
        adapt(cell, **settings)
        loss, _ = chunk_loss(cell, TrainBatch(TEXT[:, :-1], TEXT[:, 1:], True), None, "tova:5")
        found.append((loss, torch.autograd.grad(loss, [*lora.adapter_parameters(cell).values()])))
    assert packed.adapters["layers.0.q"].lora_A.dtype == torch.float64
    assert abs(found[0][0] - found[1][0]) < 1e-10
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert_close(a, b, 1e-10)
    assert packed.adapters.keys() == plain.adapters.keys()
    with refusing("merge: layers.0.q has a packed weight, which a merge would quantise again; expected float weights"):
        lora.merge(packed)


def _dequantised(cell):
    tensors = {}
    for name, x in cell.state_dict().items():
        stem, _, part = name.rpartition(".")
        if part == "codes":
            tensors[f"{stem}.weight"] = cell.get_submodule(stem).matrix.dequantise(torch.float64)
        elif part not in ("scales", "zeros"):
            tensors[name] = x
    return tensors


def test_adapters_of_a_bfloat16_cell_are_float32_and_merge_rounds_once():
    cell = adapt(tiny_cell().bfloat16(), **SETTINGS)
    x = cell.adapters["layers.0.q"]
    assert x.lora_A.dtype == x.lora_B.dtype == torch.float32
    assert cell(TEXT)[0].dtype == torch.bfloat16
    expected = (x.base_layer.weight.double() + 5 / 3 * x.lora_B.double() @ x.lora_A.double()).detach().bfloat16()
    lora.merge(cell)
    assert (cell.layers[0].q.weight != expected).double().mean() < 0.01  # rounded from float32 there


def test_dropout_acts_in_training_mode_only():
    cell = adapt(tiny_cell(), lora_dropout=0.5)
    evaluated = cell(TEXT)[0]
    assert cell(TEXT)[0].equal(evaluated)
    torch.manual_seed(0)
    assert not cell.train()(TEXT)[0].equal(evaluated)


def test_a_decoder_and_one_layer_can_be_adapted():
    torch.manual_seed(0)
    fields = {"vocab_size": 61, "width": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "context_length": 64}
    cell = Decoder(DecoderConfig(**fields, ffn="relu", ffn_width=20, positions="alibi")).double().eval().requires_grad_(False)
    before = cell(TEXT)[0]
    adapt(cell, target_modules=("layers.1.up", "o"))
    assert list(cell.adapters) == ["layers.0.o", "layers.1.o", "layers.1.up"]
    adapted = cell(TEXT)[0].detach()
    assert (adapted - before).abs().max() > 1e-3
    assert_close(lora.merge(cell)(TEXT)[0], adapted, 1e-10)


def test_copies_and_moves_keep_the_adapters():
    cell = adapt(tiny_cell(), **SETTINGS).requires_grad_(False)
    expected = cell(TEXT)[0]
    for copied in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert copied.adapters["layers.0.q"] is copied.layers[0].q
        assert copied(TEXT)[0].equal(expected)
    assert cell.float().adapters["layers.1.down"].lora_B.dtype == torch.float32
