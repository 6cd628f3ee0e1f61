"""A cell does not hold its process group: gloo ends a process with an error if the group outlives ``destroy_process_group``."""

import pytest
import torch.distributed as dist
from support.tiny_models import tiny_cell

import msrnn


def test_a_destroyed_group_is_not_held_by_a_cell_or_a_state():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    cell = msrnn.distribute(tiny_cell(seed=0))
    state = cell.initial_state(1, "tova:4")
    dist.destroy_process_group()
    with pytest.raises(msrnn.Error, match="the process group of this cell or state has been destroyed"):
        _ = state.heads.ranks.group
