"""Messages on sizes and files in spec strings, and one spec string for equal numbers."""

from dataclasses import dataclass

import pytest
import torch
from support.refusals import refusing
from support.tiny_models import tiny_cell

import msrnn
from msrnn import A2SF, RKV, Constants, QFilters, SharedBudget, parse_reduction

FORM = "; sizes per layer are 64,32, sizes per head 64/32, or full/32 with an unbounded head"


@pytest.mark.parametrize("text", ["tova-head:full,4/4", "tova-head:4,full", "h2o:full", "tova-head:4//4", "h2o:size=full,4/4"])
def test_a_misspelt_list_of_sizes_names_the_forms_of_sizes(text):
    name = text.partition(":")[0]
    with refusing(f"reduction '{text}': expected the form {name}:<size: int>") as raised:
        parse_reduction(text)
    assert str(raised.value).endswith(FORM)


@pytest.mark.parametrize("text", ["tova-head:x", "sinks:8:a/b", "sinks:8:full", "tova:8:1:2", "h2o:recent=full"])
def test_other_mistakes_do_not(text):
    with pytest.raises(msrnn.Error) as raised:
        parse_reduction(text)
    assert "expected the form" in str(raised.value)
    assert FORM not in str(raised.value)


def test_the_settings_of_an_operator_without_lists_of_sizes_do_not_name_them():
    @dataclass(frozen=True)
    class OneSize(msrnn.TOVA):
        size: int

    with pytest.raises(msrnn.Error) as raised:
        parse_reduction("one-size:8/8")
    assert str(raised.value).endswith("expected the form one-size:<size: int>[:<per_head: bool>]")


@pytest.mark.parametrize("floor", [0, 0.0, -0.0, False + 0])
def test_a_floor_of_zero_has_one_spec_string(floor):
    operator = SharedBudget(msrnn.TOVA(4, per_head=True), floor=floor)
    assert str(operator) == "shared:floor=0.0:tova-head:4"
    assert str(parse_reduction(f"shared:floor={floor}:tova-head:4")) == str(operator)
    assert repr(operator) == repr(SharedBudget(msrnn.TOVA(4, per_head=True), floor=0.0))


@pytest.mark.parametrize(
    ("make", "spec"), [(lambda x: A2SF(4, forgetting=x), "a2sf:4:0.0"), (lambda x: RKV(12, importance=x), "r-kv:12:8:0.0")]
)
def test_a_setting_of_zero_has_one_spec_string(make, spec):
    assert make(0.0) == make(-0.0)
    assert str(make(0.0)) == str(make(-0.0)) == str(parse_reduction(spec.replace("0.0", "-0.0"))) == spec


def test_refused_constants_name_their_file(tmp_path):
    path = tmp_path / "filters.safetensors"
    Constants({"filters": torch.ones(2, 2, 5)}).save(path)
    with refusing(f"QFilters: the constants of {path} are filters (2, 2, 5); expected filters (2, 2, 6)"):
        tiny_cell().initial_state(1, f"q-filters:4:{path}")
    with refusing(f"the constants of {path} have 2 layers and no layer 2"):
        tiny_cell(n_layers=3).initial_state(1, QFilters(4, path))
    Constants({"filters": torch.ones(2, 2, 6)}, "{}").save(path)
    with refusing(f"QFilters: the constants of {path} have a damaged model '{{}}'"):
        tiny_cell().initial_state(1, QFilters(4, path))
