"""The operator in the file of a state is read back as it was, or refused."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell

import msrnn
from msrnn import TOVA, Reduction

CELL = tiny_cell()


def test_class_whose_name_was_defined_again_is_refused_by_name(tmp_path):
    def define():
        class Twice(TOVA):
            pass

        return Twice

    kinds = [define(), define()]
    cell = tiny_cell()
    for kind in kinds:
        _, state = cell(random_tokens(0, 1, 8), cell.initial_state(1, kind(4)))
        if kind is kinds[0]:
            with pytest.raises(msrnn.Error, match=r"two operator classes are called '.*Twice'; expected a name of its own"):
                state.save(tmp_path / "state")
        else:
            state.save(tmp_path / "state")
            assert type(msrnn.load_state(tmp_path / "state")[0].reduction) is kind


@dataclass(frozen=True)
class SameStats(Reduction):
    """An operator that returns one tensor for both of its statistics: mean weights, or integer positions."""

    content: str = ""
    stat_names: ClassVar[tuple[str, ...]] = ("a", "b")

    def update(self, observation):
        stat = observation.weights.mean(2) if self.content == "weights" else observation.positions
        return {"a": stat, "b": stat}

    def score(self, observation):
        return observation.row_stats["a"]


@pytest.mark.parametrize("content", ["weights", "positions"])
@pytest.mark.parametrize("T", [2, 6])
def test_statistics_that_share_a_tensor_or_are_integers_are_saved(content, T, tmp_path):
    _, state = CELL(random_tokens(1, 2, T), CELL.initial_state(2, SameStats(4, content)))
    state.save(tmp_path / "state")
    loaded = msrnn.load_state(tmp_path / "state")
    assert_same(loaded, state)
    token = torch.tensor([5, 6])
    assert_close(CELL.step(token, loaded)[0], CELL.step(token, state)[0])


def test_library_operator_is_read_back_if_a_user_class_has_its_name(tmp_path):
    _, state = CELL(random_tokens(1, 2, 6), CELL.initial_state(2, TOVA(4)))

    @dataclass(frozen=True)
    class Other(Reduction):
        pass

    Other.__name__ = "TOVA"
    state.save(tmp_path / "state")
    assert type(msrnn.load_state(tmp_path / "state")[0].reduction) is TOVA


def test_user_class_with_a_library_name_is_read_back_as_itself(tmp_path):
    @dataclass(frozen=True)
    class Window(msrnn.Window):
        def score(self, observation):
            return -super().score(observation) + observation.positions[:, :1]

    CELL.initial_state(1, Window(3)).save(tmp_path / "state")
    assert type(msrnn.load_state(tmp_path / "state")[0].reduction) is Window


@dataclass(frozen=True)
class Settings(msrnn.Window):
    """An operator with settings of every kind that is read back as it was."""

    operator: str = "x"
    pairs: tuple = ((1, 2), (3, (4, 5)))
    weights: dict = field(default_factory=dict)
    note: str = field(default="", compare=False)
    twice: int = field(init=False, default=0)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "twice", 2 * self.size)


@dataclass(frozen=True)
class OwnConstructor(msrnn.Window):
    def __init__(self, rows):
        super().__init__(rows)


@dataclass(frozen=True)
class Changed(msrnn.Window):
    note: str = field(default="", compare=False)

    def __post_init__(self):
        object.__setattr__(self, "note", self.note + "!")


@dataclass(frozen=True)
class Fails(msrnn.Window):
    again: bool = False
    made: ClassVar[list] = []

    def __post_init__(self):
        self.made.append(self)
        if len(self.made) > 1:
            raise LookupError("made before")


def test_settings_of_every_kind_are_read_back(tmp_path):
    operator = Settings(3, operator="y", weights={"a": 1.5}, note="kept")
    CELL.initial_state(1, operator).save(tmp_path / "state")
    loaded = msrnn.load_state(tmp_path / "state")[0].reduction
    assert loaded == operator
    assert (loaded.note, loaded.twice, loaded.pairs) == ("kept", 6, ((1, 2), (3, (4, 5))))


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (lambda: Settings(3, weights={1: 2.0}), "read back"),
        (lambda: Settings(3, pairs=([1, 2],)), "read back"),
        (lambda: OwnConstructor(3), "cannot be saved"),
        (lambda: Changed(3, note="a"), "read back"),
        (lambda: Fails(3), "cannot be saved (.*made before"),
    ],
    ids=["int keys", "a list", "another constructor", "a changed field", "a constructor that raises"],
)
def test_operator_that_would_be_read_back_as_another_is_refused(operator, message, tmp_path):
    with pytest.raises(msrnn.Error, match=message.replace("(.*", r"\(.*")):
        CELL.initial_state(1, operator()).save(tmp_path / "state")
    assert not list(tmp_path.iterdir())
