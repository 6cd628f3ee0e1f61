"""A saved state of two layers, one bounded and one unbounded."""

import pytest
from support.tiny_models import random_tokens, tiny_cell

from msrnn import H2O, Full


@pytest.fixture
def saved(tmp_path):
    cell = tiny_cell()
    _, state = cell(random_tokens(1, 2, 9), cell.initial_state(2, [H2O(4), Full()]))
    state.save(tmp_path / "state")
    return tmp_path / "state"
