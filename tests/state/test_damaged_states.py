"""Damaged files of states are refused, and a state that is not finite is not saved."""

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from support.tiny_models import random_tokens, tiny_cell

import msrnn

CELL = tiny_cell()


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


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


@pytest.mark.parametrize("name", ["keys", "values"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_state_that_is_not_finite_is_not_saved(name, value, tmp_path):
    state = CELL(random_tokens(1, 2, 6), CELL.initial_state(2, "window:4"))[1]
    state[1].rows[name][1, 1, 2, 3] = value
    with pytest.raises(msrnn.Error, match=f"layer 1: {name} are not finite"):
        state.save(tmp_path / "state")
