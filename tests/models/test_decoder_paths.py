"""Every path of the Decoder gives the results of the step loop; decoding, saved cells and saved states."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import ROPES, assert_close, assert_same, random_tokens, step_loop, tiny_decoder

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.models.decoder_config import CHOICES, POSITIONS

TEXT = random_tokens(1, 3, 20)


BOUNDED = ["full", "window:3", "sinks:5:2", "tova:4", "tova-head:4", "h2o:5"]


@st.composite
def cells(draw, **fixed):
    positions = draw(st.sampled_from([*POSITIONS, ROPES["default"], ROPES["dynamic"]]))
    ffn = draw(st.sampled_from(CHOICES["ffn"]))
    flags = {name: draw(st.booleans()) for name in ("bias", "tied", "fixnorm")}
    return tiny_decoder(
        draw(st.integers(0, 99)),
        n_kv_heads=draw(st.sampled_from([1, 2, 4])),
        ffn=ffn,
        ffn_width=0 if ffn == "none" else 32,
        positions=positions,
        norm=draw(st.sampled_from(CHOICES["norm"])),
        norm_placement=draw(st.sampled_from(CHOICES["norm_placement"])),
        **flags,
        **fixed,
    )


@given(cells(), st.sampled_from(BOUNDED), st.integers(0, 9))
@settings(max_examples=16, deadline=None, derandomize=True, database=None)
def test_unroll_equals_the_step_loop(cell, reduction, cut):
    text, lengths = random_tokens(cut, 3, 14), torch.tensor([14, 5, 0])
    state = cell.initial_state(3, reduction)
    logits, after = cell(text, state)
    stepped, expected = step_loop(cell, text, state)
    assert_close(logits, stepped)
    assert_same(after, expected, 1e-9)
    first, middle = cell(text[:, :cut], state)
    second, end = cell(text[:, cut:], middle)
    assert_close(torch.cat((first, second), dim=1), stepped)
    assert_same(end, expected, 1e-9)
    ragged, after = cell(text, state, lengths=lengths)
    stepped, expected = step_loop(cell, text, state, lengths)
    assert_close(ragged, stepped)
    assert_same(after, expected, 1e-9)
    assert_same(cell.scan(text, state)[1].at(9), step_loop(cell, text[:, :9], state)[1], 1e-9)
    x, H = cell.embed.weight[text[:, 0]], list(state)
    x = cell.embed_tokens(text[:, 0], state.clock)
    for l, layer in enumerate(cell.layers):
        x, H[l] = layer.step(x, H[l])
    assert_close(cell.compute_logits(x), cell.step(text[:, 0], state)[0])
    placed = state.clone()
    for token in text.T:
        logits, placed = cell.step_(token, placed)
    assert_close(logits, cell(text, state)[0][:, -1])


@given(cells(frozen=False), st.sampled_from(BOUNDED))
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
def test_gradients_of_a_bounded_unroll_equal_those_of_the_step_loop(cell, reduction):
    text, gradients = random_tokens(2, 2, 9), []
    for read in (cell, lambda *a: step_loop(cell, *a)):
        cell.zero_grad()
        logits, _ = read(text, cell.initial_state(2, reduction))
        logits.tanh().sum().backward()
        gradients.append({name: x.grad.clone() for name, x in cell.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name], 1e-8)
    assert gradients[0]["layers.0.k.weight"].abs().max() > 0


@pytest.mark.parametrize("facts", [{"positions": "alibi"}, {"positions": "learned", "norm": "scale", "fixnorm": True}], ids=str)
def test_decoding_and_disk(facts, tmp_path, capsys):
    cell = tiny_decoder(tied=True, **facts, bos_token_id=1, eos_token_ids=(2, 3))
    text = TEXT[:, :9]
    new, state, _ = msrnn.generate(cell, text, cell.initial_state(3, "tova:6"), max_new_tokens=12)
    ahead, same, _, _ = msrnn.lookahead(
        cell, text, cell.initial_state(3, "tova:6"), max_new_tokens=12, window=4, ngram=3, guesses=3
    )
    assert torch.equal(new, ahead)
    assert_same(state, same, 1e-9)
    msrnn.prefill(cell, text, "h2o:5")
    cell.save(tmp_path / "own")
    for load in (msrnn.load, converters.load):
        again = load(tmp_path / "own")
        assert again.config == cell.config
        assert not again.training
        assert not any(p.requires_grad for p in again.parameters())
        assert torch.equal(again(text)[0], cell(text)[0])
    assert msrnn.load(tmp_path / "own", dtype=torch.float32).embed.weight.dtype == torch.float32
    state.save(tmp_path / "state")
    step = again.step(text[:, 0], msrnn.load_state(tmp_path / "state"))
    assert_close(step[0], cell.step(text[:, 0], state)[0])
    with pytest.raises(msrnn.Error, match="another model"):
        tiny_decoder(seed=7, tied=True, **facts).step(text[:, 0], state)
    assert main(["info", str(tmp_path / "own")]) == 0
    out = capsys.readouterr().out
    assert "decoder" in out
    assert f"{facts['positions']}, context length 40" in out
    assert f"{2 * 2 * (8 * cell.kv_dim + 8):,} in float32" in out  # of two layers, two heads
    converters.convert(tmp_path / "own", tmp_path / "half", dtype=torch.float16)
    assert msrnn.load(tmp_path / "half").config == cell.config
    with pytest.raises(msrnn.Error, match="which transformers does not support"):
        converters.convert(tmp_path / "own", tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()


def test_a_state_fits_a_cell_with_other_special_tokens_and_dropout():
    """Only fields that enter a step are part of the fingerprint."""
    cell, other = (tiny_decoder(**facts) for facts in ({}, {"bos_token_id": 1, "eos_token_ids": (2, 3), "dropout": 0.5}))
    _, state = cell(TEXT, cell.initial_state(3, "tova:5"))
    assert_close(other.step(TEXT[:, 0], state)[0], cell.step(TEXT[:, 0], state)[0])
    with pytest.raises(msrnn.Error, match="another model"):
        tiny_decoder(norm_eps=1e-3).step(TEXT[:, 0], state)
