"""Every violated condition is an error that states token, path and layer."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from support.tiny_models import random_tokens, tiny_cell, tiny_decoder

import msrnn
from msrnn import Reduction, Sinks, Window
from msrnn.diagnostics.invariants import check_rows, compare_step
from msrnn.diagnostics.soak import STATE, soak
from msrnn.recurrence import block_scores, eviction
from msrnn.reductions.contract import EMPTY

CELL = tiny_cell()


# Damages from token 40 on, in layer 1. The first 32 tokens are correct and saved.


def on_rows(change):
    """Return a damage that applies ``change`` to the rows ``(1, K, S, …)`` of layer 1."""

    def damage(logits, state):
        layers = list(state)
        named = {name: x.clone() for name, x in layers[1].rows.items()}
        change(named)
        layers[1] = layers[1].with_rows(named, layers[1].clock)
        return logits, state.with_layers(layers)

    return damage


def additional_row(x):
    x.update({name: torch.cat((y, y[:, :, :1]), dim=2) for name, y in x.items()})
    x["positions"][..., -1] = 0


def missing_row(x):
    x.update({name: y[:, :, 1:] for name, y in x.items()})


def empty_row(x):
    x["positions"][0, 1, 2] = -1


def empty_column(x):
    x.update({name: torch.cat((y, y[:, :, :1]), dim=2) for name, y in x.items()})
    x["positions"][..., -1] = -1


def repeated_position(x):
    x["positions"][0, 1, 0] = x["positions"][0, 1, 1]


def future_position(x):
    x["positions"][0, 0, 0] = 1000


def negative_position(x):
    x["positions"][0, 0, 0] = -7


def newest_evicted(x):
    p = x["positions"]
    p[p == p.max()] = next(q for q in range(20) if q not in p)


def infinite_key(x):
    x["keys"][0, 0, 0, 0] = torch.inf


def nan_statistic(x):
    next(y for name, y in x.items() if name not in ("keys", "values", "positions"))[0, 0, 0] = torch.nan


def all_clocks(logits, state):
    return logits, state.with_layers(replace(H, clock=H.clock - 1) for H in state)


def one_clock(logits, state):
    return logits, state.with_layers(replace(H, clock=H.clock + l) for l, H in enumerate(state))


def growing_storage(logits, state):
    large = [torch.cat((H.keys, H.keys.new_zeros(1, 2, int(state.clock), 6)), dim=2)[:, :, : H.keys.shape[2]] for H in state]
    return logits, state.with_layers(replace(H, keys=keys) for H, keys in zip(state, large, strict=True))


def nan_logits(logits, state):
    return logits.clone().index_fill(-1, torch.tensor([3]), torch.nan), state


def inexact_logits(logits, state):
    return logits + 1e-7, state


DAMAGES = [
    (on_rows(additional_row), "layer 1: the heads hold .7, 7. rows in 7 columns; expected 6"),
    (on_rows(missing_row), "layer 1: the heads hold .5, 5. rows"),
    (on_rows(empty_row), "layer 1: the heads hold .6, 5. rows"),
    (on_rows(empty_column), "layer 1: the heads hold .6, 6. rows in 7 columns"),
    (on_rows(repeated_position), "layer 1: a head holds a position twice"),
    (on_rows(future_position), "layer 1: the positions are [0-9]+ to 1000;"),
    (on_rows(negative_position), "layer 1: the positions are -7 to"),
    (on_rows(newest_evicted), "layer 1: h2o:6 retains the first 0 and the newest 3 tokens; some are missing"),
    (on_rows(infinite_key), "layer 1: keys are not finite"),
    (on_rows(nan_statistic), "layer 1: [a-z_]+ are not finite"),
    (all_clocks, "unroll: the clock is"),
    (one_clock, "layer 1: the clock is"),
    (growing_storage, "H grew from"),
    (nan_logits, "the logits are not finite"),
    (inexact_logits, "the logits of unroll and step loop differ by 1.0e-07; expected at most 1e-08"),
]


def damage_unroll(monkeypatch, damage, applies):
    """Apply ``damage`` to every result of the unroll with a clock for which ``applies(clock)`` is true."""
    forward = type(CELL).forward

    def damaged(self, ids, state, **options):
        logits, after = forward(self, ids, state, **options)
        return damage(logits, after) if applies(int(after.clock)) else (logits, after)

    monkeypatch.setattr(type(CELL), "forward", damaged)


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=lambda x: x[:20] if isinstance(x, str) else "")
def test_damaged_unroll_is_an_error(damage, message, tmp_path, monkeypatch):
    damage_unroll(monkeypatch, damage, lambda clock: clock > 40)
    with pytest.raises(msrnn.Error, match=rf"after \d+ tokens.*{message}"):
        soak(CELL, tmp_path, 128, "h2o:6", interval=32)
    assert int(msrnn.load_state(tmp_path / STATE).clock) <= 64
    monkeypatch.undo()
    assert [row.read for row in soak(CELL, tmp_path, 96, "h2o:6", interval=32)] == [32, 64, 96]  # the run resumes


def test_end_of_an_interval_is_checked_before_it_is_saved(tmp_path, monkeypatch):
    """The damage is far from the tokens that the step loop reads."""
    damage_unroll(monkeypatch, on_rows(repeated_position), lambda clock: clock == 320)
    with pytest.raises(msrnn.Error, match="after 320 tokens, unroll, layer 1: a head holds a position twice"):
        soak(CELL, tmp_path, 480, "tova:6", interval=160)
    assert int(msrnn.load_state(tmp_path / STATE).clock) == 160


@pytest.mark.parametrize("operator", [Window, Sinks])
def test_guaranteed_rows_must_be_present(operator, tmp_path, monkeypatch):
    """Both paths evict the newest row."""
    monkeypatch.setattr(operator, "score", lambda self, observation: -observation.positions[:, :1].double())
    with pytest.raises(msrnn.Error, match=r"layer 0: .*:6.* retains the first [02] and the newest [46] tokens; some are"):
        soak(CELL, tmp_path, 64, operator(6, *([2] if operator is Sinks else [])), interval=32)


@pytest.mark.parametrize("module", [block_scores, eviction])
def test_different_eviction_is_an_error(module, tmp_path, monkeypatch):
    """One of the two paths evicts the row of the highest score."""
    original = module.above_lowest
    monkeypatch.setattr(module, "above_lowest", lambda s, *more: original((-s).masked_fill(s.isinf(), torch.inf), *more))
    with pytest.raises(
        msrnn.Error, match=r"layer [01]: the unroll evicts position \d+, the step loop \d+; their scores differ"
    ):
        soak(CELL, tmp_path, 64, "tova:6", interval=32)
    assert not list(tmp_path.iterdir())


def test_damaged_step_is_an_error(tmp_path, monkeypatch):
    step = type(CELL).step_
    monkeypatch.setattr(type(CELL), "step_", lambda self, token, state: (step(self, token, state)[0] * torch.nan, state))
    with pytest.raises(msrnn.Error, match="step loop: the logits are not finite"):
        soak(CELL, tmp_path, 64, "tova:6", interval=32)


@dataclass(frozen=True)
class Wavering(Reduction):
    """Scores are equal, except for a ripple that depends on the number of columns, so unroll and step loop never agree."""

    ripple: float = 0.0
    depends_on_row_layout: ClassVar[bool] = False  # which is not true

    def score(self, observation):
        positions = observation.positions[:, :1].double()
        return 1 + self.ripple * (positions * positions.shape[-1]).sin()


def test_near_ties_are_counted_and_larger_gaps_are_errors(tmp_path):
    cell = tiny_cell(dtype=torch.float32)
    rows = soak(cell, tmp_path / "near", 96, Wavering(6, ripple=1e-6), interval=32)
    assert all(row.near_ties >= 1 for row in rows)
    assert all(row.difference < 1e-5 for row in rows)  # of the tokens before the near-tie
    with pytest.raises(msrnn.Error, match=r"their scores differ by"):
        soak(cell, tmp_path / "far", 96, Wavering(6, ripple=1e-2), interval=32)
    with pytest.raises(msrnn.Error, match=r"their scores differ by"):
        soak(CELL, tmp_path / "exact", 96, Wavering(6, ripple=1e-6), interval=32)  # no near-ties in float64


def test_comparison_returns_the_state_of_the_unroll():
    text = random_tokens(0, 1, 30)
    _, before = CELL(text[:, :20], CELL.initial_state(1, "tova:6"))
    compared, after = compare_step(CELL, text[:, 20:], before)
    assert after.clock.tolist() == [30]
    assert before.clock.tolist() == [20]
    assert compared.difference < 1e-8
    assert compared.near_ties == 0
    assert compared.unroll_ms > 0 < compared.step_ms


def test_times_are_milliseconds_per_token_and_of_the_median_step(monkeypatch):
    """The unroll takes 6 seconds for three tokens, the steps take 1, 7 and 5 seconds."""
    times = iter([0.0, 6.0, 10.0, 11.0, 20.0, 27.0, 30.0, 35.0])
    _, before = CELL(random_tokens(0, 1, 9), CELL.initial_state(1, "tova:6"))
    monkeypatch.setattr("msrnn.diagnostics.invariants.time.perf_counter", lambda: next(times))
    compared, _ = compare_step(CELL, random_tokens(1, 1, 3), before)
    assert (compared.unroll_ms, compared.step_ms) == (2000, 5000)


def test_learned_rows_are_not_counted(tmp_path):
    cell = tiny_decoder(memory_tokens=2, persistent=1)
    assert [row.read for row in soak(cell, tmp_path, 64, "tova:6", interval=32)] == [32, 64]
    state = cell(random_tokens(0, 1, 9), cell.initial_state(1, "tova:6"))[1]
    state[1].positions[0, 1, 2] = EMPTY
    with pytest.raises(msrnn.Error, match="layer 1: some of the 3 learned rows are missing"):
        check_rows(state, 9)
