"""A spec string gives an equal operator back, for the library's operators and for any dataclass of simple settings."""

import enum
import itertools
import keyword
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import ClassVar, Literal, Optional

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import tiny_cell

import msrnn
from msrnn import H2O, TOVA, CaM, Keyformer, Random, Reduction, Sinks, Window, parse_reduction
from msrnn.reductions.calibrated import CalibratedReduction
from msrnn.reductions.spec_strings import SPEC_NAMES, default_spec_name

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


LIBRARY = {kind for kind, _ in SPEC_NAMES.values() if kind.__module__.startswith("msrnn.")}
LIBRARY = {kind for kind in LIBRARY if not issubclass(kind, CalibratedReduction)}  # those are in test_calibrated.py
VALUES = {"size": ((60, 70),), "sinks": (1, 4, 7), "recent": (0, 7), "seed": (0, 3), "layer": (0, 2)}
VALUES |= {"window": (32, 8), "history": (400, 9), "steps": (1024, 5), "merge_window": (32, 2)}
VALUES |= {"per_head": (True, False), "max_fusion": (True, False), "lag": (None, 5), "forgetting": (0.9, 0.5)}
VALUES |= {"large": (None, 5), "importance": (0.1, 0.5), "threshold": (0.5, 0), "recent_share": (0.1, 0.2)}


@pytest.mark.parametrize("kind", sorted(LIBRARY, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_setting_of_the_library_round_trips(kind):
    found = {kind()} if kind is msrnn.Full else {kind(60)}
    for f in fields(kind) if kind is not msrnn.Full else ():
        found |= {replace(operator, **{f.name: value}) for operator in found for value in VALUES[f.name]}
    assert all(parse_reduction(str(operator)) == operator for operator in found)
    assert len({str(operator) for operator in found}) == len(found)


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        (Sinks(8), "sinks:8:4"),
        (Sinks((8, 9), 2), "sinks:8,9:2"),
        (TOVA((8,)), "tova:8,"),
        (H2O(8, recent=0, per_head=False), "h2o-layer:8:0"),
        (Keyformer(8, steps=3), "keyformer:8:none:3"),
        (Random(8, layer=1), "random:8:layer=1"),
        (CaM(8), "cam:8"),
        (CaM(8, seed=2, layer=0), "cam:8:4:32:2:layer=0"),
    ],
)
def test_text_of_an_operator(operator, text):
    assert str(operator) == text
    assert parse_reduction(text) == operator


def test_a_field_can_be_given_by_its_name():
    assert parse_reduction("keyformer:8:seed=3") == Keyformer(8, seed=3)
    assert parse_reduction("TOVA:size=8") == TOVA(8)
    assert parse_reduction("tova:8:per_head=true") == TOVA(8, per_head=True)


@dataclass(frozen=True)
class MyTOVA(TOVA):
    decay: float = 0.5
    mode: str = "Mean"


@dataclass(frozen=True)
class MySinks(Sinks):
    pass


class PlainTOVA(TOVA):
    """Not a dataclass of its own."""


def test_a_subclass_has_a_name_of_its_own():
    assert str(MyTOVA(4)) == "my-tova:4"
    assert str(MySinks(8)) == "my-sinks:8"
    assert str(PlainTOVA(4)) == "plain-tova:4"
    assert str(MyTOVA(4, True, 0.9, "Max")) == "my-tova:4:true:0.9:Max"
    for operator in (MyTOVA(4, decay=0.9), MySinks(8, 2), PlainTOVA(4), MyTOVA((4, 5), mode="a:b")):
        assert parse_reduction(str(operator)) == operator
    assert "my-tova:4 " in repr(tiny_cell().initial_state(1, MyTOVA(4)))


@pytest.mark.parametrize(
    ("name", "spec"),
    [("MyTOVA", "my-tova"), ("H2OPlus", "h2o-plus"), ("Faded", "faded"), ("TOVA2", "tova2"), ("CaM", "ca-m"), ("A_b", "a_b")],
)
def test_default_names(name, spec):
    assert default_spec_name(type(name, (), {})) == spec


def test_a_class_name_that_is_taken_is_written_in_full():
    def define():
        @dataclass(frozen=True)
        class Window(msrnn.Window):
            bonus: float = 0.0

        return Window

    kind = define()
    assert parse_reduction("window:4") == Window(4)
    assert (
        str(kind(4, 0.5))
        == f"{__name__}.test_a_class_name_that_is_taken_is_written_in_full.<locals>.define.<locals>.Window:4:0.5"
    )
    assert parse_reduction(str(kind(4, 0.5))) == kind(4, 0.5)


def test_the_later_of_two_classes_has_the_class_name():
    def define(**body):
        return dataclass(frozen=True)(type("TwiceDefined", (TOVA,), {"__qualname__": f"TwiceDefined{len(body)}", **body}))

    one, other = define()(4), define(x=1)(4)
    assert [str(one), str(other)] == [f"{__name__}.TwiceDefined0:4", "twice-defined:4"]
    stated = define(spec_names={"twice-defined": {}}, y=2)(4)
    later = define(x=1, y=2, z=3)(4)
    assert [str(stated), str(later)] == ["twice-defined:4", f"{__name__}.TwiceDefined3:4"]
    assert [parse_reduction(str(x)) for x in (one, other, stated, later)] == [one, other, stated, later]


def test_two_classes_of_one_stated_name_have_two_texts():
    def one():
        @dataclass(frozen=True)
        class One(TOVA):
            spec_names: ClassVar = {"same": {}}

        return One(4)

    def other():
        @dataclass(frozen=True)
        class Other(TOVA):
            spec_names: ClassVar = {"same": {}}

        return Other(4)

    first, second = one(), other()
    assert str(second) == "same:4" != str(first)
    assert [parse_reduction(str(operator)) for operator in (first, second)] == [first, second]


def test_settings_that_no_stated_name_fixes_are_written():
    @dataclass(frozen=True)
    class Modes(TOVA):
        mode: int = 0
        spec_names: ClassVar = {"modes-a": {"mode": 1}, "modes-b": {"mode": 2}}

    assert [str(Modes(4, mode=mode)) for mode in (1, 2, 3)] == ["modes-a:4", "modes-b:4", "modes-a:4:mode=3"]
    assert parse_reduction("modes-a:4:mode=3") == Modes(4, mode=3)


@pytest.mark.parametrize("name", ["Mine", "a:b", "a b", "a=b", ""])
def test_names_that_no_spec_string_can_contain_are_refused(name):
    with pytest.raises(msrnn.Error, match=r"spec name is .*; expected lower-case letters"):

        class Mine(TOVA):
            spec_names: ClassVar = {name: {}}


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("my-tova:4:maybe", r"my-tova:<size: int>\[:<per_head: bool>\]\[:<decay: float>\]\[:<mode: str>\]"),
        ("my-tova:4:true:x", "<decay: float>"),
        ("my-tova:4:decay=0.5:true", "<decay: float>"),
        ("my-tova:4:decay=0.5:decay=0.6", "<decay: float>"),
        ("my-tova:4:dekay=0.5", "<decay: float>"),
        ("my-tova:decay=0.5", "<size: int>"),
        ("tova:4:per_head=1", "tova:<size: int>"),
        ("window:4_0", "window:<size: int>"),
        ("window:" + "9" * 500, "window:<size: int>"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_form(text, form):
    with pytest.raises(msrnn.Error, match=f"expected the form .*{form}"):
        parse_reduction(text)


def test_a_class_with_its_own_init_is_refused_in_one_sentence():
    class OwnInit(TOVA):
        def __init__(self):
            super().__init__(4)

    with pytest.raises(msrnn.Error, match="OwnInit cannot be made from its fields"):
        parse_reduction("own-init:4")


def test_bases_without_a_score_have_no_name():
    class NoScore(Reduction):
        pass

    assert "no-score" not in SPEC_NAMES
    assert not {"key-based-reduction", "stochastic-reduction", "deferred-eviction"} & set(SPEC_NAMES)
    assert torch.is_tensor(tiny_cell().initial_state(1, "my-tova:4:decay=0.25").clock)


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
