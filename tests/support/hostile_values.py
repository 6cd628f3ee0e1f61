"""Hypothesis strategies for arguments of any type and size, and checks that a call is refused or works."""

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, settings
from support.tiny_models import tiny_cell

import msrnn

CELL = tiny_cell()
V = CELL.config.vocab_size
MANY = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

HUGE_INTS = st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(2**63), -(10**400)])
NUMBERS = st.one_of(st.integers(-3, 6), HUGE_INTS, st.floats(), st.sampled_from([0.5, 1e-300, 1e300]))
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from([torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64, torch.bfloat16, torch.complex64]),
    st.one_of(st.integers(-2, 60), st.sampled_from([2**62, -(2**63)])),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.binary(max_size=4), st.sampled_from(["cpu", "meta"])
)
ANYTHING = st.one_of(
    SCALARS,
    TENSORS,
    st.lists(SCALARS, max_size=3),
    st.lists(SCALARS, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), SCALARS, max_size=2),
    st.sampled_from([int, object(), slice(None), range(2), torch.float32, torch.int8, torch.Generator, {1, 2}, len, b"", ...]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def accepted(call):
    """Return the result of ``call``, or None if it raises ``msrnn.Error``. Any other exception fails the test."""
    try:
        return call()
    except msrnn.Error as error:
        message = str(error)
        assert message.strip()
        assert message.isprintable()
        assert len(message) <= 1000
        return None


def assert_steps(state, cell=CELL):
    """Assert that an accepted state can be used in a step and in a call."""
    B = len(state.clock)
    if accepted(lambda: cell.step(torch.zeros(B, dtype=torch.int64), state)) is not None:
        cell(torch.zeros(B, 3, dtype=torch.int64), state)
