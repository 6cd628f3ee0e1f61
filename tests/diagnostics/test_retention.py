"""Retained positions: equal to those of the states of a step loop, and plotted."""

import pytest
import torch
from support.check_picture import main as check_picture
from support.tiny_models import tiny_cell

import msrnn
from msrnn.diagnostics.retention import (
    eviction_steps,
    heads_agree,
    pixel_map,
    retained_fraction,
    retention,
    retention_map,
    share_label,
    survival,
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


@pytest.mark.parametrize("K", [1, 3])
def test_survival_is_the_kaplan_meier_estimate(K):
    T = 24
    lifetimes = torch.randint(0, 15, (K, T), generator=torch.Generator().manual_seed(K))
    steps = (torch.arange(T) + lifetimes).clamp(max=T)
    found, expected = survival(steps), 1.0
    assert found.shape == (T // 2 + 1,)
    for age in range(T // 2 + 1):
        seen = [step - p for row in steps.tolist() for p, step in enumerate(row) if p + age < T and step - p >= age]
        expected *= sum(lived > age for lived in seen) / len(seen)
        assert found[age] == pytest.approx(expected)
    assert survival(eviction_steps(CELL, TOKENS, "window:3")).tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert survival(eviction_steps(CELL, TOKENS, "full")).tolist() == [1] * 7


def test_the_label_of_a_map_names_what_is_averaged():
    assert share_label(30, 3) == "share of layers and heads that hold the position"
    assert share_label(30, 1) == "share of layers that hold the position"
    assert share_label(1, 3, reduced=True) == "share of heads that hold the position"
    assert share_label(1, 1, reduced=True) == "share of (step, position) in H, per pixel"
    assert share_label(1, 1) == "1: in H, 0: not in H"


def test_heads_agree_under_operators_that_decide_per_layer():
    for reduction, agree in {"tova:3": True, "window:3": True, "tova-head:3": False, "h2o:4": False}.items():
        assert heads_agree(retention(CELL, TOKENS[:1], reduction)[0]) == agree


def test_a_reduced_map_has_the_first_token_in_front():
    steps = torch.randint(1, 128, (2, 3, 128), generator=torch.Generator().manual_seed(0)).clamp(min=torch.arange(128))
    whole = torch.stack([retention_map(layer) for layer in steps]).mean(0)
    assert torch.allclose(pixel_map(steps, 128), torch.cat((whole[:, :1], whole), dim=1))
    reduced = pixel_map(steps, 64)
    assert reduced.shape == (64, 65)
    for y in range(0, 64, 9):
        lines = whole[2 * y : 2 * y + 2]
        assert reduced[y, 0] == pytest.approx(lines[:, 0].mean())
        assert reduced[y, 1] == pytest.approx(lines[:, :2].mean())
        assert reduced[y, 10] == pytest.approx(lines[:, 18:20].mean())


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
