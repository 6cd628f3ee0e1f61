"""The redundancy of keys in R-KV."""

import torch

from msrnn import RKV, Observation


def test_the_rows_that_do_not_count_in_r_kv_may_be_more_than_int32_holds():
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(1, 2, 9, 4, generator=generator, dtype=torch.float64)
    positions = torch.arange(9).expand(1, 2, 9)
    observation = Observation(keys.new_zeros(1, 2, 1, 9), positions, torch.tensor([9]), {}, keys)
    every, more = (RKV(size, threshold=-1, recent_share=1).redundancy(observation) for size in (9, 2**32))
    assert more.equal(every)
    assert not more.equal(RKV(9, threshold=-1, recent_share=0).redundancy(observation))
