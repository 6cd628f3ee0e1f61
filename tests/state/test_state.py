"""The state as a value: its fields, what it says of itself, what a step refuses, and that no step waits for a device."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import msrnn
from msrnn import H2O, TOVA, Full, MultiState, Reduction, Sinks, Window

OPERATORS = [Full(), Window(0), Window(4), Sinks(4, sinks=2), H2O(4), H2O(4, per_head=False), TOVA(4), TOVA(4, per_head=True)]


def after(cell, T, reduction=None, B=2):
    return cell(random_tokens(1, B, T), cell.initial_state(B, reduction))[1]


# Fields.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_fields_have_the_contracts_shapes_and_types(reduction, dtype):
    cell = tiny_cell(dtype=dtype)
    for T in (0, 3, 9):
        state = after(cell, T, reduction)
        assert len(state) == 2
        assert [H is state[l] for l, H in enumerate(state)] == [True, True]
        assert state.clock.dtype == torch.int64
        assert state.clock.tolist() == [T, T]
        S = T if reduction.size is None else min(T, reduction.size)
        for H in state:
            assert isinstance(H, MultiState)
            assert H.keys.shape == H.values.shape == (2, 2, S, 6)
            assert H.keys.dtype == H.values.dtype == dtype
            assert H.positions.shape == (2, 2, S)
            assert H.positions.dtype == torch.int64
            assert H.clock.tolist() == [T, T]
            assert H.reduction == reduction
            assert H.row_stats.keys() == ({"accumulated_attention"} if isinstance(reduction, H2O) else set())
            for numbers in H.row_stats.values():
                assert numbers.shape == (2, 2, S)
                assert numbers.dtype == torch.promote_types(dtype, torch.float32)


def test_a_row_keeps_the_key_rotated_at_its_position_and_its_value():
    cell, text = tiny_cell(), random_tokens(1, 1, 8)
    _, full = step_loop(cell, text, cell.initial_state(1, Full()))
    _, state = step_loop(cell, text, cell.initial_state(1, [H2O(3), Full()]))
    for k in range(2):  # layer 0 sees the embedding, so its rows are those of the full state
        positions = state[0].positions[0, k]
        for name in ("keys", "values"):
            assert state[0].rows[name][0, k].equal(full[0].rows[name][0, k, positions])


def test_the_numbers_of_h2o_are_what_each_row_received():
    cell = tiny_cell()
    _, state = step_loop(cell, random_tokens(1, 2, 7), cell.initial_state(2, H2O(16)))
    for H in state:  # nothing left: every query gave 1 in all
        assert_close(H.row_stats["accumulated_attention"].sum(-1), torch.full((2, 2), 7.0).double(), 1e-12)


@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_bytes_are_those_really_held(reduction):
    cell = tiny_cell()
    for T in (0, 2, 9):
        state = after(cell, T, reduction)
        B, K, D = 2, 2, 6
        S = T if reduction.size is None else min(T, reduction.size)
        numbers = 1 if isinstance(reduction, H2O) else 0
        row = 2 * B * K * (2 * D * 8 + 8 + numbers * 8)
        assert state.clone().nbytes == S * row + B * 8
        assert S * row + B * 8 <= state.nbytes <= (S * 17 / 16 + 1) * row + B * 8  # with room for the rows to come
        token = random_tokens(2, 2, 1)[:, 0]
        for moved in (
            state,
            cell.step(token, state)[1],
            cell.step_(token, state.clone())[1],
            state.select([1, 0]),
            state.clone(),
        ):
            storages = [x.untyped_storage() for H in moved for x in [*H.rows.values(), H.clock]]
            assert moved.nbytes == sum({x.data_ptr(): x.nbytes() for x in storages}.values())


def test_printing_shows_operator_rows_oldest_position_and_bytes():
    cell = tiny_cell(n_layers=3)
    text = repr(after(cell, 9, [Window(4), Window(4), Full()]).clone())  # without room for more rows
    head, _, bounded, full = text.splitlines()
    assert "3 layers" in head
    assert "batch 2" in head
    assert "9 tokens" in head
    assert bounded.split()[:4] == ["0…1", "window:4", "4", "5"]  # layers, operator, rows, oldest
    assert full.split()[:4] == ["2", "full", "9", "0"]
    for line, layers, rows in ((bounded, 2, 4), (full, 1, 9)):
        count, unit = line.split()[4:]
        assert float(count) * {"B": 1, "kB": 1e3}[unit] == pytest.approx(layers * 2 * 2 * rows * (2 * 6 * 8 + 8), rel=0.05)
    assert "tova:4" in repr(cell.initial_state(1, TOVA(4)))
    ragged = cell(random_tokens(1, 2, 5), lengths=torch.tensor([5, 0]))[1]
    assert "0…5 tokens" in repr(ragged)
    later = cell(random_tokens(1, 2, 9), cell.initial_state(2, Window(4)), lengths=torch.tensor([9, 3]))[1]
    assert repr(later).splitlines()[2].split()[3] == "0"  # an empty row is not the oldest


# Moves.


@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_to_changes_floats_keeps_integers_and_keeps_numbers_wide(reduction):
    state = after(tiny_cell(), 9, reduction)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        moved = state.to(dtype)
        for H in moved:
            assert H.keys.dtype == H.values.dtype == dtype
            assert H.positions.dtype == H.clock.dtype == torch.int64
            assert all(x.dtype == torch.promote_types(dtype, torch.float32) for x in H.row_stats.values())
        assert moved.clock.tolist() == [9, 9]
    assert_same(state.to(torch.float32).to(torch.float64), state, 1e-5)
    assert all(x.device.type == "meta" for H in state.to("meta") for x in [*H.rows.values(), H.clock])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_of_another_dtype_moves_on_in_place_without_editing_the_one_it_came_from(dtype):
    state, other = after(tiny_cell(), 9, H2O(4)), tiny_cell(dtype=dtype)
    kept, moved = state.clone(), state.to(dtype)
    for token in random_tokens(2, 2, 6).T:
        other.step_(token, moved)
    assert_same(state, kept)


@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_a_moved_state_goes_on_in_the_other_dtype(reduction):
    double, single = tiny_cell(), tiny_cell(dtype=torch.float32)
    state = after(double, 3, reduction)
    exact, _ = step_loop(double, random_tokens(2, 2, 3), state)
    assert_close(step_loop(single, random_tokens(2, 2, 3), state.to(torch.float32))[0].double(), exact, 1e-3)


def test_clone_shares_nothing_and_detach_shares_storage_without_the_graph():
    state = after(tiny_cell(), 9, H2O(4))
    storages = {x.data_ptr() for H in state for x in [*H.rows.values(), H.clock]}
    assert_same(state.clone(), state)
    assert storages.isdisjoint(x.data_ptr() for H in state.clone() for x in [*H.rows.values(), H.clock])
    carrying = after(tiny_cell(frozen=False), 9, TOVA(4))
    assert carrying.requires_grad
    cut = carrying.detach()
    assert not cut.requires_grad
    assert cut[0].keys.data_ptr() == carrying[0].keys.data_ptr()


@pytest.mark.parametrize(
    "rows", [[2], [-3], torch.tensor([0, 5]), torch.tensor([[0]]), torch.tensor([True, False]), torch.tensor([0.0])]
)
def test_select_refuses_rows_that_are_not_there(rows):
    with pytest.raises(msrnn.Error, match="select: rows"):
        after(tiny_cell(), 3).select(rows)


# Refusals.


def one(dtype=torch.int64, B=2):
    return torch.zeros(B, dtype=dtype)


@pytest.mark.parametrize(
    ("token", "found"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), r"int64 of shape \(2, 1\); expected int64 of shape \(B,\)"),
        (torch.tensor(3), r"int64 of shape \(\); expected int64 of shape \(B,\)"),
        (one(torch.int32), r"int32 of shape \(2,\); expected int64"),
        (one(torch.float64), r"float64 of shape \(2,\); expected int64"),
        (3, "int 3; expected int64"),
        ([3, 4], r"list \[3, 4\]; expected int64"),
        (torch.tensor([3, 50]), "50 is outside the vocabulary of 50"),
        (torch.tensor([-1, 3]), "-1 is outside the vocabulary of 50"),
    ],
)
def test_a_step_refuses_what_is_no_token(token, found):
    cell = tiny_cell()
    for state in (None, cell.initial_state(2)):
        with pytest.raises(msrnn.Error, match=found):
            cell.step(token, state)
    state = cell.initial_state(2)
    with pytest.raises(msrnn.Error, match=found):
        cell.step_(token, state)
    assert state.clock.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("tokens", "lengths", "found"),
    [
        (torch.zeros(3, dtype=torch.int64), None, r"int64 of shape \(3,\); expected int64 of shape \(B, T\)"),
        (torch.zeros(2, 3), None, r"float32 of shape \(2, 3\); expected int64"),
        (torch.tensor([[1, 99]]), None, "99 is outside the vocabulary of 50"),
        (torch.tensor([[1, -100]]), torch.tensor([2]), "-100 is outside the vocabulary of 50"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([4, 1]), r"lengths are \[4, 1\]; expected 0 to 3"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, -1]), r"lengths are \[3, -1\]; expected 0 to 3"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3]), r"int64 of shape \(1,\); expected int64 of shape \(2,\)"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3.0, 1.0]), r"float32 of shape \(2,\); expected int64"),
        (torch.zeros(2, 3, dtype=torch.int64), [3, 1], r"list \[3, 1\]; expected int64"),
    ],
)
def test_a_call_refuses_what_is_no_text(tokens, lengths, found):
    with pytest.raises(msrnn.Error, match=found):
        tiny_cell()(tokens, lengths=lengths)


@pytest.mark.parametrize("active", [one(torch.int64), one(torch.bool, B=3), one(torch.bool)[:, None], [True, False]])
def test_active_is_one_bool_a_row(active):
    with pytest.raises(msrnn.Error, match=r"active is .*; expected bool of shape \(2,\)"):
        tiny_cell().step(one(), active=active)


def test_a_state_of_another_model_is_refused():
    cell = tiny_cell()
    others = {
        "layers": tiny_cell(n_layers=3),
        "rope": tiny_cell(rope=replace(cell.config.rope, theta=200.0)),
        "eps": tiny_cell(norm_eps=2e-5),
        "weights": tiny_cell(seed=1),
    }
    for other in others.values():
        state = other.initial_state(2)
        for read in (cell.step, cell.step_, lambda token, state: cell(token[:, None], state)):
            with pytest.raises(msrnn.Error, match="another model") as refusal:
                read(one(), state)
            assert cell.signature in str(refusal.value)
    cell.step(one(), copy.deepcopy(cell).initial_state(2))  # the same facts and weights are the same model
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        narrow = tiny_cell(dtype=torch.float32).to(dtype)
        narrow.step(one(), tiny_cell(dtype=torch.float32).initial_state(2).to(dtype))
        cell.step(one(), narrow.initial_state(2).to(torch.float64))
    with torch.no_grad():
        before = cell.initial_state(2)
        cell.layers[0].q.weight.neg_()
    with pytest.raises(msrnn.Error, match="another model"):
        cell.step(one(), before)


def test_a_state_of_another_batch_size_or_dtype_is_refused():
    cell = tiny_cell()
    for B in (1, 3):
        with pytest.raises(msrnn.Error, match=f"batch size {B}; the tokens have 2"):
            cell.step(one(), cell.initial_state(B))
    with pytest.raises(msrnn.Error, match=r"float32 on cpu; expected torch.float64"):
        cell.step(one(), cell.initial_state(2).to(torch.float32))
    with pytest.raises(msrnn.Error, match="expected a State"):
        cell.step(one(), cell.initial_state(2)[0])
    with pytest.raises(msrnn.Error, match="expected a State"):
        cell.step_(one(), None)


def test_a_refusal_is_a_value_error_and_leaves_the_state_as_it_was():
    cell, ragged = tiny_cell(), torch.tensor([3, 9])
    state = after(cell, 5, TOVA(3))
    kept = state.clone()
    for wrong in (torch.tensor([3, 50]), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"50|int64|batch"):
            cell.step_(wrong, state)
    with pytest.raises(ValueError, match="lengths"):
        cell(random_tokens(1, 2, 4), state, lengths=ragged)
    assert_same(state, kept)


@pytest.mark.parametrize("id", [-100, 50, 10**9])
def test_a_row_that_stands_still_may_carry_any_id(id):
    """As padding may in a call; what generate leaves in a row that ended is its caller's."""
    cell = tiny_cell()
    token = torch.tensor([3, id])
    logits, state = cell.step(token, active=torch.tensor([True, False]))
    assert_close(logits[0], cell.step(torch.tensor([3]))[0][0])
    assert state.clock.tolist() == [1, 0]


# Nothing in a step waits for the device.

WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2", "allclose"}


class Waiting(TorchDispatchMode):
    """Refuses every operation whose result, or the shape of it, has to come back from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = [x for x in tree_leaves(args[1:]) if isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)]
        name = func.overloadpacket.__name__
        if name in WAITS or (name.startswith(("index", "_index_put")) and masks):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def test_the_guard_sees_what_waits():
    x = torch.arange(3)
    for wait in (
        lambda: x.max().item(),
        lambda: x[x > 1],
        lambda: bool((x > 1).any()),
        lambda: x.nonzero(),
        lambda: x.equal(x + 0),
    ):
        with pytest.raises(AssertionError, match="waits"), Waiting():
            wait()


@pytest.mark.parametrize("T", [2, 9], ids=["growing", "full"])
@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_no_step_waits_for_the_device(reduction, T):
    """On a device that is not the CPU (meta, which has nothing to wait for), and under a guard over every operation."""
    cell = tiny_cell()
    state, token, active = after(cell, T, reduction), random_tokens(2, 2, 1)[:, 0], torch.tensor([True, False])
    absent, nothing = copy.deepcopy(cell).to("meta"), state.to("meta")
    for some in (None, active):
        logits, end = cell.step(token, state, active=some)
        for step, start in ((absent.step, nothing), (absent.step_, nothing.clone())):
            with Waiting():
                shape, same = step(token.to("meta"), start, active=None if some is None else some.to("meta"))
            assert shape.shape == logits.shape
            assert [H.keys.shape for H in same] == [H.keys.shape for H in end]


# What has been a bug once.


def test_inference_mode_inside_and_out():
    with torch.inference_mode():
        cell = tiny_cell()
        _, inside = cell.step(torch.tensor([1, 2]), cell.initial_state(2, "h2o:4"))
        cell.step_(torch.tensor([1, 2]), inside)
    logits, _ = cell.step(torch.tensor([3, 4]), inside)
    folded, _ = cell(torch.tensor([[3], [4]]), inside)
    assert_close(folded[:, 0], logits)
    with pytest.raises(msrnn.Error, match="inference_mode"):
        cell.step_(torch.tensor([3, 4]), inside)
    again, _ = cell.step_(torch.tensor([3, 4]), inside.clone())
    assert_close(again, logits)


@dataclass(frozen=True)
class Numbered(Reduction):
    """An operator whose numbers are whatever `what` makes of what was seen."""

    what: str = ""
    stat_names: ClassVar[tuple[str, ...]] = ("a", "b")

    def update(self, seen):
        one = {"shared": seen.weights.mean(2), "integer": seen.positions, "narrow": seen.weights.mean((1, 2))[:, None]}[
            self.what
        ]
        return {"a": one, "b": one}

    def score(self, seen):
        return seen.row_stats["a"]


@pytest.mark.parametrize("what", ["shared", "integer"])
@pytest.mark.parametrize("T", [2, 6])
def test_any_numbers_are_saved_and_come_back(what, T, tmp_path):
    cell = tiny_cell()
    state = after(cell, T, Numbered(4, what))
    state.save(tmp_path / "state")
    again = msrnn.load_state(tmp_path / "state")
    assert_same(again, state)
    token = torch.tensor([5, 6])
    assert_close(cell.step(token, again)[0], cell.step(token, state)[0])


def test_numbers_of_another_shape_or_name_are_refused():
    cell = tiny_cell()
    with pytest.raises(msrnn.Error, match=r"Numbered.update returns .*\(1, 1, 1\)"):
        cell.step(torch.tensor([1]), cell.initial_state(1, Numbered(4, "narrow")))

    @dataclass(frozen=True)
    class Takes(Reduction):
        stat_names: ClassVar[tuple[str, ...]] = ("keys",)

    with pytest.raises(msrnn.Error, match="'keys'"):
        Takes(4)


def test_the_librarys_own_operator_comes_back_whatever_else_is_called_so(tmp_path):
    state = after(tiny_cell(), 6, TOVA(4))

    @dataclass(frozen=True)
    class Another(Reduction):
        pass

    Another.__name__ = "TOVA"
    state.save(tmp_path / "state")
    assert type(msrnn.load_state(tmp_path / "state")[0].reduction) is TOVA


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda cell, state: cell.initial_state(True), "batch_size is True"),
        (lambda cell, state: cell.initial_state(2, dtype=torch.int64), "int64"),
        (lambda cell, state: state.to(torch.int64), "int64"),
        (lambda cell, state: state.select(None), "None"),
        (lambda cell, state: state.select(1), "rows are 1"),
    ],
)
def test_lax_arguments_are_refused(attempt, said):
    cell = tiny_cell()
    with pytest.raises(msrnn.Error, match=said):
        attempt(cell, after(cell, 3))


def test_an_empty_batch_prints():
    assert "batch 0, no tokens read" in repr(after(tiny_cell(), 3).select([]))


@pytest.mark.parametrize("reduction", ["tova:3", "window:2", "h2o:3", "full"])
def test_a_state_that_carries_a_graph_is_never_edited(reduction):
    cell = tiny_cell(frozen=False)
    _, state = cell(random_tokens(2, 2, 6), cell.initial_state(2, reduction))
    token = torch.tensor([3, 4])
    with torch.no_grad():
        with pytest.raises(msrnn.Error, match="graph"):
            cell.step_(token, state)
        expected, _ = cell.step(token, state)
        logits, _ = cell.step_(token, state.detach())
    assert torch.equal(logits, expected)
    state[-1].keys.sum().backward()  # what the graph needs is as it was
    assert cell.embed.weight.grad is not None


def test_the_step_compiles_as_one_graph():
    cell = tiny_cell()
    step_ = torch.compile(cell.step_, fullgraph=True, backend="eager")
    state = after(cell, 9, TOVA(4))
    compiled = state.clone()
    for token in random_tokens(3, 2, 5).T:
        assert_close(step_(token, compiled)[0], cell.step_(token, state)[0])
    assert_same(compiled, state)


def test_ragged_turns_leave_no_empty_columns():
    cell = tiny_cell()
    text, state = random_tokens(4, 2, 6), cell.initial_state(2)
    for lengths in ([6, 1], [1, 6], [0, 3]):
        _, state = cell(text, state, lengths=torch.tensor(lengths))
    assert state.clock.tolist() == [7, 10]
    assert state[0].keys.shape[2] == 10
    alone = cell.initial_state(1)
    for length in (1, 6, 3):
        _, alone = cell(text[1:, :length], alone)
    assert_same(state.select([1]), alone, 1e-9)


def test_copies_do_not_step_over_each_other():
    cell = tiny_cell()
    first = after(cell, 9)
    second, kept = copy.copy(first), first.clone()
    cell.step_(torch.tensor([1, 2]), second)
    assert_same(first, kept)
    logits = cell.step_(torch.tensor([3, 4]), first)[0]
    assert_close(logits, cell.step(torch.tensor([3, 4]), kept)[0])


@pytest.mark.parametrize("part", ["q", "k", "v", "o"])
@pytest.mark.parametrize("reduction", ["tova:3", "window:2", "h2o:3"])
def test_any_single_part_can_be_trained_through_steps(part, reduction):
    """What the graph needs may be rows that carry no gradient themselves: with q alone trainable, the keys."""
    gradients = []
    for stepwise in (True, False):
        cell = tiny_cell()
        weight = cell.layers[0].get_parameter(f"{part}.weight").requires_grad_()
        text, state = random_tokens(2, 2, 7), cell.initial_state(2, reduction)
        logits = step_loop(cell, text, state)[0] if stepwise else cell(text, state)[0]
        logits.tanh().sum().backward()
        gradients.append(weight.grad)
    assert gradients[0].abs().max() > 0
    assert_close(*gradients, 1e-8)


@pytest.mark.parametrize("reduction", ["tova:4", "h2o:4", "window:4", "full"])
def test_a_step_of_all_layers_is_the_layers_steps_one_by_one(reduction):
    """A cell reduces bounded layers as one batch; ``layers[l].step`` is the definition."""
    cell = tiny_cell()
    state = cell.initial_state(2, reduction)
    alone = list(state)
    for token in random_tokens(8, 2, 9).T:
        _, state = cell.step(token, state)
        x = cell.embed(token)
        for i, layer in enumerate(cell.layers):
            x, alone[i] = layer.step(x, alone[i])
        for H, expected in zip(state, alone, strict=True):
            for name, rows in H.sorted_by_position().rows.items():
                assert_close(rows.double(), expected.sorted_by_position().rows[name].double())


def test_unbounded_states_share_the_rows_they_have_in_common():
    """A pure step writes into the room behind its own rows where nobody has; a second one from there copies."""
    cell = tiny_cell()
    text = random_tokens(8, 2, 43)
    _, state = cell.step(text[:, 40], cell(text[:, :40])[1])
    _, first = cell.step(text[:, 41], state)
    _, second = cell.step(text[:, 42], state)
    assert first[0].keys.data_ptr() == state[0].keys.data_ptr() != second[0].keys.data_ptr()
    _, third = cell.step_(text[:, 42], first)
    for found, ids in ((state, [40]), (second, [40, 42]), (third, [40, 41, 42])):
        assert_same(found, cell(text[:, [*range(40), *ids]])[1], 1e-9)
