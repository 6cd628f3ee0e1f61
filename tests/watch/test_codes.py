"""Numbers in 8 bits: the stated errors, special values, and packed arrays."""

import json

import numpy as np
import pytest

import msrnn
from msrnn.watch.codes import (
    PRECISIONS,
    decode_scores,
    decode_weights,
    encode_scores,
    encode_weights,
    pack,
    rounded,
    unpack,
)

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_have_the_stated_error(precision):
    weights = np.concatenate([2.0 ** RANDOM.uniform(-20, 0, 5000), [0.0, 1.0]])
    decoded, large = decode_weights(encode_weights(weights, precision), precision), weights >= precision.threshold
    factor = 2 ** (0.5 / precision.steps) * (1 + 1e-9)
    assert (decoded[~large] == 0).all()
    assert (decoded[large] <= weights[large] * factor).all()
    assert (decoded[large] >= weights[large] / factor).all()
    assert large.any()
    assert not large.all()


def test_a_finer_precision_is_finer():
    assert list(PRECISIONS) == sorted(PRECISIONS, key=lambda p: (-p.steps, p.threshold))


@pytest.mark.parametrize(
    ("scores", "kind", "tolerance"),
    [
        (RANDOM.gamma(0.5, 2.0, 400) + 0.01, "log", None),
        (RANDOM.normal(0, 3, 400), "linear", 0.5 / 252 * 25),
        (-RANDOM.integers(0, 90, 400).astype(float), "linear", 0.0),
        (RANDOM.integers(0, 2000, 400).astype(float), "linear", 2000 / 252),
        (np.zeros(9), "linear", 0.0),
        (np.full(9, 0.3), "linear", 1e-12),
    ],
)
def test_scores_have_the_stated_error_and_infinities_are_exact(scores, kind, tolerance):
    precision = PRECISIONS[0]
    scores = np.concatenate([scores, [np.inf, -np.inf]])
    codes, fields = encode_scores(scores, precision)
    decoded = decode_scores(codes, json.loads(json.dumps(fields)), precision)
    assert fields["kind"] == kind
    assert decoded[-2:].tolist() == [np.inf, -np.inf]
    found, given = decoded[:-2], scores[:-2]
    if kind == "log":
        assert np.abs(np.log2(found / given)).max() <= 0.5 / precision.steps + 1e-9
    else:
        assert np.abs(found - given).max() <= tolerance


def test_scores_without_a_finite_number():
    codes, fields = encode_scores(np.full(3, np.inf), PRECISIONS[0])
    assert decode_scores(codes, fields, PRECISIONS[0]).tolist() == [np.inf] * 3


def test_floats_keep_twelve_bits():
    x = np.concatenate([RANDOM.normal(0, 1e3, 300), [0.0, 1.0, 0.5, np.inf, -np.inf]])
    y = rounded(x)
    assert y.dtype == np.float32
    assert np.allclose(y[:-2], x[:-2], rtol=2**-13 + 1e-7, atol=0)
    assert y[-5:].tolist() == [0.0, 1.0, 0.5, np.inf, -np.inf]
    assert np.isnan(rounded(np.array([np.nan]))).all()
    assert (y.view(np.uint32) % 2**11 == 0).all()


@pytest.mark.parametrize(
    ("dtype", "delta"), [(np.uint8, False), (np.uint8, True), (np.int16, False), (np.int32, False), (np.float32, False)]
)
def test_packed_arrays_come_back(dtype, delta):
    x = RANDOM.integers(0, 250, (7, 30)).astype(dtype)
    back = unpack(json.loads(json.dumps(pack(x, delta=delta))))
    assert back.dtype == dtype
    assert np.array_equal(back, x)


@pytest.mark.parametrize(
    "fields", [{}, {"dtype": "uint8", "shape": [3], "data": "AAAA"}, {"dtype": "uint8", "shape": [1], "data": 3}]
)
def test_other_fields_are_refused(fields):
    with pytest.raises(msrnn.Error, match="an array of the page's data cannot be read"):
        unpack(fields)
