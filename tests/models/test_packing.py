"""Tests of cells with packed weights: modules, state dicts, folders, refusals, and agreement of step and many-token path."""

import copy
import pickle

import pytest
import torch
from support.packed_models import SHAPES, dequantised, packed_cell
from support.tiny_models import assert_close, random_tokens, step_loop, tiny_cell, tiny_decoder

import converters
import msrnn
from msrnn.layers.packed.modules import Int4Linear, Int8Embedding, Int8Linear, PackedModule


def test_which_modules_are_packed():
    for weights, kind in (("int4", Int4Linear), ("int8", Int8Linear)):
        cell = packed_cell(weights, tied=False)
        assert type(cell.embed) is Int8Embedding
        assert type(cell.head) is Int8Linear
        assert {type(getattr(layer, name)) for layer in cell.layers for name in ("q", "k", "v", "o", "gate", "up", "down")} == {
            kind
        }
        assert [name for name, _ in cell.named_parameters()] == [
            *(f"layers.{i}.{norm}.weight" for i in range(2) for norm in ("attention_norm", "ffn_norm")),
            "norm.weight",
        ]
    odd = packed_cell("int4", ffn_width=40)  # 40 is no multiple of 32
    assert {type(m) for m in (odd.layers[0].gate, odd.layers[0].down)} == {Int8Linear}
    assert type(odd.layers[0].o) is Int4Linear


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weights", ["int4", "int8"])
@pytest.mark.parametrize("reduction", ["full", "tova:6", "h2o:6", "window:6", "tova-head:6"])
def test_step_loop_many_tokens_and_the_dequantised_cell_agree_in_float64(weights, tied, reduction):
    cell, text = packed_cell(weights, tied=tied), random_tokens(1, 2, 23)
    logits, state = cell(text, cell.initial_state(2, reduction))
    stepped, after = step_loop(cell, text, cell.initial_state(2, reduction))
    plain = dequantised(cell)
    expected, _ = plain(text, plain.initial_state(2, reduction))
    assert_close(logits, stepped)
    assert_close(logits, expected)
    assert torch.equal(state[1].positions.sort(-1).values, after[1].positions.sort(-1).values)


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_bfloat16_agrees_with_float64_up_to_rounding(weights):
    cell, text = packed_cell(weights, dtype=None, tied=True), random_tokens(1, 2, 23)
    assert cell.dtype == torch.bfloat16
    exact, _ = dequantised(cell)(text)
    many, state = cell(text)
    stepped, _ = step_loop(cell, text, cell.initial_state(2))
    assert state[0].keys.dtype == many.dtype == torch.bfloat16
    for logits in (many, stepped):
        assert (logits - exact).abs().mean() < 0.03 * exact.abs().mean()


@pytest.mark.parametrize("weights", ["int4", "int8"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_packed_cell_is_saved_and_loaded_unchanged(weights, dtype, tmp_path):
    cell, text = packed_cell(weights, dtype, tied=True), random_tokens(1, 2, 9)
    _, state = cell(text, cell.initial_state(2, "tova:4"))
    cell.save(tmp_path / "own")
    state.save(tmp_path / "state")
    for load in (msrnn.load, converters.load):
        again = load(tmp_path / "own")
        assert again.dtype == dtype
        assert torch.equal(again(text)[0], cell(text)[0])
        token = random_tokens(2, 1, 2)[0]
        assert torch.equal(again.step(token, msrnn.load_state(tmp_path / "state"))[0], cell.step(token, state)[0])


def test_state_dicts_are_those_of_files(tmp_path):
    cell = packed_cell("int4", tied=True)
    tensors = cell.state_dict()
    found = [name for name in tensors if name.startswith("layers.0.q.")]
    assert found == [f"layers.0.q.{part}" for part in ("codes", "scales", "zeros")]
    other = packed_cell("int4", tied=True, dtype=torch.float64)
    with torch.no_grad():
        for x in other.parameters():
            x.zero_()
        for module in other.modules():
            if isinstance(module, PackedModule):
                for x in module.buffers(recurse=False):
                    x.zero_()
    other.load_state_dict(tensors)
    text = random_tokens(1, 1, 5)
    assert_close(other(text)[0], cell(text)[0])
    for change, message in (
        (lambda t: t.pop("layers.0.q.zeros"), r"Missing key.*layers\.0\.q\.zeros"),
        (lambda t: t.update({"layers.0.q.weight": torch.zeros(64, 64)}), r"Unexpected key.*layers\.0\.q\.weight"),
        (
            lambda t: t.update({"embed.codes": t["embed.codes"][:3]}),
            r"embed\.codes is int8 of shape \(3, 64\); expected .*\(50, 64\)",
        ),
        (lambda t: t.update({"embed.codes": t["embed.codes"].float()}), r"embed\.codes is float32"),
        (lambda t: t.update({"embed.scales": t["embed.scales"].int()}), r"embed\.scales is int32 of shape \(50,\)"),
        (lambda t: t.update({"embed.scales": 1}), r"embed\.scales is int 1; expected torch\.bfloat16 of shape \(50,\)"),
    ):
        changed = dict(tensors)
        change(changed)
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(changed)


def test_projections_of_one_input_are_one_product(monkeypatch):
    shapes = {"n_heads": 4, "n_kv_heads": 4, "ffn_width": 128}  # multiples of 64: one kind of blocks on every CPU
    cell, text = packed_cell("int4", torch.float32, n_layers=1, **shapes), random_tokens(1, 1, 1)
    expected = cell(text)[0]
    calls = []
    product = Int4Linear.product
    monkeypatch.setattr(Int4Linear, "product", staticmethod(lambda *x: calls.append(x[1].shape) or product(*x)))
    for change in (
        *(lambda x: x, copy.deepcopy, lambda x: x.to(torch.float32), lambda x: x.double().float()),
        lambda x: pickle.loads(pickle.dumps(x)),
        lambda x: x if x.load_state_dict(x.state_dict()) else None,
    ):
        calls.clear()
        assert_close(change(cell)(text)[0], expected, atol=1e-5)
        assert len(calls) == 4  # q, k and v; o; gate and up; down
    cell.layers[0].k.set_matrix(cell.layers[0].q.matrix._replace(**cell.layers[0].k.matrix._asdict()))
    calls.clear()
    assert_close(cell(text)[0], expected, atol=1e-5)
    assert len(calls) == 6  # k has moved


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_to_changes_the_dtype_and_not_the_numbers(weights):
    cell, text = packed_cell(weights, torch.bfloat16), random_tokens(1, 1, 9)
    wide = copy.deepcopy(cell).to(torch.float64)
    assert wide.dtype == torch.float64
    assert_close(wide(text)[0], dequantised(cell)(text)[0])


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_loaded_cells_take_another_state_dict(weights, tmp_path):
    cell, other, text = packed_cell(weights, None), packed_cell(weights, None, seed=5), random_tokens(1, 1, 9)
    cell.save(tmp_path / "own")
    before = (tmp_path / "own" / "model.safetensors").read_bytes()
    loaded, untouched = msrnn.load(tmp_path / "own"), msrnn.load(tmp_path / "own")  # their weights may be views of the file
    for assign in (False, True):
        loaded.load_state_dict(other.state_dict(), assign=assign)
        assert torch.equal(loaded(text)[0], other(text)[0])
        assert torch.equal(untouched(text)[0], cell(text)[0])
    assert (tmp_path / "own" / "model.safetensors").read_bytes() == before


def test_packed_weights_are_not_trained():
    cell = packed_cell("int4", torch.float32)
    with pytest.raises(msrnn.Error, match="packed weights cannot be trained"):
        cell.requires_grad_()
    cell.requires_grad_(False)
    # a gradient with respect to other parameters passes through
    cell.norm.weight.requires_grad_()
    cell.layers[0].attention_norm.weight.requires_grad_()
    cell(random_tokens(1, 1, 5))[0].sum().backward()
    assert cell.layers[0].attention_norm.weight.grad.abs().sum() > 0


def test_a_decoder_is_refused(tmp_path):
    tiny_decoder().save(tmp_path / "decoder")
    for weights in ("int8", "packed"):
        with pytest.raises(msrnn.Error, match="weights= is given for a decoder; expected a published family"):
            converters.load(tmp_path / "decoder", weights=weights)


def test_states_of_float_and_packed_cells_are_told_apart():
    cell, text = tiny_cell(dtype=torch.bfloat16, **SHAPES), random_tokens(1, 1, 5)
    four, eight = packed_cell("int4", None), packed_cell("int8", None)
    for a, b in ((cell, four), (four, eight), (four, cell)):
        with pytest.raises(msrnn.Error, match="state belongs to another model"):
            b.step(text[:, 0], a(text)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.0.q.zeros"), r"'layers\.0\.q\.zeros' missing"),
        (lambda t: t.update({"layers.0.q.codes": t["layers.0.q.codes"].short()}), r"'layers\.0\.q\.codes' is torch\.int16"),
        (lambda t: t.update({"layers.0.z.codes": t["layers.0.q.codes"].clone()}), r"'layers\.0\.z\.codes' is not part"),
        (lambda t: t.update({"layers.0.q.codes": t["layers.0.q.codes"][:, :8]}), r"'layers\.0\.q\.codes' has shape"),
        (lambda t: t.update({"layers.0.q.weight": torch.zeros(64, 64)}), r"'layers\.0\.q\.weight' is not part"),
        (lambda t: t.update({"layers.0.q.scales": t["layers.0.q.scales"].int()}), r"'layers\.0\.q\.scales' is torch\.int32"),
        (
            lambda t: t.update({"embed.scales": t["embed.scales"].half()}),
            r"'embed\.scales' is torch\.float16; expected torch\.bfloat16",
        ),
    ],
)
def test_damaged_folders_are_refused(change, message, tmp_path):
    import safetensors.torch

    packed_cell("int4").save(tmp_path / "own")
    tensors = safetensors.torch.load_file(tmp_path / "own" / "model.safetensors")
    change(tensors)
    tensors = {name: x.contiguous() for name, x in tensors.items()}
    safetensors.torch.save_file(tensors, tmp_path / "own" / "model.safetensors", {"format": "pt"})
    for load in (msrnn.load, converters.load):
        with pytest.raises(msrnn.Error, match=message):
            load(tmp_path / "own")


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_small_scales_keep_their_bits_in_float16(weights):
    """The weights of ``down`` and of the embedding are so small that their scales are subnormal in float16, or 0."""
    cell = tiny_cell(dtype=torch.float32, tied=False, **SHAPES)
    with torch.no_grad():
        cell.embed.weight *= 1e-6
        cell.layers[0].down.weight *= 1e-3
    source = (cell.state_dict(), cell.config)
    exact = converters.load(source, weights=weights, dtype=torch.float64)
    loaded = converters.load(source, weights=weights, dtype=torch.float16)
    for half in (loaded, converters.load(source, weights=weights).half()):
        assert half.dtype == torch.float16
        for name in ("embed", "layers.0.down"):
            found, expected = half.get_submodule(name).matrix, exact.get_submodule(name).matrix
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None)
        text = random_tokens(1, 1, 9)
        assert half(text)[0].dtype == torch.float16
        x = random_tokens(2, 1, 5)
        assert torch.allclose(half.embed(x).double(), exact.embed(x), rtol=1e-6)
