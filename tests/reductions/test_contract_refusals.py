"""Wrong results and wrong declarations of an operator class are refused in one sentence."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
from support.operator_paths import TEXT
from support.tiny_models import step_loop, tiny_cell

import msrnn
from msrnn import H2O, TOVA, Reduction

ANSWERS = {
    "None": lambda o: None,
    "float": lambda o: 1.0,
    "list": lambda o: [1.0],
    "complex": lambda o: o.weights.mean(2) * 1j,
    "shape (B, R)": lambda o: o.weights.mean((1, 2)),
    "shape (B, K, R - 1)": lambda o: o.weights.mean(2)[..., 1:],
    "shape (B, N, R)": lambda o: o.weights.flatten(1, 2),
    "sparse": lambda o: o.weights.mean(2).to_sparse(),
    "another device": lambda o: o.weights.mean(2).to("meta"),
}


@pytest.mark.parametrize("layout", [True, False])
@pytest.mark.parametrize("method", ["update", "score", "merge"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_wrong_answers_are_refused_in_one_sentence(answer, method, layout):
    @dataclass(frozen=True)
    class Wrong(Reduction):
        stat_names: ClassVar[tuple[str, ...]] = ("a",)
        depends_on_row_layout: ClassVar[bool] = layout
        merges_values: ClassVar[bool] = True

        def update(self, observation):
            if method == "update":
                found = answer(observation)
                return found if isinstance(found, list) else {"a": found}
            return {"a": observation.weights.mean(2)}

        def score(self, observation):
            return answer(observation) if method == "score" else observation.weights.mean(2)

        def merge(self, observation, values, row):
            return answer(observation) if method == "merge" else values

    cell = tiny_cell()
    for path in (step_loop, lambda cell, text, state: cell(text, state)):
        with pytest.raises(msrnn.Error, match=rf"^Wrong\.{method} returns .*; expected") as refusal:
            path(cell, TEXT, cell.initial_state(2, Wrong(4)))
        assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "defines no score"),
        ({"stat_names": "ab", "score": TOVA.score}, "stat_names are 'ab'; expected a tuple of names"),
        ({"stat_names": ("a", "a"), "score": TOVA.score}, "expected each name once"),
        ({"stat_names": ("a b",), "score": TOVA.score}, "expected a tuple of names"),
        ({"stat_names": ("keys",), "score": TOVA.score}, "stat_names contain 'keys'"),
        ({"update": H2O.update, "score": TOVA.score}, "defines update and no stat_names"),
        *(
            (
                {"stat_names": ("a",), "stat_shape": lambda self, name, shape=shape: shape, "score": TOVA.score},
                "expected \\(\\)",
            )
            for shape in (3, (-1,), (2, 2), [2], (True,), None)
        ),
        *(
            ({"tie_tolerance": gap, "score": TOVA.score}, f"tie_tolerance is {gap}; expected a finite number of at least 0")
            for gap in (-0.1, math.nan, math.inf)
        ),
        ({"for_layer": lambda self, layer: None, "score": TOVA.score}, "for_layer returns None; expected a Reduction"),
        ({"for_layer": lambda self, layer: "tova:4", "score": TOVA.score}, "for_layer returns 'tova:4'; expected a Reduction"),
    ],
)
def test_wrong_declarations_are_refused_in_one_sentence(body, sentence):
    with pytest.raises(msrnn.Error, match=sentence):
        tiny_cell().initial_state(1, dataclass(frozen=True)(type("Wrong", (Reduction,), body))(4))


@pytest.mark.parametrize("size", [-1, 2.5, True, "3", (-1, 2)])
def test_wrong_sizes_are_refused_also_if_validate_accepts_them(size):
    class Anything(TOVA):
        def validate(self, size):
            pass

    with pytest.raises(msrnn.Error, match=r"Anything: size is .*; expected an int of at least 0"):
        tiny_cell().initial_state(1, Anything(size))
