"""Tests of the encoder-decoder against torch.nn.TransformerDecoder, and of the laws of a cell."""

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop
from support.torch_nn_reference import parameters_under_our_names, randomized
from torch import nn

import converters
import msrnn
from msrnn.layers.masks import padding_mask, subsequent_mask
from msrnn.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from msrnn.train.config import TrainConfig

FACTS = {"width": 24, "n_layers": 2, "n_heads": 4, "ffn_width": 40, "vocab_size": 50}
LENGTHS = torch.tensor([6, 2, 1])


def tiny(placement="pre", seed=0, frozen=True, **facts):
    cell = randomized(EncoderDecoder(EncoderDecoderConfig(**{**FACTS, "norm_placement": placement, **facts})), seed)
    return cell.requires_grad_(not frozen)


def torchs(cell):
    """Return a function ``(source, lengths, text) -> logits`` of torch.nn's stacks with the weights of the cell."""
    config, pre = cell.config, cell.config.norm_placement == "pre"
    shape, how = (config.width, config.n_heads, config.ffn_width, 0.0), {"batch_first": True, "norm_first": pre}
    last = [nn.LayerNorm(config.width) if pre else None for _ in range(2)]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(*shape, **how), config.n_layers, last[0], enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(*shape, **how), config.n_layers, last[1])
    encoder, decoder = randomized(encoder, 1), randomized(decoder, 2)
    own = (
        {f"encoder.{name}": x for name, x in parameters_under_our_names(encoder).items()}
        | parameters_under_our_names(decoder)
        | {"embed.weight": cell.embed.weight}
    )
    cell.load_state_dict(own)

    def entered(ids):
        place, even = (torch.arange(n, dtype=torch.float64) for n in (ids.shape[1], config.width // 2))
        angle = place[:, None] / 10000 ** (2 * even / config.width)
        added = torch.empty(ids.shape[1], config.width, dtype=torch.float64)
        added[:, 0::2], added[:, 1::2] = angle.sin(), angle.cos()
        return cell.embed.weight[ids] * config.width**0.5 + added

    def logits(source, lengths, text):
        hidden = ~padding_mask(lengths, source.shape[1])[:, 0]
        read = encoder(entered(source), src_key_padding_mask=hidden)
        mask = ~subsequent_mask(text.shape[1])
        return decoder(entered(text), read, tgt_mask=mask, memory_key_padding_mask=hidden) @ cell.embed.weight.T

    return logits


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_cell_equals_torchs_decoder(placement, figure):
    cell = tiny(placement)
    expected = torchs(cell)(random_tokens(0, 3, 6), LENGTHS, random_tokens(1, 3, 8))
    state = cell.encode(random_tokens(0, 3, 6), LENGTHS)
    by_steps, _ = step_loop(cell, random_tokens(1, 3, 8), state)
    at_once, _ = cell(random_tokens(1, 3, 8), state)
    gap = max((found - expected).abs().amax().item() for found in (by_steps, at_once))
    figure(f"encoder-decoder, {placement}-norm, steps and fold, against torch.nn.TransformerDecoder in float64: {gap:.1e}")
    assert gap < 1e-10


@pytest.mark.parametrize("reduction", ["full", "window:3", "tova:4", ["h2o:3", "full"]])
def test_unroll_equals_the_step_loop_for_every_split(reduction):
    cell, text, lengths = tiny(), random_tokens(1, 3, 9), torch.tensor([9, 4, 0])
    state = cell.encode(random_tokens(0, 3, 6), LENGTHS, reduction)
    expected, end = step_loop(cell, text, state, lengths)
    found, after = cell(text, state, lengths=lengths)
    assert_close(found, expected)
    _, layers = cell.unroll(text, state, torch.arange(9) < lengths[:, None])
    assert all(H.clock.equal(lengths) for H in layers)
    assert_same(after, end, 1e-9)
    first, middle = cell(text[:, :5], state)
    rest, last = cell(text[:, 5:], middle)
    whole, end = step_loop(cell, text, state)
    assert_close(torch.cat((first, rest), dim=1), whole)
    assert_same(last, end, 1e-9)


def test_the_source_is_part_of_the_state(tmp_path):
    cell, text = tiny(), random_tokens(1, 3, 7)
    state = cell.encode(random_tokens(0, 3, 6), LENGTHS, "tova:3")
    whole, end = step_loop(cell, text, state)
    _, middle = cell(text[:, :4], state)
    for kept, rows in ((middle.select([2, 0, 0]), [2, 0, 0]), (middle.clone(), [0, 1, 2]), (middle.to("cpu"), [0, 1, 2])):
        assert_close(cell(text[rows, 4:], kept)[0], whole[rows, 4:])
    middle.save(tmp_path / "state.safetensors")
    loaded = msrnn.load_state(tmp_path / "state.safetensors")
    found, after = cell(text[:, 4:], loaded)
    assert_close(found, whole[:, 4:])
    assert_same(after, end, 1e-9)
    _, trace = cell.scan(text, state)
    assert_same(trace.at(4), middle, 1e-9)
    short = state.select([1, 2])  # of the shorter sources alone
    _, trace = cell.scan(text[1:], short)
    found, _ = cell(text[1:, 4:], trace.at(4))
    assert_close(found, whole[1:, 4:])
    assert " 1 learned + 1 " in repr(trace.at(4))


def test_steps_in_place_and_inactive_rows():
    cell, text = tiny(), random_tokens(1, 3, 5)
    state = cell.encode(random_tokens(0, 3, 6), LENGTHS, "window:2")
    expected, end = step_loop(cell, text, state)
    moving = state.clone()
    for t in range(5):
        logits, moving = cell.step_(text[:, t], moving)
        assert_close(logits, expected[:, t])
    assert_same(moving, end, 1e-9)
    _, still = cell.step(text[:, 0], end, active=torch.tensor([True, False, True]))
    assert still.clock.tolist() == [6, 5, 6]
    assert all(H.clock.tolist() == [6, 5, 6] for H in still)
    assert_same(still.select([1]), end.select([1]))


def test_a_saved_cell_is_loaded(tmp_path):
    cell, text = tiny("post", norm_eps=1e-3), random_tokens(1, 3, 5)
    state = cell.encode(random_tokens(0, 3, 6), LENGTHS)
    cell.save(tmp_path / "model")
    loaded = msrnn.load(tmp_path / "model")
    assert loaded.config == cell.config
    assert_close(loaded(text, state)[0], cell(text, state)[0], 0)
    assert_close(loaded(text, loaded.encode(random_tokens(0, 3, 6), LENGTHS))[0], cell(text, state)[0], 0)
    for refuses in (converters.load, converters.config):
        with pytest.raises(msrnn.Error, match=r"an encoder-decoder; .* \(msrnn\.load reads both\)"):
            refuses(tmp_path / "model")


def test_dropout_of_the_embeddings_is_applied_in_training_only():
    cell, tokens = tiny(dropout=0.25), random_tokens(0, 3, 60)
    position = torch.arange(60).expand(3, -1)
    plain = cell.eval().embed_tokens(tokens, position)
    assert plain.equal(cell.embed_tokens(tokens, position))
    x = cell.train().embed_tokens(tokens, position)
    assert abs(float((x == 0).double().mean()) - 0.25) < 0.03
    assert_close(x[x != 0], (plain / 0.75)[x != 0], 1e-12)


def test_decoding_functions_accept_the_cell():
    cell, start = tiny(), torch.tensor([[7], [7], [7]])
    state = cell.encode(random_tokens(0, 3, 6), LENGTHS, "tova:4")
    new, end, _ = msrnn.generate(cell, start, state, max_new_tokens=10)
    text = start
    for _ in range(10):
        text = torch.cat((text, cell(text, state)[0][:, -1].argmax(-1, keepdim=True)), dim=1)
    assert new.equal(text[:, 1:])
    guessed, also, _, _ = msrnn.lookahead(cell, start, state, max_new_tokens=10)
    assert guessed.equal(new)
    assert_same(also, end, 1e-9)


def test_8_bit_rows_of_source_and_text():
    """``encode`` gives floating-point rows; ``to`` rounds those of the source."""
    cell, text = tiny(), random_tokens(3, 3, 9)
    exact = cell.encode(random_tokens(2, 3, 6), LENGTHS, "tova:4")
    state = exact.to(torch.int8)
    logits, end = cell(text, state)
    expected, loop = step_loop(cell, text, state)
    assert_close(logits, expected, 1e-8)
    assert_same(end, loop, 1e-6)
    assert {H.keys.dtype for H in end} == {torch.int8}
    assert 1e-6 < (logits - cell(text, exact)[0]).abs().mean() < 0.1


def test_decoding_with_a_trainable_cell():
    """The encoder's graph stays in the given state; the result of decoding has no graph."""
    cell, start = tiny(frozen=False), torch.tensor([[7], [7]])
    state = cell.encode(random_tokens(0, 2, 6))
    new, end, _ = msrnn.generate(cell, start, state, max_new_tokens=4)
    assert not end.requires_grad
    assert state.requires_grad
    assert new.equal(msrnn.lookahead(cell, start, state, max_new_tokens=4)[0])
    assert new.equal(
        msrnn.generate(cell.requires_grad_(False), start, cell.encode(random_tokens(0, 2, 6)), max_new_tokens=4)[0]
    )


def test_gradients_reach_the_encoder_and_equal_torchs():
    cell = tiny(frozen=False)
    reference = torchs(cell)
    source, text = random_tokens(0, 3, 6), random_tokens(1, 3, 8)
    logits, _ = cell(text, cell.encode(source, LENGTHS))
    found = torch.autograd.grad(logits.square().mean(), [cell.embed.weight, cell.encoder.layers[0].ffn.up.weight])
    again, _ = step_loop(cell, text, cell.encode(source, LENGTHS))
    by_steps = torch.autograd.grad(again.square().mean(), [cell.embed.weight, cell.encoder.layers[0].ffn.up.weight])
    (expected,) = torch.autograd.grad(reference(source, LENGTHS, text).square().mean(), [cell.embed.weight])
    assert_close(found[0], expected, 1e-10)
    for one, other in zip(found, by_steps, strict=True):
        assert_close(one, other, 1e-10)


def test_printed_state_lists_text_and_source():
    cell = tiny()
    _, state = cell(random_tokens(1, 3, 7), cell.encode(random_tokens(0, 3, 6), LENGTHS, "tova:3"))
    assert len(state) == len(cell.layers) == 4
    assert [H.keys.shape[2] for H in state] == [3, 6, 3, 6]
    assert (state[0].n_learned, state[1].n_learned) == (0, 1)
    assert "tova:3" in repr(state)
    assert state[1].positions[:, 0].tolist() == [[-2] * 6, [-2] * 2 + [-1] * 4, [-2] + [-1] * 5]
    x = torch.randn(3, 24, dtype=torch.float64)
    for half, H in zip(cell.layers, state, strict=True):
        x, after = half.step(x, H)
        assert after.clock.tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cell: cell.initial_state(3), "no state without a source"),
        (lambda cell: cell.step(torch.tensor([1])), "no state without a source"),
        (lambda cell: cell(random_tokens(0, 1, 3)), "no state without a source"),
        (lambda cell: cell.encode(random_tokens(0, 3, 0)), r"source lengths are \[0, 0, 0\]"),
        (lambda cell: cell.encode(random_tokens(0, 2, 3), torch.tensor([3, 0])), r"source lengths are \[3, 0\]"),
        (lambda cell: cell.encode(torch.tensor([[50]])), "token id 50 is outside the vocabulary"),
        (lambda cell: cell.encode(random_tokens(0, 1, 3), reduction=["full"] * 4), "4 reductions for a cell of 2 layers"),
        (lambda cell: tiny(seed=1).step(torch.tensor([1]), cell.encode(random_tokens(0, 1, 3))), "another model"),
        (
            lambda cell: TrainConfig({k: v for k, v in cell.config.to_dict().items() if k != "vocab_size"}),
            "decoder-only",
        ),
        (lambda cell: tiny(vocab_size=0), "vocab_size is 0"),
        (lambda cell: tiny(width=15, n_heads=3), "width is 15"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(msrnn.Error, match=message):
        call(tiny())
