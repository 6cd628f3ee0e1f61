"""Sizes per layer that decrease with depth."""

from itertools import pairwise

import pytest
from support.tiny_models import random_tokens, tiny_cell

import msrnn
from msrnn import pyramid


def test_pyramid_decreases_linearly_with_the_given_mean():
    sizes = pyramid(512, 30)
    assert sizes[0] == 998
    assert sizes[-1] == round(512 / 20)
    steps = [a - b for a, b in pairwise(sizes)]
    assert max(steps) - min(steps) <= 1
    assert sum(sizes) / 30 == pytest.approx(512, abs=0.5)
    assert pyramid(64, 3, window=32, beta=2) == (80, 64, 48)
    assert pyramid(7, 1) == (7,)
    assert min(pyramid(4, 8)) == 1
    cell = tiny_cell()
    state = cell(random_tokens(1, 1, 20), cell.initial_state(1, msrnn.TOVA(pyramid(5, 2, beta=4))))[1]
    assert [H.keys.shape[2] for H in state] == [9, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0, "n_layers": 3}, "size is 0"),
        ({"size": 4, "n_layers": True}, "n_layers is True"),
        ({"size": 4, "n_layers": 2, "window": 4}, "window is 4"),
        ({"size": 4, "n_layers": 2, "beta": 0.5}, "beta is 0.5"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(msrnn.Error, match=message):
        pyramid(**arguments)
