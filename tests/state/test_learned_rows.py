"""Learned rows are never evicted and not counted in ``size``.

They act like an operator with more rows that keeps the first positions. ``KeepFirst`` is such an operator, written on the
contract alone.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import safe_open, save_file
from support.tiny_models import assert_close, random_tokens, tiny_cell

import msrnn
from msrnn.reductions.contract import EMPTY, LEARNED, Observation, Reduction, SpecNames
from msrnn.reductions.per_layer import per_layer
from msrnn.reductions.registry import parse_reduction

P, SIZE = 3, 5
"""Number of learned rows, and size of the operators."""


@dataclass(frozen=True)
class KeepFirst(Reduction):
    """The operator ``of`` with ``first`` more rows, which keeps the first ``first`` positions."""

    of: Reduction
    first: int

    def __post_init__(self) -> None:
        pass

    stat_names = property(lambda self: self.of.stat_names)  # type: ignore[assignment]
    update_is_additive = property(lambda self: self.of.update_is_additive)  # type: ignore[assignment]
    depends_on_row_layout = property(lambda self: self.of.depends_on_row_layout)  # type: ignore[assignment]
    needs_keys = property(lambda self: self.of.needs_keys)  # type: ignore[assignment]
    needs_values = property(lambda self: self.of.needs_values)  # type: ignore[assignment]
    needs_output = property(lambda self: self.of.needs_output)  # type: ignore[assignment]

    def stat_shape(self, name: str) -> tuple[int, ...]:
        return self.of.stat_shape(name)

    def update(self, observation: Observation) -> dict[str, torch.Tensor]:
        return self.of.update(observation)

    def score(self, observation: Observation) -> torch.Tensor:
        """Clamp the scores of ``of`` to a finite maximum, because the kept positions have an infinite score."""
        score = self.of.score(observation).double().clamp(max=1e300)
        kept = (observation.positions < self.first) & (observation.positions != EMPTY)
        return score.masked_fill(kept[:, : score.shape[1]], torch.inf)


@dataclass(frozen=True)
class AllProtected(Reduction):
    """All scores are infinite, so the oldest row is evicted; a learned row is not."""

    spec_names: ClassVar[SpecNames] = {"all-protected": {}}

    def score(self, observation: Observation) -> torch.Tensor:
        return torch.full_like(observation.weights[:, :, 0], torch.inf)


def initial_states(cell, spec: str, B: int = 2):
    """Return the state after P tokens twice: with the P rows as learned rows, and with the operator in ``KeepFirst``."""
    _, state = cell(random_tokens(1, B, P), cell.initial_state(B, "full"))
    operator = parse_reduction(spec)

    def layer(H, reduction: Reduction, **fields):
        zeros = {n: H.keys.new_zeros(*H.positions.shape, *reduction.stat_shape(n)) for n in reduction.stat_names}
        return replace(H, reduction=reduction, row_stats=zeros, buffer=None, **fields)

    learned = [layer(H, operator, positions=torch.full_like(H.positions, LEARNED), n_learned=P) for H in state]
    expected = [layer(H, KeepFirst(SIZE + P, operator, P)) for H in state]
    return state.with_layers(learned), state.with_layers(expected)


def retained(state):
    """Return the retained positions ``[layer][batch row][head]``; learned rows count as the first P positions."""
    return [
        [
            [sorted(range(P) if H.n_learned else []) + sorted(p for p in head if p >= 0) for head in b]
            for b in H.positions.tolist()
        ]
        for H in state
    ]


SPECS = [
    "window:5",
    "sinks:5:4",
    "tova:5",
    "tova-head:5",
    "h2o:5:0",
    "h2o-layer:5:5",
    "all-protected:5",
    "random:5",
    "keydiff:5",
    "caote:5",
    "scissorhands:5:2:2",
]


@pytest.mark.parametrize("spec", SPECS)
def test_learned_rows_equal_an_operator_that_keeps_the_first_positions(spec: str):
    """This holds for ``step``, ``step_``, a call and a trace."""
    cell, text = tiny_cell(), random_tokens(2, 2, 40)
    learned, reference = initial_states(cell, spec)
    expected = []
    for token in text.T:
        logits, reference = cell.step(token, reference)
        expected.append(logits)
    logits, after = cell(text, learned)
    assert_close(logits, torch.stack(expected, 1), 1e-10)
    assert retained(after) == retained(reference)
    pure, modified = learned, learned.clone()
    for token in text.T:
        pure, modified = cell.step(token, pure)[1], cell.step_(token, modified)[1]
    assert retained(pure) == retained(modified) == retained(reference)
    _, trace = cell.scan(text, learned, weights=True)
    assert retained(trace.at(40)) == retained(reference)
    assert retained(trace.at(17)) == retained(cell(text[:, :17], learned)[1])
    for layer, H in zip(trace, after, strict=True):
        assert (layer.left != LEARNED).all()
        assert layer.scores is not None
        assert (layer.scores[..., :P] == torch.inf).all()
        assert H.n_learned == P
        assert H.keys.shape[2] == P + SIZE
        assert (H.positions[..., :P] == LEARNED).all()
    assert (learned[0].positions == LEARNED).all(), "the first state is modified"


def test_ragged_rows_with_learned_rows_equal_the_row_alone():
    cell, text = tiny_cell(), random_tokens(3, 3, 20)
    learned, _ = initial_states(cell, "tova:5", B=3)
    lengths = torch.tensor([20, 0, 9])
    logits, after = cell(text, learned, lengths=lengths)
    for b in range(3):
        alone, state = cell(text[b : b + 1, : lengths[b]], learned.select([b]))
        assert_close(logits[b : b + 1, : lengths[b]], alone, 1e-10)
        assert retained(state)[0][0] == retained(after)[0][b]
    state = learned
    for t in range(20):
        _, state = cell.step(text[:, t], state, active=t < lengths)
    assert retained(state) == retained(after)


def test_gradients_reach_learned_rows():
    cell, text = tiny_cell(), random_tokens(4, 2, 12)
    learned, _ = initial_states(cell, "tova:5")

    def gradients(read) -> list[torch.Tensor]:
        rows = [H.keys.clone().requires_grad_() for H in learned]
        state = learned.with_layers(replace(H, keys=keys) for H, keys in zip(learned, rows, strict=True))
        return list(torch.autograd.grad(read(state).square().sum(), rows))

    def steps(state):
        logits = []
        for token in text.T:
            out, state = cell.step(token, state)
            logits.append(out)
        return torch.stack(logits, 1)

    expected = gradients(steps)
    for gradient, other in zip(gradients(lambda state: cell(text, state)[0]), expected, strict=True):
        assert_close(gradient, other, 1e-9)
    assert all(gradient.abs().amax() > 1e-3 for gradient in expected)


def test_learned_rows_are_saved_shown_and_selected(tmp_path):
    cell = tiny_cell()
    learned, _ = initial_states(cell, "h2o:5")
    _, state = cell(random_tokens(5, 2, 9), learned)
    state.save(tmp_path / "state")
    loaded = msrnn.load_state(tmp_path / "state")
    assert [H.n_learned for H in loaded] == [P, P]
    assert retained(loaded) == retained(state)
    assert retained(cell(random_tokens(6, 2, 9), loaded)[1]) == retained(cell(random_tokens(6, 2, 9), state)[1])
    assert "3 learned + 5" in repr(state)
    assert retained(state.select([1]))[0] == retained(state)[0][1:]


def test_file_with_a_learned_row_behind_other_rows_is_refused(tmp_path):
    cell = tiny_cell()
    _, state = cell(random_tokens(5, 1, 4), cell.initial_state(1, "full"))
    state.save(tmp_path / "state")
    with safe_open(tmp_path / "state", "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["layers.0.positions"][0, 0, 2] = LEARNED
    save_file(tensors, tmp_path / "state", metadata)
    with pytest.raises(msrnn.Error, match="contradict"):
        msrnn.load_state(tmp_path / "state")


def test_prefill_evicts_no_learned_row():
    cell, text = tiny_cell(), random_tokens(6, 2, 20)
    learned, _ = initial_states(cell, "all-protected:5")
    cell.initial_state = lambda B, reduction, dtype: learned.with_layers(  # type: ignore[method-assign]
        replace(H, reduction=operator) for H, operator in zip(learned, per_layer(reduction, 2, reduction), strict=True)
    )
    _, state = msrnn.prefill(cell, text, "all-protected:5")
    for H in state:
        assert (H.positions[..., :P] == LEARNED).all()
        assert (H.positions[..., P:] == torch.arange(P + 15, P + 20)).all()
