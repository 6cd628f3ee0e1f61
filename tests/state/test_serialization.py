"""A saved state is read back unchanged and continues; paths and metadata of its file."""

import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import safe_open
from support.cell_strategies import cells, examples
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell

import msrnn
from msrnn import H2O, Full, Reduction

CELL = tiny_cell()


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
    with safe_open(tmp_path / "state", "pt") as file:
        assert file.metadata()["title"] == "naïve"
