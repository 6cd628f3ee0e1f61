"""The sections on reading a text: the batches that are compared, and the direction of the ratio."""

import pytest
from support.benchmarks import TOKENS, set_times

from msrnn.bench import unroll
from msrnn.bench.baselines.transformers import Transformers
from msrnn.bench.unroll import WARM_UP_TOKENS


def test_ragged_batch_has_as_many_tokens_as_the_equal_batch(monkeypatch, bench):
    read, bench.tokens = {}, 33  # not divisible by 8
    monkeypatch.setattr(unroll, "read", lambda cell, ids, reduction, lengths: read.update({ids.shape: lengths}))
    (row,) = unroll.ragged(bench)
    (equal, ragged) = read.values()
    assert len(set(equal.tolist())) == 1
    assert equal.sum() == ragged.sum()
    assert (ragged.min(), ragged.max()) == (4, 32)
    assert row.unit == "tokens/s"
    set_times(monkeypatch, equal=[1.0], ragged=[2.0])
    (row,) = unroll.ragged(bench)
    assert (row.value, row.baseline, row.ratio) == (equal.sum() / 2, equal.sum(), 0.5)


def test_both_read_the_same_text(monkeypatch, bench):
    read = []
    monkeypatch.setattr(Transformers, "read", lambda self, ids, cache=None: read.append(("dense", ids.shape[1])))
    monkeypatch.setattr(unroll, "read", lambda cell, ids, spec: read.append((spec, ids.shape[1])))
    list(unroll.long(bench))
    assert {read.count(("dense", n)) for n in (WARM_UP_TOKENS, 4 * TOKENS)} == {1}
    assert {read.count(("tova:8", n)) for n in (WARM_UP_TOKENS, 4 * TOKENS)} == {1}


def test_long_text_is_compared_with_transformers(monkeypatch, bench):
    set_times(monkeypatch, dense=[4.0], tova=[1.0])
    (row,) = unroll.long(bench)
    assert (row.value, row.baseline_name, row.baseline, row.ratio) == (1.0, "transformers, dense", 4.0, 0.25)


def test_bfloat16_is_compared_with_float32(monkeypatch, bench):
    set_times(monkeypatch, float32=[4.0], bfloat16=[1.0])
    (row,) = unroll.bfloat16(bench)
    assert (row.value, row.baseline_name, row.baseline, row.ratio) == (1.0, "msrnn, float32", 4.0, pytest.approx(0.25))
