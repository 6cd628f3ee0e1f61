"""Retained positions: equal to those of the states of a step loop, and plotted."""

import pytest
import torch
from support.check_picture import main as check_picture
from support.tiny_models import tiny_cell

import msrnn
from msrnn.diagnostics.retention import (
    eviction_steps,
    held_share,
    pixel_map,
    retained_fraction,
    retention,
    retention_map,
)
from msrnn.reporting.figures import draw_retention

CELL = tiny_cell()
TOKENS = torch.randint(0, CELL.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))


def test_retained_fraction_is_that_of_the_heads():
    _, state = CELL(TOKENS, CELL.initial_state(2, "tova-head:4"))
    fraction = retained_fraction(state, 12)
    assert fraction.shape == (2, len(state), 12)
    for b in range(2):
        for l, H in enumerate(state):
            heads = H.positions[b].tolist()
            for p in range(12):
                assert fraction[b, l, p] == pytest.approx(sum(p in row for row in heads) / len(heads))
    assert torch.equal(retained_fraction(state, 5), fraction[..., :5])


@pytest.mark.parametrize("reduction", ["h2o:4", "tova:3", "tova-head:5", "sinks:5:2", "full"])
def test_retention_is_that_of_the_step_loop(reduction):
    retained, state = retention(CELL, TOKENS, reduction), CELL.initial_state(2, reduction)
    assert retained.shape == (2, len(CELL.layers), 12, 12)
    for t, token in enumerate(TOKENS.T):
        _, state = CELL.step(token, state)
        assert torch.equal(retained[:, :, t], retained_fraction(state, 12))


def test_eviction_step_is_the_last_that_attends_to_a_position():
    assert eviction_steps(CELL, TOKENS[:1], "window:3")[0, 0, 0].tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12, 12]
    assert eviction_steps(CELL, TOKENS[:1], "window:0")[0, 1, 1].tolist() == list(range(12))
    assert eviction_steps(CELL, TOKENS[:1, :0], "tova:3").shape == (1, 2, 2, 0)


@pytest.mark.parametrize("reduction", ["h2o:4", "tova:3", "tova-head:5", "window:0", "full"])
def test_one_shot_steps_are_those_of_prefill_and_the_step_loop(reduction):
    steps = eviction_steps(CELL, TOKENS, reduction, one_shot=8)
    held = torch.stack([torch.stack([retention_map(layer) for layer in text]) for text in steps])  # (B, L, T, T)
    for t in range(7):
        assert held[:, :, t].eq(torch.arange(12) <= t).all()
    _, state = msrnn.prefill(CELL, TOKENS[:, :8], reduction)
    for t in range(7, 12):
        assert torch.equal(held[:, :, t], retained_fraction(state, 12))
        if t < 11:
            _, state = CELL.step(TOKENS[:, t + 1], state)


def test_held_share_counts_positions_that_are_old_enough():
    steps = torch.tensor([[2, 5, 3, 5, 5], [5, 2, 3, 5, 4]])  # (K, T)
    for age in range(7):
        for share, row in zip(held_share(steps, age), steps.tolist(), strict=True):
            held = [p + age < step for p, step in enumerate(row) if p + age < 5]
            assert share.isnan() if not held else share == sum(held) / len(held)
    ages = [held_share(eviction_steps(CELL, TOKENS, "window:3"), age).unique().tolist() for age in (2, 3)]
    assert ages == [[1.0], [0.0]]


def test_a_reduced_map_shows_the_first_token_alone():
    steps = torch.randint(1, 128, (2, 3, 128), generator=torch.Generator().manual_seed(0)).clamp(min=torch.arange(128))
    whole = torch.stack([retention_map(layer) for layer in steps]).mean(0)
    assert torch.allclose(pixel_map(steps, 128), whole)
    reduced = pixel_map(steps, 64)
    assert reduced.shape == (64, 64)
    for y in range(0, 64, 9):
        assert reduced[y, 0] == pytest.approx(whole[2 * y : 2 * y + 2, 0].mean())
        assert reduced[y, 9] == pytest.approx(whole[2 * y : 2 * y + 2, 18:20].mean())


def test_known_patterns():
    step, position = torch.arange(12)[:, None], torch.arange(12)
    full, window, sinks = (retention(CELL, TOKENS[:1], r)[0, 0].bool() for r in ("full", "window:3", "sinks:5:2"))
    assert torch.equal(full, position <= step)
    assert torch.equal(window, (position <= step) & (position > step - 3))
    assert torch.equal(sinks, (position <= step) & ((position > step - 3) | (position < 2) | (step < 5)))


def test_plot_has_one_panel_per_operator(tmp_path):
    panels = {r: retention(CELL, TOKENS[:1], r)[0].mean(0) for r in ("full", "tova:4", "sinks:4:2", "window:4")}
    draw_retention(panels, tmp_path / "retained.png", prompt=5, title="tiny")
    check_picture(str(tmp_path / "retained.png"), 4)
    assert [p.name for p in tmp_path.iterdir()] == ["retained.png"]


def test_check_of_plots_finds_equal_panels(tmp_path):
    draw_retention({str(i): torch.eye(12) for i in range(4)}, tmp_path / "same.png")
    with pytest.raises(AssertionError, match="differ"):
        check_picture(str(tmp_path / "same.png"), 4)
