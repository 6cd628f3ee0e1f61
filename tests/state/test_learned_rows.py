"""Learned rows never leave and are not counted: like an operator with more room that spares the first positions."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from support.tiny_models import random_tokens, tiny_cell

import msrnn
from msrnn.reductions.contract import EMPTY, LEARNED, Observation, Reduction, SpecNames
from msrnn.reductions.registry import parse_reduction

P, SIZE = 3, 5


@dataclass(frozen=True)
class Sparing(Reduction):
    """``of``, one size larger for each of the first ``first`` positions, which stay. It stands on the contract alone."""

    of: Reduction
    first: int

    def __post_init__(self) -> None:
        pass

    stat_names = property(lambda self: self.of.stat_names)  # type: ignore[assignment]
    update_is_additive = property(lambda self: self.of.update_is_additive)  # type: ignore[assignment]
    depends_on_row_layout = property(lambda self: self.of.depends_on_row_layout)  # type: ignore[assignment]
    needs_keys = property(lambda self: self.of.needs_keys)  # type: ignore[assignment]

    def stat_shape(self, name: str) -> tuple[int, ...]:
        return self.of.stat_shape(name)

    def update(self, seen: Observation) -> dict[str, torch.Tensor]:
        return self.of.update(seen)

    def score(self, seen: Observation) -> torch.Tensor:
        """Below infinity, so that what is spared is dearer than what the operator itself would not give."""
        score = self.of.score(seen).double().clamp(max=1e300)
        spared = (seen.positions < self.first) & (seen.positions != EMPTY)
        return score.masked_fill(spared[:, : score.shape[1]], torch.inf)


@dataclass(frozen=True)
class Dear(Reduction):
    """No row may go, so the oldest does; not the learned ones."""

    spec_names: ClassVar[SpecNames] = {"all-dear": {}}

    def score(self, seen: Observation) -> torch.Tensor:
        return torch.full_like(seen.weights[:, :, 0], torch.inf)


def states(cell, form: str, B: int = 2):
    """The state after ``P`` tokens: these rows learned; and these rows spared."""
    _, state = cell(random_tokens(1, B, P), cell.initial_state(B, "full"))
    operator = parse_reduction(form)

    def layer(H, reduction: Reduction, **more):
        zeros = {n: H.keys.new_zeros(*H.positions.shape, *reduction.stat_shape(n)) for n in reduction.stat_names}
        return replace(H, reduction=reduction, row_stats=zeros, buffer=None, **more)

    learned = [layer(H, operator, positions=torch.full_like(H.positions, LEARNED), n_learned=P) for H in state]
    spared = [layer(H, Sparing(SIZE + P, operator, P)) for H in state]
    return state.with_layers(learned), state.with_layers(spared)


def held(state):
    """Positions by layer, row and head; what is learned counted as the first ones."""
    return [
        [
            [sorted(range(P) if H.n_learned else []) + sorted(p for p in head if p >= 0) for head in b]
            for b in H.positions.tolist()
        ]
        for H in state
    ]


FORMS = [
    "window:5",
    "sinks:5:4",
    "tova:5",
    "tova-head:5",
    "h2o:5:0",
    "h2o-layer:5:5",
    "all-dear:5",
    "random:5",
    "keydiff:5",
    "scissorhands:5:2:2",
]


@pytest.mark.parametrize("form", FORMS)
def test_like_sparing(form: str):
    """The step, the step in place, the fold and the trace."""
    cell, text = tiny_cell(), random_tokens(2, 2, 40)
    learned, spared = states(cell, form)
    expected, slow = [], spared
    for t in range(40):
        logits, slow = cell.step(text[:, t], slow)
        expected.append(logits)
    out, after = cell(text, learned)
    torch.testing.assert_close(out, torch.stack(expected, 1), atol=1e-10, rtol=0)
    assert held(after) == held(slow)
    pure, placed = learned, learned.clone()
    for t in range(40):
        pure, placed = cell.step(text[:, t], pure)[1], cell.step_(text[:, t], placed)[1]
    assert held(pure) == held(placed) == held(slow)
    _, trace = cell.scan(text, learned, weights=True)
    assert held(trace.at(40)) == held(slow)
    assert held(trace.at(17)) == held(cell(text[:, :17], learned)[1])
    for layer, H in zip(trace, after, strict=True):
        assert (layer.left != LEARNED).all()
        assert layer.scores is not None
        assert (layer.scores[..., :P] == torch.inf).all()
        assert H.n_learned == P
        assert H.keys.shape[2] == P + SIZE
        assert (H.positions[..., :P] == LEARNED).all()
    assert (learned[0].positions == LEARNED).all(), "the state before is as it was"


def test_ragged_and_idle():
    cell, text = tiny_cell(), random_tokens(3, 3, 20)
    learned, _ = states(cell, "tova:5", B=3)
    lengths = torch.tensor([20, 0, 9])
    out, after = cell(text, learned, lengths=lengths)
    for b in range(3):
        alone, one = cell(text[b : b + 1, : lengths[b]], learned.select([b]))
        torch.testing.assert_close(out[b : b + 1, : lengths[b]], alone, atol=1e-10, rtol=0)
        assert held(one)[0][0] == held(after)[0][b]
    state = learned
    for t in range(20):
        _, state = cell.step(text[:, t], state, active=t < lengths)
    assert held(state) == held(after)


def test_all_learned_rows_share_one_softmax_and_gradients_reach_them():
    cell, text = tiny_cell(), random_tokens(4, 2, 12)
    learned, _ = states(cell, "tova:5")

    def gradient(read) -> list[torch.Tensor]:
        rows = [H.keys.clone().requires_grad_() for H in learned]
        state = learned.with_layers(replace(H, keys=keys) for H, keys in zip(learned, rows, strict=True))
        return list(torch.autograd.grad(read(state).square().sum(), rows))

    def steps(state):
        out = []
        for t in range(12):
            logits, state = cell.step(text[:, t], state)
            out.append(logits)
        return torch.stack(out, 1)

    slow = gradient(steps)
    for one, other in zip(gradient(lambda state: cell(text, state)[0]), slow, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
    assert all(g.abs().amax() > 1e-3 for g in slow)


def test_saved_printed_selected(tmp_path):
    cell = tiny_cell()
    learned, _ = states(cell, "h2o:5")
    _, state = cell(random_tokens(5, 2, 9), learned)
    state.save(tmp_path / "state")
    again = msrnn.load_state(tmp_path / "state")
    assert [H.n_learned for H in again] == [P, P]
    assert held(again) == held(state)
    assert held(cell(random_tokens(6, 2, 9), again)[1]) == held(cell(random_tokens(6, 2, 9), state)[1])
    assert "3 learned + 5" in repr(state)
    assert held(state.select([1]))[0] == held(state)[0][1:]


def test_a_file_with_learned_rows_where_none_may_be_is_refused(tmp_path):
    cell = tiny_cell()
    _, state = cell(random_tokens(5, 1, 4), cell.initial_state(1, "full"))
    state[0].positions[0, 0, 2] = LEARNED
    state.save(tmp_path / "state")
    with pytest.raises(msrnn.Error, match="contradict"):
        msrnn.load_state(tmp_path / "state")


def test_the_shortcut_cuts_no_learned_row():
    cell, text = tiny_cell(), random_tokens(6, 2, 20)
    learned, _ = states(cell, "all-dear:5")
    cell.initial_state = lambda B, operators: learned.with_layers(  # type: ignore[method-assign]
        replace(H, reduction=operator) for H, operator in zip(learned, operators, strict=True)
    )
    _, state = msrnn.prefill(cell, text, "all-dear:5")
    for H in state:
        assert (H.positions[..., :P] == LEARNED).all()
        assert (H.positions[..., P:] == torch.arange(P + 15, P + 20)).all()
