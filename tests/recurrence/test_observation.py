"""What an operator sees: the fields agree with each other and with a plain loop, in the step and in the many-token path."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.naive_operators import cheapest, naive
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell, tiny_decoder

import msrnn
from msrnn.recurrence import unroll
from msrnn.reductions.contract import EMPTY, FLAG_OF_FIELD


@dataclass(frozen=True)
class ReadsAll(msrnn.Reduction):
    """An operator that reads every field, and checks that weights and output are those of the queries, keys and values."""

    atol: float = 1e-9
    stat_names: ClassVar[tuple[str, ...]] = ("entry",)
    needs_keys: ClassVar[bool] = True
    needs_values: ClassVar[bool] = True
    needs_output: ClassVar[bool] = True
    needs_queries: ClassVar[bool] = True
    needs_input: ClassVar[bool] = True

    def update(self, observation):
        """Keep the first number of the input of each token."""
        own = observation.positions == observation.clock[:, None, None]
        return {"entry": torch.where(own, observation.x[:, None, None, 0], observation.row_stats["entry"])}

    def score(self, observation):
        weights, absent = observation.weights, (observation.positions == EMPTY)[:, :, None]
        logits = observation.queries @ observation.keys.mT * observation.keys.shape[-1] ** -0.5
        used = (weights * absent).sum(-1, keepdim=True) == 0  # False for tokens that are not read
        assert_close((logits.masked_fill(absent, -torch.inf).softmax(-1) * used), weights * used, self.atol)
        values = observation.values.masked_fill(absent.mT, 0)
        assert_close(weights @ values * used, observation.output * used, self.atol)
        return observation.row_stats["entry"] + (observation.output @ values.mT).mean(2) + weights.mean(2)


@dataclass(frozen=True)
class ReadsOwnTensors(ReadsAll):
    """The same with flags that allow blocks: many tokens are observed at once."""

    depends_on_row_layout: ClassVar[bool] = False


@dataclass(frozen=True)
class AddsTerms(ReadsAll):
    """The same with an additive update."""

    depends_on_row_layout: ClassVar[bool] = False
    update_is_additive: ClassVar[bool] = True

    def update(self, observation):
        own = observation.positions == observation.clock[:, None, None]
        return {"entry": observation.row_stats["entry"] + torch.where(own, observation.x[:, None, None, 0], 0)}


OPERATORS = [ReadsAll(5), ReadsOwnTensors(5), AddsTerms(5)]


def rule(l):
    """The score of :class:`ReadsAll` in plain Python."""

    def decide(t, h, rows, logits, full):
        if not full:
            return None
        score = dict.fromkeys(rows, 0.0)
        for z in logits:
            top = max(z)
            exps = [math.exp(a - top) for a in z]
            p = [e / math.fsum(exps) for e in exps]
            o = [math.fsum(w * row.value[i] for w, row in zip(p, rows, strict=True)) for i in range(len(rows[0].value))]
            for w, row in zip(p, rows, strict=True):
                score[row] += (w + math.fsum(a * b for a, b in zip(o, row.value, strict=True))) / len(logits)
        return cheapest(rows, lambda row: score[row] + row.entry[0])

    return decide


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("block", [4, 64])
def test_fields_in_every_path(operator, block, monkeypatch):
    monkeypatch.setattr(unroll, "BLOCK", block)
    cell, text = tiny_cell(), random_tokens(3, 2, 18)
    expected, kept = zip(*(naive(cell, row, rule, lambda l: 5) for row in text), strict=True)
    logits, state = step_loop(cell, text, cell.initial_state(2, operator))
    assert_close(logits, torch.stack(expected))
    assert [[retained_positions(state)[l][b] for l in range(2)] for b in range(2)] == list(kept)
    many, end = cell(text, cell.initial_state(2, operator))
    assert_close(many, logits, 1e-8)
    assert_same(end, state, 1e-8)
    lengths = torch.tensor([18, 7])
    ragged, some = cell(text, cell.initial_state(2, operator), lengths=lengths)
    assert_close(ragged[0], logits[0], 1e-8)
    assert_close(ragged[1, :7], logits[1, :7], 1e-8)
    _, before = step_loop(cell, text, cell.initial_state(2, operator), lengths)
    assert_same(some, before, 1e-8)
    for n in (1, 6, 11, 18):
        _, trace = cell.scan(text, cell.initial_state(2, operator), weights=True)
        _, before = step_loop(cell, text[:, :n], cell.initial_state(2, operator))
        assert_same(trace.at(n), before, 1e-8)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("setting", [{"places": "inside"}, {"places": "compressed"}, {"dtype": torch.int8}], ids=str)
def test_fields_of_remapped_and_8_bit_rows(operator, setting):
    cell, text = tiny_cell(), random_tokens(3, 2, 14)
    logits, state = step_loop(cell, text, cell.initial_state(2, operator, **setting))
    many, end = cell(text, cell.initial_state(2, operator, **setting))
    assert_close(many, logits, 1e-8)
    assert_same(end, state, 1e-8)


def test_fields_in_the_stacked_step_and_in_prefill():
    cell, text = tiny_cell(n_layers=3), random_tokens(3, 2, 14)
    operator = AddsTerms(5)
    stacked, plain = cell.initial_state(2, operator), cell.initial_state(2, operator)
    for token in text.T:
        x, layers = cell.embed_tokens(token, plain.clock), []
        for layer, H in zip(cell.layers, plain, strict=True):
            x, H = layer.step(x, H)
            layers.append(H)
        plain = plain.with_layers(layers)
        _, stacked = cell.step_(token, stacked)
        assert_same(stacked, plain, 1e-12)
    logits, state = msrnn.prefill(cell, text, operator)
    assert_close(logits, cell(text)[0][:, -1])
    alone, own = msrnn.prefill(cell, text[1:], ReadsAll(5))
    assert_close(alone[0], logits[1])
    assert retained_positions(own)[0][0] == retained_positions(state)[0][1]


def test_fields_of_a_decoder_with_learned_rows():
    cell, text = tiny_decoder(persistent=2), random_tokens(3, 2, 14)
    for operator in OPERATORS:
        logits, state = step_loop(cell, text, cell.initial_state(2, operator))
        many, end = cell(text, cell.initial_state(2, operator))
        assert_close(many, logits, 1e-8)
        assert_same(end, state, 1e-8)


@pytest.mark.parametrize("name", FLAG_OF_FIELD)
def test_a_field_is_None_without_its_flag(name):
    """And the message names the flag that the class has to state."""
    seen = []

    @dataclass(frozen=True)
    class ReadsOne(msrnn.Reduction):
        def score(self, observation):
            seen.append({n for n in FLAG_OF_FIELD if getattr(observation, n) is not None})
            return observation.weights.mean(2) + 0 * getattr(observation, name).sum()

    flags = dict.fromkeys(FLAG_OF_FIELD.values(), False)
    for flag in flags:
        setattr(ReadsOne, flag, flag == FLAG_OF_FIELD[name])
    cell, text = tiny_cell(), random_tokens(1, 1, 6)
    for path in (cell, lambda *a: step_loop(cell, *a)):
        path(text, cell.initial_state(1, ReadsOne(3)))
    assert all(fields == {name} for fields in seen)
    setattr(ReadsOne, FLAG_OF_FIELD[name], False)
    with pytest.raises(msrnn.Error, match="reads a field that is None; expected a class with needs_keys"):
        cell(text, cell.initial_state(1, ReadsOne(3)))


def test_errors_name_the_flag_that_is_missing():
    class ReadsOutput(msrnn.Reduction):
        needs_values = True

        def score(self, observation):
            return (observation.values * observation.output.mean(2, keepdim=True)[:, :, 0]).sum(-1)

    cell, text = tiny_cell(), random_tokens(1, 1, 6)
    with pytest.raises(
        msrnn.Error, match=r"ReadsOutput\.score reads output, which is None; expected a class with needs_output"
    ):
        cell(text, cell.initial_state(1, ReadsOutput(3)))
    ReadsOutput.needs_output, ReadsOutput.needs_weights = True, False
    with pytest.raises(msrnn.Error, match="needs_output without needs_weights"):
        cell.initial_state(1, ReadsOutput(3))


def test_an_edit_of_a_field_in_place_is_refused():
    class Edits(msrnn.Reduction):
        needs_values = True
        depends_on_row_layout = False

        def score(self, observation):
            return observation.values.mul_(2).sum(-1)

    cell, text = tiny_cell(), random_tokens(1, 1, 6)
    with pytest.raises(msrnn.Error, match=r"Edits\.score edits values in place"):
        step_loop(cell, text, cell.initial_state(1, Edits(3)))


def test_operators_without_the_flags_receive_no_more_than_before(monkeypatch):
    """Nothing is computed or stored for them: the layer input is not recorded."""
    cell, text = tiny_cell(), random_tokens(1, 1, 12)
    for spec in ("tova:5", "h2o:5", "keydiff:5", "window:5"):
        _, trace = cell.scan(text, cell.initial_state(1, spec))
        assert all(block.x is None for layer in trace for block in layer._blocks)
    _, trace = cell.scan(text, cell.initial_state(1, AddsTerms(5)))
    assert all(block.x.shape == (1, 12, 24) for layer in trace for block in layer._blocks)
