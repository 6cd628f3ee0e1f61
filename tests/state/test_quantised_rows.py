"""8-bit rows as values: rounding, dtypes, files, bytes."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, safe_open, save_file
from support.cell_strategies import examples
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell

import msrnn
from msrnn.state.quantised_rows import dequantise_rows, encode_rows, parse_row_dtype, quantise_rows, replace_values

CELL, TEXT = tiny_cell(), random_tokens(1, 2, 9)


def int8_state(reduction="h2o:4", cell=CELL):
    return cell(TEXT, cell.initial_state(2, reduction, dtype=torch.int8))[1]


@given(st.integers(0, 999), st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
@examples(20)
def test_rounding_error_is_at_most_half_a_step_of_the_row(seed, dtype):
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = (x * 10.0 ** torch.arange(-2, 3)[:, None]).to(dtype)
    stored = encode_rows(x, -2 * x, True)
    assert {name: y.dtype for name, y in stored.items()} == {
        **dict.fromkeys(("keys", "values"), torch.int8),
        **dict.fromkeys(("key_scales", "value_scales"), torch.float32),
    }
    scale = x.double().abs().amax(-1) / 127
    assert_close(stored["key_scales"].double() / scale, torch.ones_like(scale), 1e-6)
    keys = dequantise_rows(stored["keys"], stored["key_scales"], torch.float64)
    assert ((keys - x.double()).abs() <= 0.5001 * scale[..., None]).all()
    assert stored["values"].double().abs().amax(-1).eq(127).all()


def test_rows_of_zeros_and_of_nan():
    codes, scales = quantise_rows(torch.tensor([[0.0, 0.0], [1.0, torch.nan], [torch.inf, 2.0], [2.0, -0.5]]))
    assert codes[0].tolist() == [0, 0]
    assert scales[0] > 0
    assert not scales[1:3].isfinite().any()
    assert codes[3].tolist() == [127, -32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_are_rounded_once(dtype):
    rows, scales = torch.arange(-127, 128, dtype=torch.int8), torch.tensor(3.1e-7)  # float16 has 3.0e-7 and 3.6e-7
    assert torch.equal(dequantise_rows(rows, scales, dtype), (rows.double() * scales.double()).to(dtype))


def test_merge_leaves_the_codes_of_other_rows():
    x = torch.randn(4, 8, dtype=torch.float64)
    stored = encode_rows(x, x, True)
    before = dequantise_rows(stored["values"], stored["value_scales"], x.dtype)
    after = replace_values(stored, before, before + torch.tensor([0.0, 0, 1, 0])[:, None])
    same = [True, True, False, True]
    assert (after["values"] == stored["values"]).all(-1).tolist() == same
    assert (after["value_scales"] == stored["value_scales"]).tolist() == same
    assert (dequantise_rows(after["values"], after["value_scales"], x.dtype) - before - 1)[2].abs().max() < 0.05


def test_dtypes_of_rows():
    assert parse_row_dtype("int8") is parse_row_dtype(torch.int8) is torch.int8
    assert parse_row_dtype(None) is None
    assert parse_row_dtype(torch.bfloat16) is torch.bfloat16
    for dtype in ("float32", "int4", torch.int16, torch.uint8, torch.bool, torch.float8_e4m3fn, 8, [torch.int8]):
        with pytest.raises(msrnn.Error, match=r"expected a floating-point torch\.dtype"):
            parse_row_dtype(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cells_of_every_dtype_read_8_bit_rows_and_no_other_cell_does(dtype):
    cell = tiny_cell(dtype=dtype)
    logits, state = cell.step(TEXT[:, 0], int8_state(cell=cell))
    assert logits.dtype == dtype
    assert state.dtype == torch.int8
    assert state[0].row_stats["accumulated_attention"].dtype == torch.promote_types(dtype, torch.float32)
    other = torch.float64 if dtype == torch.float32 else torch.float32
    with pytest.raises(msrnn.Error, match=rf"expected {dtype}"):
        cell.step(TEXT[:, 0], tiny_cell(dtype=other).initial_state(2))
    with pytest.raises(msrnn.Error, match="another model"):
        tiny_cell(seed=1, dtype=dtype).step(TEXT[:, 0], state)
    exact, _ = cell(TEXT)
    rounded, _ = cell(TEXT, cell.initial_state(2, dtype=torch.int8))
    steps, state = [], cell.initial_state(2, dtype=torch.int8)
    for token in TEXT.T:
        logits, state = cell.step(token, state)
        steps.append(logits)
    assert (rounded - exact).abs().mean() < 0.1
    assert (rounded - torch.stack(steps, dim=1)).abs().mean() < {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.1)


def test_to_rounds_and_restores_numbers():
    exact = CELL(TEXT, CELL.initial_state(2, "h2o:4"))[1]
    eight = exact.to(torch.int8)
    assert_same(exact.to(dtype="int8"), eight)
    assert_same(exact.to("cpu", "int8"), eight)
    assert_same(eight.to("cpu"), eight)
    assert_same(eight.to(torch.int8), eight)
    numbers = eight.to(torch.float64)
    assert numbers.dtype == torch.float64
    for G, H, E in zip(exact, numbers, eight, strict=True):
        assert H.key_scales is None
        assert_close(G.keys, H.keys, 0.05)
        assert H.keys.equal(E.keys.double() * E.key_scales.double()[..., None])
        assert H.row_stats["accumulated_attention"].equal(E.row_stats["accumulated_attention"])
        assert E.row_stats["accumulated_attention"].dtype == torch.float64
    assert_close(CELL.step(TEXT[:, 0], numbers)[0], CELL.step(TEXT[:, 0], exact)[0], 0.2)
    assert eight.to(torch.float32)[0].keys.dtype == torch.float32
    with pytest.raises(msrnn.Error, match=r"int16.*expected a floating-point torch\.dtype"):
        exact.to(torch.int16)


@pytest.mark.parametrize("reduction", ["full", "h2o:4", "tova:4", ["window:3", "full"]], ids=str)
def test_saved_state_is_read_back_and_continues(reduction, tmp_path):
    state = int8_state(reduction)
    state.save(tmp_path / "state")
    found = msrnn.load_state(tmp_path / "state")
    for again in (found, pickle.loads(pickle.dumps(state)), state.clone()):
        assert_same(again, state)
        for (one, G), (other, H) in ((CELL.step(TEXT[:, 0], s), CELL(TEXT, s)) for s in (again,)):
            expected, E = CELL.step(TEXT[:, 0], state)
            assert one.equal(expected)
            assert_same(G, E)
            assert other.equal(CELL(TEXT, state)[0])
            assert_same(H, CELL(TEXT, state)[1])


def test_only_files_of_8_bit_rows_have_the_new_version(tmp_path):
    for dtype, version in ((None, "2"), (torch.int8, "3")):
        CELL.initial_state(2, dtype=dtype).save(tmp_path / "state")
        with safe_open(tmp_path / "state", "pt") as file:
            assert file.metadata()["version"] == version
            assert any("scales" in name for name in file.keys()) == (dtype is not None)  # noqa: SIM118


DAMAGE = {
    "no scales": (lambda t, a: t.pop("layers.0.key_scales"), r"incomplete.*layers\.0\.key_scales"),
    "float keys": (lambda t, a: t.update({"layers.0.keys": t["layers.0.keys"].float()}), "contradict"),
    "float values": (lambda t, a: t.update({"layers.1.values": t["layers.1.values"].float()}), "contradict"),
    "the version of floats": (lambda t, a: a.update(version="2"), "scales' is not part"),
    "an unknown version": (lambda t, a: a.update(version="5"), "version '5'; expected '2', '3' or '4'"),
    "the version of jagged rows": (lambda t, a: a.update(version="4"), "version 4 without jagged rows"),
    "short scales": (lambda t, a: t.update({"layers.0.key_scales": t["layers.0.key_scales"][..., 1:].clone()}), "contradict"),
    "NaN": (lambda t, a: t["layers.0.value_scales"][0, 1, 2].fill_(torch.nan), "values are not finite"),
    "infinity": (lambda t, a: t["layers.0.key_scales"][0, 1, 2].fill_(torch.inf), "keys are not finite"),
    "a scale of zero": (lambda t, a: t["layers.0.key_scales"][0, 1, 2].fill_(0), "scales of keys .*expected float32 above 0"),
    "a negative scale": (lambda t, a: t["layers.1.value_scales"].neg_(), "scales of values .*expected float32 above 0"),
    "wide scales": (
        lambda t, a: t.update({"layers.0.key_scales": t["layers.0.key_scales"].double()}),
        "scales of keys are torch.float64",
    ),
    "integer scales": (lambda t, a: t.update({"layers.0.key_scales": t["layers.0.key_scales"].int()}), "scales of keys"),
    "an integer out of range": (lambda t, a: t["layers.0.keys"][0, 1, 2, 3].fill_(-128), "-128"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_is_refused(damage, message, tmp_path):
    int8_state(["h2o:4", "full"]).save(tmp_path / "state")
    tensors = load_file(tmp_path / "state")
    with safe_open(tmp_path / "state", "pt") as file:
        entries = file.metadata()
    damage(tensors, entries)
    save_file(tensors, tmp_path / "state", entries)
    with pytest.raises(msrnn.Error, match=message):
        msrnn.load_state(tmp_path / "state")


def test_bytes_and_summary():
    cell = tiny_cell(head_dim=64, dtype=torch.float32)
    states = {dtype: cell(TEXT, cell.initial_state(2, "tova:4", dtype=dtype))[1] for dtype in (None, torch.int8)}
    rows = 2 * 2 * 2 * 4  # layers, sequences, heads, rows
    assert sum(x.nbytes for H in states[torch.int8] for x in H.rows.values()) == rows * (2 * 64 + 2 * 4 + 8)
    assert sum(x.nbytes for H in states[None] for x in H.rows.values()) == rows * (2 * 64 * 4 + 8)
    assert states[torch.int8].nbytes < 0.3 * states[None].nbytes
    assert states[torch.int8].nbytes < states[None].to(torch.bfloat16).nbytes
    assert "9 tokens read, int8, " in str(states[torch.int8])
    assert "9 tokens read, float32, " in str(states[None])
