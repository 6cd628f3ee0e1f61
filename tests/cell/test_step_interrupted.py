"""``step_`` that is interrupted: the state is before the token in all layers, after it in all layers, or refused."""

import random
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
from support.cell_strategies import assert_unchanged, copy_tensors
from support.tiny_models import assert_same, random_tokens, tiny_cell

import msrnn
from msrnn import H2O, TOVA, CaM, Reduction, Window

TEXT = random_tokens(5, 2, 12)
MIXED = [H2O(5), Window(3), TOVA(4), CaM(6, sinks=1)]
REDUCTIONS = {
    **{"mixed": MIXED, "stacked": "h2o:5", "unbounded": "full", "mixed with unbounded": [*MIXED[:3], msrnn.Full()]},
    "shared budget": "shared:h2o:5",
}


class Stopped(Exception):
    pass


@dataclass(frozen=True)
class Failing(Reduction):
    """TOVA that raises at one position of the text."""

    at: int = 10**6
    in_update: bool = False
    stat_names: ClassVar[tuple[str, ...]] = ("last",)

    def update(self, observation):
        if self.in_update and int(observation.clock[0]) == self.at:
            raise Stopped
        return {"last": observation.weights.mean(2)}

    def score(self, observation):
        if not self.in_update and int(observation.clock[0]) == self.at:
            raise Stopped
        return observation.row_stats["last"]


@pytest.mark.parametrize("in_update", [False, True])
@pytest.mark.parametrize("layer", range(4))
def test_operator_that_raises_leaves_the_state_unchanged(layer, in_update):
    cell, operators = tiny_cell(n_layers=4), [H2O(5), Window(3), TOVA(4), CaM(6, sinks=1)]
    operators[layer] = Failing(4, at=9, in_update=in_update)
    state = cell.initial_state(2, operators)
    for token in TEXT[:, :9].T:
        cell.step_(token, state)
    before = copy_tensors(state)
    for _ in range(2):
        with pytest.raises(Stopped):
            cell.step_(TEXT[:, 9], state)
        assert_unchanged(state, before)


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_head_that_raises_leaves_the_state_unchanged(reduction):
    cell = tiny_cell(n_layers=4)
    state = cell.initial_state(2, reduction)
    for token in TEXT[:, :9].T:
        cell.step_(token, state)
    before = copy_tensors(state)
    expected = cell.step(TEXT[:, 9], state)[0]

    def stop(module, inputs):
        raise Stopped

    hook = cell.norm.register_forward_pre_hook(stop)
    with pytest.raises(Stopped):
        cell.step_(TEXT[:, 9], state)
    hook.remove()
    assert_unchanged(state, before)
    assert cell.step_(TEXT[:, 9], state)[0].equal(expected)


def test_state_that_is_interrupted_while_it_is_overwritten_is_refused_everywhere(tmp_path):
    cell = tiny_cell()
    _, state = cell(TEXT[:, :9], cell.initial_state(2, "tova:3"))
    token, other = TEXT[:, 9], state.clone()

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        state.assign_(other, [stop])
    uses = [
        lambda: cell.step(token, state),
        lambda: cell.step_(token, state),
        lambda: cell(TEXT, state),
        lambda: cell.scan(TEXT, state),
        lambda: msrnn.generate(cell, TEXT, state, max_new_tokens=2),
        lambda: state[0],
        lambda: list(state),
        lambda: repr(state),
        lambda: state.clone(),
        lambda: state.select([0]),
        lambda: state.save(tmp_path / "state"),
    ]
    for use in uses:
        with pytest.raises(msrnn.Error, match="being overwritten when step_ was interrupted"):
            use()
    assert not list(tmp_path.iterdir())


def step_until(cell, token, state, at):
    """Do ``cell.step_`` and raise before the instruction number ``at`` of the library; return the number of instructions."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        if "msrnn" not in frame.f_globals.get("__name__", "").split("."):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count += 1
            if count == at:
                raise Stopped
        return trace

    sys.settrace(trace)
    try:
        cell.step_(token, state)
    except Stopped:
        pass
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_interrupt_at_any_instruction_never_leaves_a_wrong_state(reduction, figure):
    """120 instructions of a step at random, as ctrl-C could stop them, and each of the last 60, which overwrite the state."""
    cell = tiny_cell(n_layers=4)
    states = [cell.initial_state(2, reduction)]  # states[n] has read n tokens
    for token in TEXT.T:
        states.append(cell.step(token, states[-1])[1])
    before = states[0].clone()
    for token in TEXT[:, :9].T:
        cell.step_(token, before)
    uninterrupted = before.clone()
    cell.step_(TEXT[:, 9], uninterrupted)
    total = step_until(cell, TEXT[:, 10], uninterrupted, at=0)
    assert total > 1000
    found = {"before the token": 0, "after it": 0, "refused": 0}
    for at in [*random.Random(3).sample(range(1, total), 120), *range(total - 60, total + 1)]:
        state = before.clone()
        cell.step_(TEXT[:, 9], state)  # the next step finds a spare row
        step_until(cell, TEXT[:, 10], state, at)
        try:
            n = int(state.clock[0])
        except msrnn.Error:
            found["refused"] += 1
            continue
        found["before the token" if n == 10 else "after it"] += 1
        assert_same(state, states[n], 1e-12)
        cell.step_(TEXT[:, n], state)
        assert_same(state, states[n + 1], 1e-12)
    assert found["before the token"]
    assert found["after it"]
    figure(f"step_ interrupted {sum(found.values())} times: " + ", ".join(f"{count} {name}" for name, count in found.items()))
