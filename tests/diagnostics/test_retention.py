"""Retained positions: equal to those of the states of a step loop, and plotted."""

import pytest
import torch
from support.check_picture import main as check_picture
from support.tiny_models import tiny_cell

from msrnn.diagnostics.retention import eviction_steps, retained_fraction, retention
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
