"""A saved state is read back unchanged, or refused."""

import os
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, safe_open, save_file
from support.cell_strategies import cells, examples
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell

import msrnn
from msrnn import H2O, TOVA, Full, Reduction

CELL = tiny_cell()


@pytest.fixture
def saved(tmp_path):
    _, state = CELL(random_tokens(1, 2, 9), CELL.initial_state(2, [H2O(4), Full()]))
    state.save(tmp_path / "state")
    return tmp_path / "state"


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_saved_state_is_read_back_and_continues(saved):
    state = msrnn.load_state(saved)
    _, same = CELL(random_tokens(1, 2, 9), CELL.initial_state(2, [H2O(4), Full()]))
    assert_same(state, same)
    assert [H.reduction for H in state] == [H2O(4), Full()]
    token = torch.tensor([1, 2])
    assert torch.equal(CELL.step(token, state)[0], CELL.step(token, same)[0])
    with pytest.raises(msrnn.Error, match="another model"):
        tiny_cell(seed=1).step(token, state)


def test_save_replaces_a_file_and_sets_the_permissions_of_a_new_file(saved):
    CELL.initial_state(2).save(saved)
    assert msrnn.load_state(saved).clock.tolist() == [0, 0]
    (saved.parent / "other").touch()
    assert saved.stat().st_mode == (saved.parent / "other").stat().st_mode
    assert sorted(os.listdir(saved.parent)) == ["other", "state"]


DAMAGE = {
    "no format": (lambda t, a: a.pop("format"), "not a saved state"),
    "another version": (lambda t, a: a.update(version="1"), "version .1.; expected .2."),
    "no operators": (lambda t, a: a.pop("operators"), "incomplete"),
    "operators not JSON": (lambda t, a: a.update(operators="["), "incomplete"),
    "operators not a list": (lambda t, a: a.update(operators="5"), "incomplete"),
    "no layers": (lambda t, a: (t.clear(), t.update(clock=torch.zeros(2).long()), a.update(operators="[]")), "no layers"),
    "unknown operator": (
        lambda t, a: a.update(operators=a["operators"].replace("H2O", "Oracle")),
        "'Oracle' is not defined",
    ),
    "unknown setting": (lambda t, a: a.update(operators=a["operators"].replace("recent", "recant")), "incomplete"),
    "a size of zero": (lambda t, a: a.update(operators=a["operators"].replace('"size": 4', '"size": 0')), "size is 0"),
    "no cell": (lambda t, a: a.pop("cell"), "incomplete"),
    "cell not an object": (lambda t, a: a.update(cell="3"), "incomplete"),
    "no clock": (lambda t, a: t.pop("clock"), "incomplete"),
    "no keys": (lambda t, a: t.pop("layers.0.keys"), r"layers\.0\.keys"),
    "no statistics": (lambda t, a: t.pop("layers.0.accumulated_attention"), r"layers\.0\.accumulated_attention"),
    "one more tensor": (lambda t, a: t.update(more=torch.zeros(1)), "'more'"),
    "more rows than size": (lambda t, a: a.update(operators=a["operators"].replace('"size": 4', '"size": 3')), "contradict"),
    "position after the clock": (lambda t, a: t["layers.0.positions"].add_(9), "contradict"),
    "position of the next token": (lambda t, a: t["layers.1.positions"][0, 0].copy_(torch.arange(1, 10)), "contradict"),
    "negative position": (lambda t, a: t["layers.1.positions"].sub_(9), "contradict"),
    "negative clock": (lambda t, a: t["clock"].sub_(99), "contradict"),
    "another shape": (lambda t, a: t.update({"layers.1.values": t["layers.1.values"][..., 1:].clone()}), "contradict"),
    "a position twice": (lambda t, a: t["layers.0.positions"][0, 0].fill_(int(t["layers.0.positions"][0, 0, 0])), "twice"),
    "NaN in keys": (lambda t, a: t["layers.0.keys"][1, 0, 2].fill_(torch.nan), "keys are not finite"),
    "infinite values": (lambda t, a: t["layers.1.values"][0, 1, 3, 2].fill_(torch.inf), "values are not finite"),
    "integer keys": (lambda t, a: t.update({"layers.0.keys": t["layers.0.keys"].long()}), "contradict"),
    "float positions": (lambda t, a: t.update({"layers.0.positions": t["layers.0.positions"].float()}), "contradict"),
    "flat statistics": (
        lambda t, a: t.update({"layers.0.accumulated_attention": t["layers.0.accumulated_attention"].flatten()}),
        "contradict",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_state_is_refused(damage, message, saved):
    tensors, entries = load_file(saved), metadata(saved)
    damage(tensors, entries)
    save_file(tensors, saved, entries)
    with pytest.raises(msrnn.Error, match=message):
        msrnn.load_state(saved)


def test_truncated_and_missing_files_are_refused(saved):
    content = saved.read_bytes()
    for count in (0, 7, 100, len(content) - 1):
        saved.write_bytes(content[:count])
        with pytest.raises(msrnn.Error, match=r"safetensors|is empty"):
            msrnn.load_state(saved)
    with pytest.raises(msrnn.Error, match="nowhere"):
        msrnn.load_state(saved.with_name("nowhere"))
    with pytest.raises(msrnn.Error, match="abacus"):
        msrnn.load_state(saved, device="abacus")


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


def test_failed_save_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = CELL.initial_state(1)
    for path in ("/nowhere/at/all/state", ".", tmp_path):
        with pytest.raises(msrnn.Error, match=r"cannot write|is a folder"):
            state.save(path)

    @dataclass(frozen=True)
    class WithSet(Reduction):
        setting: object = None
        score = msrnn.TOVA.score

    with pytest.raises(msrnn.Error, match="cannot be saved"):
        CELL.initial_state(1, WithSet(3, setting={1, 2})).save("state")
    assert not os.listdir(tmp_path)


@given(data=st.data())
@examples(25)
def test_saved_state_continues_as_the_state_itself(data, tmp_path_factory):
    cell, B, reduction = data.draw(cells())
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    state = cell.initial_state(B, reduction)
    for token in random_tokens(1, B, data.draw(st.integers(0, 10))).T:
        if data.draw(st.booleans()):
            cell.step_(token, state)
        else:
            state = cell.step(token, state, active=torch.arange(B) < data.draw(st.integers(1, B)))[1]
    state.save(path)
    loaded = msrnn.load_state(path)
    assert [H.reduction for H in loaded] == [H.reduction for H in state]
    assert_same(loaded, state)
    more = random_tokens(2, B, 6)
    logits, end = step_loop(cell, more, loaded)
    expected, after = step_loop(cell, more, state)
    assert_close(logits, expected)
    assert_same(end, after)


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


@pytest.mark.parametrize("name", ["keys", "values"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_state_that_is_not_finite_is_not_saved(name, value, tmp_path):
    state = CELL(random_tokens(1, 2, 6), CELL.initial_state(2, "window:4"))[1]
    state[1].rows[name][1, 1, 2, 3] = value
    with pytest.raises(msrnn.Error, match=f"layer 1: {name} are not finite"):
        state.save(tmp_path / "state")


@pytest.mark.parametrize("path", [123, None, b"state", "", 1.5, ["state"]])
def test_path_of_another_type_is_refused(path):
    for use in (CELL.initial_state(1).save, msrnn.load_state):
        with pytest.raises(msrnn.Error, match="expected a str or a Path"):
            use(path)


def test_path_that_is_not_utf_8_is_written_and_read(tmp_path):
    path, state = tmp_path / os.fsdecode(b"\xff"), CELL.initial_state(1)
    state.save(path)
    assert_same(msrnn.load_state(path), state)


METADATA = {
    "no text": ({"title": None}, "metadata 'title' are None; expected text in UTF-8"),
    "a number": ({"title": 1}, "metadata 'title' are 1; expected text"),
    "a lone surrogate": ({"title": "\ud800"}, "expected text in UTF-8"),
    "a name that is no text": ({1: "a"}, "metadata have the name 1; expected a str"),
    "a list": (["a"], r"metadata are list \['a'\]; expected strings by name"),
    "entries of the state": ({"places": "my room"}, "metadata have the name 'places'; expected a str other than format"),
}


@pytest.mark.parametrize(("given", "message"), METADATA.values(), ids=METADATA)
def test_metadata_that_a_file_cannot_keep_are_refused_before_it_is_replaced(given, message, saved):
    before = saved.read_bytes()
    with pytest.raises(msrnn.Error, match=message):
        msrnn.load_state(saved).save(saved, metadata=given)
    assert saved.read_bytes() == before


def test_metadata_are_kept(tmp_path):
    CELL.initial_state(1).save(tmp_path / "state", metadata={"title": "naïve"})
    assert metadata(tmp_path / "state")["title"] == "naïve"
