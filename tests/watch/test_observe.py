"""Observed scores, weights and evictions against the step loop with an operator that writes down what it receives."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from support.tiny_families import CONFIGS, tiny_family
from support.tiny_models import tiny_cell

import msrnn
from msrnn.reductions.contract import Reduction
from msrnn.reductions.registry import parse_reduction
from msrnn.watch.observe import observe

T, SIZE = 14, 5


@dataclass(frozen=True)
class Spy(Reduction):
    """Another operator, with a list of the weights and positions of every step."""

    inner: Reduction = field(kw_only=True)
    seen: list = field(kw_only=True, compare=False)
    stat_names: ClassVar[tuple[str, ...]] = ("unused",)

    def validate(self, size):
        assert size == self.inner.size

    def update(self, observation):
        self.seen.append((observation.weights[0], observation.positions[0]))
        return observation.row_stats

    def score(self, observation):
        return self.inner.score(observation)


@pytest.mark.parametrize("spec", ["tova:5", "tova-head:5", "window:5", "sinks:5:2", "keydiff:5", "full"])
def test_weights_are_those_of_the_step_loop(spec):
    cell, tokens = tiny_cell(), torch.randint(50, (1, T))
    inner = parse_reduction(spec)
    spies = [Spy(inner.size, inner=inner, seen=[]) for _ in cell.layers]
    Spy.needs_keys = inner.needs_keys
    state = cell.initial_state(1, spies)
    for t in range(T):
        _, state = cell.step(tokens[:, t], state)
    _, layers, _ = observe(cell, tokens, cell.initial_state(1, spec))
    for spy, layer in zip(spies, layers, strict=True):
        assert len(spy.seen) == T
        for t, (weights, positions) in enumerate(spy.seen):  # (K, G, R), (K, R)
            expected = torch.zeros(len(positions), T, dtype=weights.dtype)
            expected.scatter_(1, positions.clamp(min=0), weights.mean(1).masked_fill(positions < 0, 0))
            expected = expected if len(layer.weights) > 1 else expected.mean(0, keepdim=True)
            torch.testing.assert_close(layer.weights[:, t], expected)
            assert torch.equal(layer.visible[:, t], expected > 0)


@pytest.mark.parametrize("spec", ["tova:5", "tova-head:5", "h2o:6", "h2o-layer:6", "window:5", "scissorhands:5:2", "knorm:5"])
def test_scores_and_evictions_are_those_of_the_trace(spec):
    cell, tokens = tiny_cell(), torch.randint(50, (1, T))
    state = cell.initial_state(1, spec)
    logits, layers, after = observe(cell, tokens, state)
    expected, trace = cell.scan(tokens, state, weights=True)
    assert torch.equal(logits, expected[0])
    for layer, traced, H in zip(layers, trace, after, strict=True):
        h = len(layer.scores)
        assert h in (1, traced.left.shape[1])
        assert torch.equal(layer.evicted, traced.left[0, :h])
        assert torch.equal(
            layer.scores.nan_to_num(-9), traced.scores[0].expand(traced.left.shape[1], -1, -1)[:h].nan_to_num(-9)
        )
        own, others, tied = layer.decisions()
        for head in range(h):
            for t in range(T):
                score, p = layer.scores[head, t], int(layer.evicted[head, t])
                rows = layer.positions[head].tolist()
                if p < 0:
                    assert own[head, t].isnan()
                    assert not tied[head, t]
                    continue
                rest = [float(s) for s, row in zip(score, rows, strict=True) if row != p and not s.isnan()]
                assert own[head, t] == score[rows.index(p)] <= min(rest)
                assert others[head, t] == min(rest)
                assert tied[head, t] == (min(rest) == own[head, t])
        held = {p for p in range(T) if p not in layer.evicted[0].tolist()}
        assert held == set(H.positions[0, 0].tolist())


def test_an_operator_that_decides_per_head_gives_one_plane_per_head():
    cell, tokens = tiny_cell(), torch.randint(50, (1, T))
    assert [len(x.scores) for x in observe(cell, tokens, cell.initial_state(1, "tova:5"))[1]] == [1, 1]
    assert [len(x.scores) for x in observe(cell, tokens, cell.initial_state(1, "tova-head:5"))[1]] == [2, 2]


def test_a_text_may_be_observed_in_parts():
    cell, tokens = tiny_cell(), torch.randint(50, (1, T))
    state = cell.initial_state(1, "tova:5")
    logits, layers, _ = observe(cell, tokens, state)
    _, _, state = observe(cell, tokens[:, :9], state)
    rest, parts, _ = observe(cell, tokens[:, 9:], state)
    torch.testing.assert_close(rest, logits[9:])
    for part, layer in zip(parts, layers, strict=True):
        assert torch.equal(part.evicted, layer.evicted[:, 9:])
        columns = part.positions[0]
        torch.testing.assert_close(part.weights, layer.weights[:, 9:, columns])


@pytest.mark.parametrize("family", CONFIGS)
def test_families_with_other_rules_and_windows_in_some_layers(family):
    """The logits follow the rule of the layer: TOVA's score is the mean weight."""
    cell = tiny_family(family)
    tokens = torch.randint(cell.config.vocab_size, (1, T))
    _, layers, _ = observe(cell, tokens, cell.initial_state(1, msrnn.TOVA(SIZE)))
    bounded = [layer for layer in layers if isinstance(layer.operator, msrnn.TOVA)]
    assert bounded
    for layer in bounded:
        weights = layer.weights.masked_fill(~layer.visible, torch.nan)
        weights[..., layer.positions[0] < 0] = torch.inf  # a learned row is never evicted
        torch.testing.assert_close(weights, layer.scores, equal_nan=True)
