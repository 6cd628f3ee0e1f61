"""Spec strings of user-defined operators: their names, and settings that do not fit."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.tiny_models import tiny_cell

import msrnn
from msrnn import TOVA, Reduction, Sinks, Window, parse_reduction
from msrnn.reductions.spec_strings import SPEC_NAMES, default_spec_name


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
