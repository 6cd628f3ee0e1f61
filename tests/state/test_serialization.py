"""A saved state comes back whole or not at all."""

import os
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from support.tiny_models import assert_same, random_tokens, tiny_cell

import msrnn
from msrnn import H2O, Full, Reduction

CELL = tiny_cell()


@pytest.fixture
def saved(tmp_path):
    _, state = CELL(random_tokens(1, 2, 9), CELL.initial_state(2, [H2O(4), Full()]))
    state.save(tmp_path / "state")
    return tmp_path / "state"


def about(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_what_is_saved_comes_back_and_continues(saved):
    state = msrnn.load_state(saved)
    _, same = CELL(random_tokens(1, 2, 9), CELL.initial_state(2, [H2O(4), Full()]))
    assert_same(state, same)
    assert [H.reduction for H in state] == [H2O(4), Full()]
    token = torch.tensor([1, 2])
    assert torch.equal(CELL.step(token, state)[0], CELL.step(token, same)[0])
    with pytest.raises(msrnn.Error, match="another model"):
        tiny_cell(seed=1).step(token, state)


def test_saving_replaces_and_is_readable_as_any_new_file(saved):
    CELL.initial_state(2).save(saved)
    assert msrnn.load_state(saved).clock.tolist() == [0, 0]
    (saved.parent / "other").touch()
    assert saved.stat().st_mode == (saved.parent / "other").stat().st_mode
    assert sorted(os.listdir(saved.parent)) == ["other", "state"]


DAMAGE = {
    "no format": (lambda t, a: a.pop("format"), "not a saved state"),
    "another version": (lambda t, a: a.update(version="1"), "version .1.; expected .2."),
    "no operators": (lambda t, a: a.pop("operators"), "incomplete"),
    "operators no JSON": (lambda t, a: a.update(operators="["), "incomplete"),
    "operators no list": (lambda t, a: a.update(operators="5"), "incomplete"),
    "no layers": (lambda t, a: (t.clear(), t.update(clock=torch.zeros(2).long()), a.update(operators="[]")), "no layers"),
    "an operator unknown": (
        lambda t, a: a.update(operators=a["operators"].replace("H2O", "Oracle")),
        "'Oracle' is not defined",
    ),
    "a setting unknown": (lambda t, a: a.update(operators=a["operators"].replace("recent", "recant")), "incomplete"),
    "a size of zero": (lambda t, a: a.update(operators=a["operators"].replace('"size": 4', '"size": 0')), "size is 0"),
    "no cell": (lambda t, a: a.pop("cell"), "incomplete"),
    "cell no object": (lambda t, a: a.update(cell="3"), "incomplete"),
    "no clock": (lambda t, a: t.pop("clock"), "incomplete"),
    "no keys": (lambda t, a: t.pop("layers.0.keys"), r"layers\.0\.keys"),
    "no numbers": (lambda t, a: t.pop("layers.0.accumulated_attention"), r"layers\.0\.accumulated_attention"),
    "a tensor more": (lambda t, a: t.update(more=torch.zeros(1)), "'more'"),
    "more rows than size": (lambda t, a: a.update(operators=a["operators"].replace('"size": 4', '"size": 3')), "contradict"),
    "a position to come": (lambda t, a: t["layers.0.positions"].add_(9), "contradict"),
    "a position below": (lambda t, a: t["layers.1.positions"].sub_(9), "contradict"),
    "a clock below": (lambda t, a: t["clock"].sub_(99), "contradict"),
    "another shape": (lambda t, a: t.update({"layers.1.values": t["layers.1.values"][..., 1:].clone()}), "contradict"),
    "integer keys": (lambda t, a: t.update({"layers.0.keys": t["layers.0.keys"].long()}), "contradict"),
    "float positions": (lambda t, a: t.update({"layers.0.positions": t["layers.0.positions"].float()}), "contradict"),
    "flat numbers": (
        lambda t, a: t.update({"layers.0.accumulated_attention": t["layers.0.accumulated_attention"].flatten()}),
        "contradict",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_refused(damage, said, saved):
    tensors, facts = load_file(saved), about(saved)
    damage(tensors, facts)
    save_file(tensors, saved, facts)
    with pytest.raises(msrnn.Error, match=said):
        msrnn.load_state(saved)


def test_truncated_absent_and_other_files_are_refused(saved):
    whole = saved.read_bytes()
    for count in (0, 7, 100, len(whole) - 1):
        saved.write_bytes(whole[:count])
        with pytest.raises(msrnn.Error, match=r"safetensors|is empty"):
            msrnn.load_state(saved)
    with pytest.raises(msrnn.Error, match="nowhere"):
        msrnn.load_state(saved.with_name("nowhere"))
    with pytest.raises(msrnn.Error, match="abacus"):
        msrnn.load_state(saved, device="abacus")


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = CELL.initial_state(1)
    for path in ("/nowhere/at/all/state", ".", tmp_path):
        with pytest.raises(msrnn.Error, match=r"cannot write|is a folder"):
            state.save(path)

    @dataclass(frozen=True)
    class Holds(Reduction):
        what: object = None
        score = msrnn.TOVA.score

    with pytest.raises(msrnn.Error, match="cannot be saved"):
        CELL.initial_state(1, Holds(3, what={1, 2})).save("state")
    assert not os.listdir(tmp_path)


def test_user_class_with_a_library_name_is_read_back_as_itself(tmp_path):
    @dataclass(frozen=True)
    class Window(msrnn.Window):
        def score(self, observation):
            return -super().score(observation) + observation.positions[:, :1]

    CELL.initial_state(1, Window(3)).save(tmp_path / "state")
    assert type(msrnn.load_state(tmp_path / "state")[0].reduction) is Window


def test_operator_that_would_be_read_back_as_another_is_refused(tmp_path):
    @dataclass(frozen=True)
    class Nested(msrnn.Window):
        pairs: tuple = ((1, 2),)

    with pytest.raises(msrnn.Error, match="read back"):
        CELL.initial_state(1, Nested(3)).save(tmp_path / "state")
    assert not list(tmp_path.iterdir())
