"""transformers as a baseline: the same weights and a cache of the expected length."""

import pytest
import torch
from transformers import DynamicCache

from msrnn.bench.baselines.transformers import is_hugging_face, nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_the_same(dtype, bench):
    baseline, cell, ids = bench.transformers(dtype), bench.cell(dtype), bench.text(20)
    assert {p.dtype for p in (*baseline.model.parameters(), *cell.parameters())} == {dtype}
    error = (baseline.model(ids).logits - cell(ids)[0]).abs().mean() / cell(ids)[0].abs().mean()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


def test_step_leaves_the_cache_at_its_length(bench):
    baseline, ids = bench.transformers(), bench.text(20)
    cache = baseline.read(ids)
    baseline.step(ids[:, 0], cache)
    assert cache.get_seq_length() == 20


def test_bytes_of_a_cache_are_those_of_keys_and_values():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5), 0)
    cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5), 1)
    assert nbytes(cache) == 2 * 6 * (4 + 5) * 4


def test_only_a_folder_with_weights_is_a_hugging_face_folder(folder, tmp_path):
    assert is_hugging_face(str(folder / "hf"))
    assert not is_hugging_face(str(folder / "own"))
    (tmp_path / "config.json").write_bytes((folder / "hf" / "config.json").read_bytes())
    assert not is_hugging_face(str(tmp_path))
