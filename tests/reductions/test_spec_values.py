"""A spec string gives the same settings back, for any dataclass of simple settings, and differs for different settings."""

import enum
import itertools
import keyword
from dataclasses import field, fields, make_dataclass
from typing import Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import msrnn
from msrnn import TOVA, Reduction, parse_reduction

SIMPLE = {
    int: st.integers(),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=6) | st.sampled_from(["none", "true", "1", "1e3", ",", "a=b", "A:b", "%41", "", " x ", "inf"]),
}
OPTIONAL = {kind | None: values | st.none() for kind, values in SIMPLE.items()}
TYPES = {
    **SIMPLE,
    **OPTIONAL,
    Optional[float]: OPTIONAL[float | None],  # noqa: UP045
    int | float | str | None: st.one_of(*SIMPLE.values(), st.none()),
    tuple[float, ...]: st.lists(SIMPLE[float], max_size=3).map(tuple),
    tuple[int, str] | None: st.tuples(SIMPLE[int], SIMPLE[str]) | st.none(),
    Literal["low", "high"]: st.sampled_from(["low", "high"]),
    "float": SIMPLE[float],
    "a name that does not exist": st.one_of(*SIMPLE.values(), st.none()),
}
NAMES = st.text("abcdefgh", min_size=2, max_size=4).filter(lambda name: not keyword.iskeyword(name))


@st.composite
def operators(draw):
    """Two operators of one new class with fields of any simple types."""
    kinds = draw(st.lists(st.sampled_from(list(TYPES)), max_size=4))
    names = draw(st.lists(NAMES, min_size=len(kinds), max_size=len(kinds), unique=True))
    defaulted = draw(st.integers(0, len(kinds)))
    columns = []
    for i, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        options = {"default": draw(TYPES[kind])} if i >= defaulted else {}
        columns.append((name, kind, field(kw_only=draw(st.booleans()), **options)))
    fixed = draw(st.sampled_from(names)) if names and draw(st.booleans()) else None
    body = {"score": TOVA.score}
    if fixed:
        body["spec_names"] = {"generated-a": {fixed: draw(TYPES[kinds[names.index(fixed)]])}, "generated": {}}
    kind = make_dataclass("Generated", columns, bases=(Reduction,), namespace=body, frozen=True)
    values = [{name: draw(TYPES[kind]) for name, kind in zip(names, kinds, strict=True)} for _ in range(2)]
    sizes = [draw(st.integers(1, 99) | st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)) for _ in range(2)]
    return tuple(kind(size=size, **some) for size, some in zip(sizes, values, strict=True))


@given(operators())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_simple_settings_round_trip(pair):
    for operator in pair:
        text = str(operator)
        assert text.isprintable()
        again = parse_reduction(text)
        assert again == operator, text
        assert str(again) == text
        assert all(type(getattr(again, f.name)) is type(getattr(operator, f.name)) for f in fields(operator)), text
    one, other = pair
    assert one == other or str(one) != str(other)  # 1 and 1.0 are equal and may have two texts


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Mode(str, enum.Enum):
    MEAN = "mean"
    __str__, __format__ = str.__str__, str.__format__  # as in enum.StrEnum, which Python 3.10 lacks


def operator_of(hint, value):
    return make_dataclass(
        "AnyValue", [("value", hint)], bases=(TOVA,), namespace={"score": TOVA.score}, frozen=True, kw_only=True
    )(4, value=value)


VALUES_OF_ANY_TYPE = [
    *((1, 2, 3), ((1, 2), 3), (1, (2, 3)), ((1, 2, 3),), ((1,), 2), ((),), (), ("",), "1,2,3", "()", "", [1, 2, 3], [], None),
    *(Color.RED, Color.BLUE, "<Color.RED: 1>", (Color.RED,), {"a": 1}, {1}, b"a", "b'a'", 1j, "!", "!x", ("!",), 2**53 + 1),
    *(10**400, -1, 2, 0.5, float("inf"), "none", "None", "true", frozenset((1,)), Color, int),
]
HINTS = (object, tuple, tuple[int, ...], int, float, bool, str, Color, list, int | None, tuple[tuple[int, ...], ...])


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_two_operators_have_two_texts_also_of_settings_that_cannot_be_written(hint):
    texts = [str(operator_of(hint, value)) for value in VALUES_OF_ANY_TYPE]
    assert len(set(texts)) == len(texts), [text for text in texts if texts.count(text) > 1]
    kind = type(operator_of(hint, None))
    for text, value in zip(texts, VALUES_OF_ANY_TYPE, strict=True):
        if "!" in text:
            with pytest.raises(msrnn.Error, match=r"'!' stands for a setting that a spec string cannot contain; expected none"):
                parse_reduction(text)
        else:
            assert parse_reduction(text) == kind(4, value=value), text


@pytest.mark.parametrize(
    ("hint", "value", "text"),
    [
        (bool, 1, "true"),
        (bool, 0, "false"),
        (float, 2, "2.0"),
        (int, True, "true"),
        (Mode, Mode.MEAN, "mean"),
        (str, "!x", "%21x"),
        (float, float("nan"), "nan"),
    ],
)
def test_settings_that_equal_a_simple_value_are_written(hint, value, text):
    operator = operator_of(hint, value)
    assert str(operator) == f"any-value:4:value={text}"
    again = parse_reduction(str(operator)).value
    assert again == value or value != value


def test_every_pair_of_tuples_has_two_texts():
    level = [1, (), (1,), (1, 1)]
    nested = [x for n in range(3) for x in itertools.product(level, repeat=n)]
    assert len({str(operator_of(tuple, x)) for x in nested}) == len(nested)
