"""The figure of a training run."""

import pytest
from matplotlib.image import imread
from support.figures import record_figures

from msrnn.train.report import draw_training


def check_colours(path):
    """Check that the left panel contains only blue curves and the right panel only orange ones."""
    picture = imread(path)[..., :3]
    half = picture.shape[1] // 2
    for panel, colour, other in (
        (picture[:, :half], (0, 114, 178), (213, 94, 0)),
        (picture[:, half:], (213, 94, 0), (0, 114, 178)),
    ):
        own, foreign = (int((abs(panel - [c / 255 for c in rgb]).max(-1) < 0.03).sum()) for rgb in (colour, other))
        assert own > 100
        assert foreign == 0


def test_figure_contains_losses_and_validations(tmp_path, monkeypatch):
    figures = record_figures(monkeypatch)
    losses = [5 / (i + 1) for i in range(100)]
    draw_training([1.0], {1: 2.0}, tmp_path / "one.svg")
    draw_training(losses, {i: 2.0 / i for i in range(10, 100, 10)}, tmp_path / "many.png", title="x")
    check_colours(tmp_path / "many.png")
    left, right = figures[-1].axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("step", "training loss, nats per token")
    assert (right.get_xlabel(), right.get_ylabel()) == ("step", "validation, bits per byte")
    assert [line.get_label() for line in left.lines] == ["each step", "smoothed"]
    assert list(left.lines[0].get_ydata()) == losses
    assert list(left.lines[0].get_xdata())[:2] == [1, 2]
    assert list(left.lines[1].get_ydata())[:2] == pytest.approx([5.0, 0.95 * 5.0 + 0.05 * 2.5])
    assert list(right.lines[0].get_xdata()) == [*range(10, 100, 10)]
    assert figures[-1].get_suptitle() == "x"
