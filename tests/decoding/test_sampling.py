"""Sampling probabilities against a count by hand."""

from fractions import Fraction

import numpy
import pytest
import torch

import msrnn
from msrnn.decoding.sampling import make_sampler, sampling_probs


def test_temperature_then_top_k_then_top_p():
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, 1.5]], dtype=torch.float64)
    scaled = (logits[0] / 0.7).exp()
    likely = scaled.argsort(descending=True)[:4]  # top_k = 4
    share = scaled[likely] / scaled[likely].sum()
    count = next(n for n in range(1, 5) if share[:n].sum() >= 0.8)  # the smallest set that reaches top_p = 0.8
    expected = torch.zeros(6, dtype=torch.float64)
    expected[likely[:count]] = share[:count] / share[:count].sum()
    assert 1 < count < 4
    assert torch.allclose(sampling_probs(logits, temperature=0.7, top_k=4, top_p=0.8)[0], expected)


def test_top_p_stops_at_the_token_that_reaches_it_exactly():
    assert sampling_probs(torch.zeros(1, 4), top_p=0.5).tolist() == [[0.5, 0.5, 0, 0]]
    assert sampling_probs(torch.zeros(1, 4), top_p=0.51)[0].count_nonzero() == 3


def test_top_k_retains_all_tokens_as_likely_as_the_last():
    probs = sampling_probs(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), top_k=2)[0]
    assert probs[1] == probs[2] > 0
    assert probs[3] == 0


def test_a_top_k_above_the_vocabulary_size_changes_nothing():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    assert sampling_probs(logits, top_k=9).equal(sampling_probs(logits))


def test_a_temperature_above_the_largest_float_raises():
    with pytest.raises(msrnn.Error, match="temperature is 1000"):
        make_sampler(do_sample=True, temperature=10**400)


def test_numpy_numbers_are_accepted():
    settings = {"temperature": numpy.float32(0.5), "top_k": numpy.int64(1), "top_p": numpy.float64(0.9)}
    assert make_sampler(do_sample=True, **settings)(torch.tensor([[0.0, 3.0, 1.0]])).tolist() == [1]


def test_fractions_are_accepted():
    settings = {"temperature": Fraction(1, 2), "top_p": Fraction(1, 2)}
    assert make_sampler(do_sample=True, **settings)(torch.tensor([[0.0, 9.0, 1.0]])).tolist() == [1]


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-45, 1e39, 1e308])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_temperature_beyond_the_dtype_gives_probabilities(temperature, dtype):
    logits = torch.tensor([[1.0, 3.0, -torch.inf, 2.0]], dtype=dtype)
    probs = sampling_probs(logits, temperature=temperature)
    expected = [0, 1, 0, 0] if temperature < 1 else [1 / 3, 1 / 3, 0, 1 / 3]
    assert torch.allclose(probs.double(), torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("value", ["no", 1, None, 0.0])
def test_do_sample_has_to_be_a_bool(value):
    with pytest.raises(msrnn.Error, match=r"do_sample is .*expected a bool"):
        make_sampler(do_sample=value)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"do_sample": True, "temperature": 1e-320, "top_p": 0.5}])
@pytest.mark.parametrize(("value", "printed"), [(torch.nan, "nan"), (torch.inf, "inf"), (-torch.inf, "-inf")])
def test_nan_and_infinite_logits_raise_one_sentence(settings, value, printed):
    logits = torch.zeros(2, 4)
    logits[1] = value
    with pytest.raises(msrnn.Error, match=f"largest logit of row 1 is {printed}; expected a finite number"):
        make_sampler(**settings)(logits)
    logits[1, 2:] = 0
    if printed == "-inf":  # excluded tokens
        assert make_sampler(**settings)(logits)[1] >= 2


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p"])
@pytest.mark.parametrize("value", [True, "1", -1, 0, float("nan"), float("inf")])
def test_invalid_settings_raise(name, value):
    with pytest.raises(msrnn.Error, match=f"{name} is "):
        make_sampler(do_sample=True, **{name: value})
