"""A cell does not hold its process group: gloo ends a process with an error if the group outlives ``destroy_process_group``."""

import pytest
import torch.distributed as dist

import msrnn
from msrnn.distributed.ranks import Ranks


def test_a_destroyed_group_is_not_held():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    ranks = Ranks.of()
    assert ranks.group is dist.group.WORLD
    dist.destroy_process_group()
    with pytest.raises(msrnn.Error, match="the process group of this cell or state has been destroyed"):
        _ = ranks.group
