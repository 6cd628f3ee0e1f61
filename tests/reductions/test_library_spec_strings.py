"""Spec strings of the library's operators: the text of each, every setting, and texts that are refused."""

from dataclasses import fields, replace

import pytest
from support.tiny_models import tiny_cell

import msrnn
from msrnn import (
    A2SF,
    CAOTE,
    H2O,
    RKV,
    TOVA,
    VATP,
    CaM,
    DropKV,
    Full,
    KeyDiff,
    Keyformer,
    Knorm,
    LagKV,
    LastQueries,
    MorphKV,
    Random,
    Scissorhands,
    Sinks,
    VaSE,
    Window,
    parse_reduction,
)
from msrnn.reductions.calibrated import CalibratedReduction
from msrnn.reductions.spec_strings import SPEC_NAMES

TEXTS = {
    "full": Full(),
    "window:512": Window(512),
    "window:0": Window(0),
    "sinks:512:4": Sinks(512),
    "sinks:16:1": Sinks(16, sinks=1),
    "sinks:8,9:2": Sinks((8, 9), sinks=2),
    "h2o:512": H2O(512),
    "h2o-layer:512": H2O(512, per_head=False),
    "h2o-layer:8:0": H2O(8, recent=0, per_head=False),
    "tova:512": TOVA(512),
    "tova:512,": TOVA((512,)),
    "tova-head:512": TOVA(512, per_head=True),
    "random:512": Random(512),
    "random:512:7": Random(512, seed=7),
    "random:512:layer=1": Random(512, layer=1),
    "knorm:512": Knorm(512),
    "keydiff:512": KeyDiff(512),
    "last-queries:512": LastQueries(512),
    "last-queries:512:64": LastQueries(512, window=64),
    "morphkv:512": MorphKV(512),
    "morphkv-max:512:16": MorphKV(512, window=16, max_fusion=True),
    "scissorhands:512": Scissorhands(512),
    "scissorhands:512:10:100": Scissorhands(512, history=100),
    "keyformer:512": Keyformer(512),
    "keyformer:512:none:3": Keyformer(512, steps=3),
    "keyformer:512:0:64:3": Keyformer(512, recent=0, steps=64, seed=3),
    "cam:512": CaM(512),
    "cam:512:1:16": CaM(512, sinks=1, merge_window=16),
    "cam:512:4:32:2:layer=0": CaM(512, seed=2, layer=0),
    "caote:512": CAOTE(512),
    "caote-layer:512": CAOTE(512, per_head=False),
    "dropkv:512:16": DropKV(512, window=16),
    "vatp:512": VATP(512),
    "vatp:512:0:2": VATP(512, recent=0, sinks=2),
    "vase:512": VaSE(512),
    "vase:512:16:64:2:3": VaSE(512, window=16, large=64, sinks=2, seed=3),
    "a2sf:512:0.5": A2SF(512, forgetting=0.5),
    "r-kv:512": RKV(512),
    "r-kv:512:4:0.2": RKV(512, window=4, importance=0.2),
    "lagkv:512": LagKV(512),
    "lagkv:512:64:0": LagKV(512, lag=64, sinks=0),
}


@pytest.mark.parametrize(("text", "operator"), TEXTS.items(), ids=TEXTS)
def test_text_of_an_operator(text, operator):
    assert str(operator) == text
    assert parse_reduction(text) == operator


@pytest.mark.parametrize("text", ["full", "tova:8", "random:8", "vase:8:2:2:1"])
def test_a_state_shows_the_spec_string_that_it_was_made_with(text):
    state = tiny_cell().initial_state(1, text)
    assert [str(H.reduction).partition(":layer=")[0] for H in state] == [text, text]
    assert f"  0…1     {text} " in repr(state)


LIBRARY = {kind for kind, _ in SPEC_NAMES.values() if kind.__module__.startswith("msrnn.")}
LIBRARY = {kind for kind in LIBRARY if not issubclass(kind, CalibratedReduction)}  # those are in test_calibrated.py
VALUES = {"size": ((60, 70),), "sinks": (1, 4, 7), "recent": (0, 7), "seed": (0, 3), "layer": (0, 2)}
VALUES |= {"window": (32, 8), "history": (400, 9), "steps": (1024, 5), "merge_window": (32, 2)}
VALUES |= {"per_head": (True, False), "max_fusion": (True, False), "lag": (None, 5), "forgetting": (0.9, 0.5)}
VALUES |= {"large": (None, 5), "importance": (0.1, 0.5), "threshold": (0.5, 0), "recent_share": (0.1, 0.2)}


@pytest.mark.parametrize("kind", sorted(LIBRARY, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_setting_of_the_library_round_trips(kind):
    found = {kind()} if kind is Full else {kind(60)}
    for f in fields(kind) if kind is not Full else ():
        found |= {replace(operator, **{f.name: value}) for operator in found for value in VALUES[f.name]}
    assert all(parse_reduction(str(operator)) == operator for operator in found)
    assert len({str(operator) for operator in found}) == len(found)


def test_a_field_can_be_given_by_its_name():
    assert parse_reduction("keyformer:8:seed=3") == Keyformer(8, seed=3)
    assert parse_reduction("TOVA:size=8") == TOVA(8)
    assert parse_reduction("tova:8:per_head=true") == TOVA(8, per_head=True)


INVALID = (
    *("", ":5", "nothing:5", "full:3", "window", "tova", "tova:", "tova:x", "tova:1.5", "tova:1e3", "tova: 3", "tova:5:6"),
    *("tova:512,x", "tova:٣", "h2o:4:x", "random", "random:4:1:1", "knorm:4:1", "keyformer:x"),
)
REFUSED_BY_THE_OPERATOR = {
    "tova:0": "TOVA: size is 0",
    "tova:-3": "TOVA: size is -3",
    "tova:512,256,0": "TOVA: size is 0",
    "sinks:4:4": "Sinks: sinks is 4",
    "sinks:3": "Sinks: sinks is 4",
    "h2o:4:5": "H2O: recent is 5",
    "last-queries:4": "LastQueries: window is 32",
    "cam:4": "CaM: sinks is 4",
}


@pytest.mark.parametrize(("text", "message"), [*((text, repr(text)) for text in INVALID), *REFUSED_BY_THE_OPERATOR.items()])
def test_invalid_spec_string_is_refused(text, message):
    with pytest.raises(msrnn.Error) as refusal:
        parse_reduction(text)
    assert message in str(refusal.value)


@pytest.mark.parametrize("thing", [None, 5, ["tova:4"], b"tova:4"])
def test_spec_string_of_another_type_is_refused(thing):
    with pytest.raises(msrnn.Error, match="reduction"):
        parse_reduction(thing)
