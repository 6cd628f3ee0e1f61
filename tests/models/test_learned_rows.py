"""Learned rows (persistent rows and memory tokens) against naive full-matrix attention."""

import copy

import pytest
import torch
from support.naive_learned_rows import naive_logits
from support.tiny_models import DECODER_CONFIG, ROPES, assert_close, assert_same, random_tokens, step_loop, tiny_decoder

import msrnn
from msrnn.models import Decoder, DecoderConfig
from msrnn.reductions.contract import LEARNED

TEXT = random_tokens(1, 3, 20)
ALL = {"persistent": 3, "memory_tokens": 2}
POSITIONS = [ROPES["default"], "alibi", "learned", "sinusoidal"]


@pytest.mark.parametrize("facts", [{"persistent": 3, "ffn": "none", "ffn_width": 0}, {"memory_tokens": 2}, ALL], ids=str)
@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_every_token_attends_to_learned_rows(positions, facts, figure):
    cell = tiny_decoder(positions=positions, **facts)
    expected = naive_logits(cell, TEXT)
    assert_close(cell(TEXT)[0], expected, 1e-12)
    for reduction in ("full", "h2o:20"):  # h2o also compares the accumulated attention
        assert_close(step_loop(cell, TEXT, cell.initial_state(3, reduction))[0], expected, 1e-12)
    if facts is ALL and positions == "alibi":
        gap = (cell(TEXT)[0] - expected).abs().max().item()
        figure(f"persistent rows and memory tokens, against columns of one matrix in float64: {gap:.1e}")
    P = cell.config.persistent + cell.config.memory_tokens
    for H in cell.initial_state(3):
        assert H.positions.tolist() == [[[LEARNED] * P] * 2] * 3
        assert (H.n_learned, H.no_empty_rows, H.clock.tolist()) == (P, True, [0, 0, 0])
    bare = copy.deepcopy(cell)
    for name in ("persistent_values", "memory"):
        if name in dict(bare.named_parameters()):
            bare.get_parameter(name).mul_(2)
    assert (bare(TEXT)[0] - expected).abs().max() > 0.01


@pytest.mark.parametrize("reduction", ["full", "window:4", "sinks:6:3", "tova:5", "tova-head:5", "h2o:6", "h2o-layer:6"])
@pytest.mark.parametrize("positions", POSITIONS[:3], ids=str)
def test_unroll_equals_the_step_loop(positions, reduction, tmp_path):
    """Also for a bounded H; learned rows are never evicted."""
    cell, lengths = tiny_decoder(positions=positions, **ALL), torch.tensor([20, 7, 0])
    state = cell.initial_state(3, reduction)
    logits, after = cell(TEXT, state)
    stepped, expected = step_loop(cell, TEXT, state)
    assert_close(logits, stepped)
    assert_same(after, expected, 1e-9)
    size = after[0].reduction.size
    for H, start in zip(after, state, strict=True):
        assert H.keys.shape[2] == 5 + (20 if size is None else size)
        assert torch.equal(H.keys[:, :, :5], start.keys)
        assert torch.equal(H.values[:, :, :5], start.values)
    ragged, after = cell(TEXT, state, lengths=lengths)
    stepped, expected = step_loop(cell, TEXT, state, lengths)
    assert_close(ragged, stepped)
    assert_same(after, expected, 1e-9)
    assert_same(cell.scan(TEXT, state)[1].at(9), step_loop(cell, TEXT[:, :9], state)[1], 1e-9)
    new, end, _ = msrnn.generate(cell, TEXT[:, :9], state, max_new_tokens=9)
    ahead, same, _, _ = msrnn.lookahead(cell, TEXT[:, :9], state, max_new_tokens=9, window=3, ngram=3, guesses=2)
    assert torch.equal(new, ahead)
    assert_same(end, same, 1e-9)
    end.save(tmp_path / "state")
    assert_same(msrnn.load_state(tmp_path / "state"), end)
    msrnn.prefill(cell, TEXT, reduction)
    cell.save(tmp_path / "own")
    assert torch.equal(msrnn.load(tmp_path / "own")(TEXT)[0], cell(TEXT)[0])


@pytest.mark.parametrize("reduction", ["full", "tova:4", "h2o:5", "window:3"])
def test_gradients_reach_learned_rows_through_the_state(reduction):
    """Gradients equal those of the step loop, and for an unbounded H those of naive attention."""
    cell, gradients = tiny_decoder(frozen=False, **ALL, tied=True), []
    ways = {
        "fold": lambda: cell(TEXT, cell.initial_state(3, reduction))[0],
        "steps": lambda: step_loop(cell, TEXT, cell.initial_state(3, reduction))[0],
    }
    if reduction == "full":
        ways["naive"] = lambda: naive_logits(cell, TEXT)
    for way in ways.values():
        cell.zero_grad()
        way().tanh().sum().backward()
        gradients.append({name: x.grad.clone() for name, x in cell.named_parameters()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert_close(gradient, other[name], 1e-8)
    for name in ("memory", "persistent_keys", "persistent_values"):
        assert gradients[0][name].abs().amax(-1).min() > 0  # of every row


@pytest.mark.parametrize("places", ["inside", "compressed"])
def test_places_are_kept(places):
    """Without evictions and within ten tokens, remapped positions equal positions."""
    cell = tiny_decoder(memory_tokens=2, recurrent=True, persistent=1)
    state, placed, text = cell.initial_state(3), cell.initial_state(3, places=places), TEXT[:, :9]
    for _ in range(2):
        logits, state = cell(text, state)
        found, placed = cell(text, placed)
        assert_close(found, logits, 1e-9)
        state, placed = cell.next_segment(state), cell.next_segment(placed)
        assert placed.places.rule == places
    renewing = tiny_decoder(**ALL)
    _, placed = renewing(text, renewing.initial_state(3, "tova:4", places=places))
    assert_same(renewing.refresh_learned_rows(placed), placed)
    assert renewing.refresh_learned_rows(placed).places.rule == places


def test_learned_rows_are_refreshed_after_an_optimizer_step():
    """Learned rows follow the parameters, rows of text stay, and gradients reach the parameters again."""
    cell = tiny_decoder(frozen=False, **ALL)
    _, old = cell(TEXT, cell.initial_state(3, "h2o:6"))
    with torch.no_grad():
        for x in (cell.memory, cell.persistent_keys, cell.persistent_values):
            x.add_(1)
    state = cell.refresh_learned_rows(old.detach())
    for H, before, start in zip(state, old, cell.initial_state(3, "h2o:6"), strict=True):
        assert torch.equal(H.keys, torch.cat((start.keys, before.keys[:, :, 5:]), dim=2))
        assert torch.equal(H.values, torch.cat((start.values, before.values[:, :, 5:]), dim=2))
        assert torch.equal(H.row_stats["accumulated_attention"], before.row_stats["accumulated_attention"])
        assert torch.equal(H.positions, before.positions)
        assert torch.equal(H.clock, before.clock)
        assert not torch.equal(H.keys[:, :, :5], before.keys[:, :, :5])
    assert not old.detach().requires_grad
    cell(TEXT, state)[0].tanh().sum().backward()
    for name in ("memory", "persistent_keys", "persistent_values"):
        assert cell.get_parameter(name).grad.abs().max() > 0
    plain = tiny_decoder()
    _, state = plain(TEXT)
    assert_same(plain.refresh_learned_rows(state), state)


def test_other_dtypes():
    """A state with another dtype than the parameters, and a cell in bfloat16."""
    cell = tiny_decoder(**ALL)
    half = cell.initial_state(2, "h2o:5", dtype=torch.bfloat16)
    assert half[0].keys.dtype == half[0].values.dtype == torch.bfloat16
    assert half[0].row_stats["accumulated_attention"].shape == (2, 2, 5)
    assert_close(half[0].keys.double(), cell.initial_state(2)[0].keys, 0.05)
    assert cell.bfloat16()(TEXT)[0].isfinite().all()


@pytest.mark.parametrize("name", ["memory", "persistent_keys"])
def test_a_state_with_other_learned_rows_is_refused(name):
    facts = {"memory_tokens": 2} if name == "memory" else {"persistent": 2}
    cell = tiny_decoder(**facts)
    state = cell.initial_state(2)
    cell.get_parameter(name).add_(1)
    with pytest.raises(msrnn.Error, match="other parameters"):
        cell(TEXT, state)


def test_initialization():
    torch.manual_seed(0)
    facts = {**DECODER_CONFIG, "width": 160, "memory_tokens": 40, "recurrent": True, "persistent": 20}
    for fixnorm in (True, False):
        cell = Decoder(DecoderConfig(**facts, fixnorm=fixnorm))
        for x in (cell.memory, cell.write_tokens):
            assert abs(x.std().item() * (1 if fixnorm else 160**0.5) - 1) < 0.05
        assert abs(cell.persistent_keys.std().item() - 1) < 0.1
        assert abs(cell.persistent_values.std().item() - 1) < 0.1
        assert cell.embed_tokens(random_tokens(0, 9, 9), torch.arange(9).expand(9, -1)).std().item() == pytest.approx(
            cell.memory.std().item(), rel=0.1
        )


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"memory_tokens": -1}, "memory_tokens is -1"),
        ({"persistent": 1.5}, "persistent is 1.5"),
        ({"recurrent": 1}, "recurrent is 1"),
        ({"recurrent": True}, "recurrent is True and memory_tokens is 0"),
    ],
)
def test_wrong_configs_are_refused_by_field(facts, message):
    with pytest.raises(msrnn.Error, match=message):
        DecoderConfig(**{**DECODER_CONFIG, **facts})


def test_wrong_calls_are_refused():
    plain, recurrent = tiny_decoder(memory_tokens=2), tiny_decoder(memory_tokens=2, recurrent=True)
    with pytest.raises(msrnn.Error, match=r"next_segment: config\.recurrent is False"):
        plain.next_segment(plain.initial_state(1))
    with pytest.raises(msrnn.Error, match="refresh_learned_rows: the cell is recurrent"):
        recurrent.refresh_learned_rows(recurrent.initial_state(1))
    with pytest.raises(msrnn.Error, match="another model"):
        recurrent.next_segment(plain.initial_state(1))
    with pytest.raises(msrnn.Error, match="another model"):
        plain.refresh_learned_rows(recurrent.initial_state(1))
    for call in (recurrent.next_segment, plain.refresh_learned_rows):
        with pytest.raises(msrnn.Error, match="expected a State"):
            call(None)
