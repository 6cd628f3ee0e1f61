"""States in which heads hold different numbers of rows: bytes, copies, batches, files."""

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell

import msrnn
from msrnn import H2O, Error, SharedBudget
from msrnn.state.jagged_rows import JaggedMultiState

SPECS = ["h2o:2/6,5/3", "shared:floor=0:h2o:4"]
D, STATS, DTYPE = 6, 1, 8


def read(reduction, B=2, T=11, **arguments):
    cell = tiny_cell()
    return cell, cell(random_tokens(1, B, T), cell.initial_state(B, reduction), **arguments)


def held_nbytes(state):
    """Return the bytes without the clocks, of which layers may have one or share one."""
    return state.nbytes - sum({H.clock.untyped_storage().data_ptr(): H.clock.nbytes for H in state}.values())


@pytest.mark.parametrize("spec", SPECS)
def test_nbytes_are_those_of_the_rows_held(spec):
    _, (_, state) = read(spec)
    held, row = 2 * 8 * len(state), 2 * D * DTYPE + 8 + STATS * DTYPE  # keys and values, position, statistic
    assert held_nbytes(state) == held * row + len(state) * 2 * 2 * 8  # and the rows per head
    assert [int((H.positions >= 0).sum()) for H in state] == [16, 16]


def test_the_longest_head_takes_no_memory_from_the_others():
    _, (_, state) = read("tova-head:1/40", T=50)
    _, (_, small) = read("tova-head:1/1", T=50)
    assert held_nbytes(state) - held_nbytes(small) == 2 * len(state) * 39 * (2 * D * DTYPE + 8)


def test_an_unbounded_head_takes_memory_for_its_own_rows_only():
    row = 2 * D * DTYPE + 8
    for T in (11, 50):
        _, (_, state) = read("sinks:full/4,4/full:1", T=T)
        assert held_nbytes(state) == len(state) * 2 * ((T + 4) * row + 2 * 8)


@pytest.mark.parametrize("spec", [SPECS[0], "shared:floor=0:keydiff:4"])
def test_a_step_frees_what_it_evicts(spec):
    cell, (_, state) = read(spec, T=30)
    after = cell.step(random_tokens(2, 2, 1)[:, 0], state)[1]
    assert held_nbytes(after) == held_nbytes(state)


@pytest.mark.parametrize("spec", [*SPECS, "h2o:full/3"])
@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_save_and_load(spec, dtype, tmp_path):
    cell, text = tiny_cell(), random_tokens(1, 2, 11)
    lengths = torch.tensor([11, 3])
    _, state = cell(text, cell.initial_state(2, spec, dtype=dtype), lengths=lengths)
    state.save(tmp_path / "state")
    loaded = msrnn.load_state(tmp_path / "state")
    assert_same(loaded, state)
    assert held_nbytes(loaded) == held_nbytes(state)
    more = random_tokens(3, 2, 5)
    (logits, after), (expected, end) = cell(more, loaded), cell(more, state)
    assert_close(logits, expected)
    assert_same(after, end)


def saved(path):
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_a_file_contains_the_rows_held_only(dtype, tmp_path):
    cell, text = tiny_cell(), random_tokens(1, 2, 60)
    for spec in ("sinks:full/3,4/full:1", "h2o:2/40"):
        _, state = cell(text, cell.initial_state(2, spec, dtype=dtype))
        state.save(tmp_path / "state")
        tensors, entries = saved(tmp_path / "state")
        assert sum(x.nbytes for x in tensors.values()) == held_nbytes(state) + state.clock.nbytes
        assert entries["version"] == "4"
        assert (tmp_path / "state").stat().st_size < state.nbytes + 8000  # names and metadata


def test_padded_rows_of_the_earlier_version_are_read(tmp_path):
    _, (_, state) = read("h2o:2/6,5/3")
    state.save(tmp_path / "state")
    tensors, entries = saved(tmp_path / "state")
    for i, H in enumerate(state):
        del tensors[f"layers.{i}.head_rows"]
        tensors.update({f"layers.{i}.{name}": x for name, x in H.rows.items()})
    operators = json.loads(entries["operators"])
    for fields in operators:
        del fields["settings"]["own_heads"]
        (fields["settings"]["operator"]["settings"]["size"],) = fields["settings"]["operator"]["settings"]["size"]
    save_file(tensors, tmp_path / "earlier", {**entries, "version": "2", "operators": json.dumps(operators)})
    assert (tmp_path / "earlier").stat().st_size > (tmp_path / "state").stat().st_size
    assert_same(msrnn.load_state(tmp_path / "earlier"), state)
    assert held_nbytes(msrnn.load_state(tmp_path / "earlier")) == held_nbytes(state)


DAMAGE = {
    "a negative number of rows": lambda t: t["layers.0.head_rows"].copy_(torch.tensor([[-1, 9], [2, 6]])),
    "more rows than are there": lambda t: t["layers.0.head_rows"].add_(1),
    "fewer rows than are there": lambda t: t["layers.0.head_rows"].sub_(1),
    "another dtype": lambda t: t.update({"layers.0.head_rows": t["layers.0.head_rows"].int()}),
    "another shape": lambda t: t.update({"layers.0.head_rows": t["layers.0.head_rows"].flatten()}),
    "an empty row": lambda t: t["layers.0.positions"][0, 0, :1].fill_(-1),
    "rows of heads": lambda t: t.update({"layers.0.values": t["layers.0.values"].repeat(1, 2, 1, 1)}),
    "no number of rows": lambda t: t.pop("layers.1.head_rows"),
    "another head": lambda t: t["layers.0.head_rows"].copy_(torch.tensor([[6, 2], [6, 2]])),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_jagged_rows_are_refused(damage, tmp_path):
    read("tova-head:2/6")[1][1].save(tmp_path / "state")
    tensors, entries = saved(tmp_path / "state")
    damage(tensors)
    save_file(tensors, tmp_path / "state", entries)
    with pytest.raises(Error, match=r"the state is incomplete or damaged|contradict the operator tova-head:2/6"):
        msrnn.load_state(tmp_path / "state")


def test_sizes_of_the_heads_of_one_process_are_refused_in_a_file(tmp_path):
    read("tova-head:2/6")[1][1].save(tmp_path / "state")
    tensors, entries = saved(tmp_path / "state")
    save_file(tensors, tmp_path / "state", {**entries, "operators": entries["operators"].replace("false", "true")})
    with pytest.raises(Error, match="layer 0 has the sizes of the heads of one process; expected those of all heads"):
        msrnn.load_state(tmp_path / "state")


def test_the_file_is_named_where_an_operator_refuses_its_settings(tmp_path):
    read("tova-head:2/6")[1][1].save(tmp_path / "state")
    tensors, entries = saved(tmp_path / "state")
    save_file(tensors, tmp_path / "state", {**entries, "operators": entries["operators"].replace("[2, 6]", "[2, 0]")})
    with pytest.raises(Error, match=r"/state: TOVA: size is 0; expected an int of at least 1"):
        msrnn.load_state(tmp_path / "state")


def test_rows_beyond_the_budget_are_refused_in_a_file(tmp_path):
    _cell, (_, state) = read("tova-head:2/6")
    layers = [msrnn.MultiState(**{**vars(H), "reduction": state[0].reduction}) for H in read("tova-head:3/6")[1][1]]
    with pytest.raises(Error, match=r"rows of shape .* contradict the operator tova-head:2/6"):
        state.with_layers(layers).save(tmp_path / "state")


@pytest.mark.parametrize("spec", [*SPECS, "h2o:full/3"])
def test_copies_and_batches(spec):
    _, (_, state) = read(spec, lengths=torch.tensor([11, 3]))
    same = (state.clone(), state.detach(), pickle.loads(pickle.dumps(state)), state.map(torch.clone), state.to(torch.float64))
    for copy in same:
        assert_same(copy, state)
        assert held_nbytes(copy) == held_nbytes(state)
    halves = [state.select([0]), state.select([-1])]
    assert_same(msrnn.State.cat(halves), state)
    assert halves[1].sorted_by_position().clock.tolist() == [3]
    assert_same(state.select([1, 0, 1]).select([1, 0]), state)
    assert_same(state.to(torch.float32).to(torch.float64), state, 1e-6)
    assert held_nbytes(state.select([])) == 0
    for H, evicted in zip(state, state.evicted_since(tiny_cell().initial_state(2, spec)), strict=True):
        for b, n_read in enumerate((11, 3)):
            for gone, kept in zip(evicted[b].tolist(), H.positions[b].tolist(), strict=True):
                assert sorted(x for x in [*gone, *kept] if x >= 0) == [*range(n_read)]


@pytest.mark.parametrize("spec", ["h2o:full/4", "tova-head:4/6,5/3", "random:4/6", "shared:floor=0:h2o:4", "shared:keydiff:4"])
@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_rows_that_are_not_finite_do_not_change_another_sequence(spec, dtype):
    """Sequence 0 has NaN; sequence 1 is shorter, so it has empty rows."""
    cell, text = tiny_cell(), random_tokens(1, 2, 14, vocab=49)
    cell.embed.weight.data[49] = torch.nan
    text[0, 3] = 49
    _, both = cell(text[:, :9], cell.initial_state(2, spec, dtype=dtype), lengths=torch.tensor([9, 5]))
    _, alone = cell(text[1:, :5], cell.initial_state(1, spec, dtype=dtype))
    for step, token in zip([cell.step, cell.step_, cell.step_, cell.step, cell.step], text[:, 9:].T, strict=True):
        logits, both = step(token, both)
        expected, alone = cell.step(token[1:], alone)
        assert_close(logits[1:], expected)
        assert_same(both.select([1]), alone, 1e-10)


def test_the_layers_are_jagged_at_rest_only():
    cell, (_, state) = read("tova-head:2/6")
    assert all(isinstance(H, JaggedMultiState) for H in state._held)
    assert not any(isinstance(H, JaggedMultiState) for H in state)
    assert state[0].keys.shape == (2, 2, 6, D)
    H = state[0]
    for _ in range(5):
        _, H = cell.layers[0].step(torch.zeros(2, 24, dtype=torch.float64), H)
        assert (H.positions >= 0).sum(-1).tolist() == [[2, 6], [2, 6]]
        assert H.keys.shape[2] <= 6
    text = str(state)
    assert "tova-head:2/6" in text
    assert "2…6" in text


def test_compact_retains_rows_per_head():
    _, (_, state) = read("tova-head:2/6")
    compacted = msrnn.compact(state, 3, lambda l, H: H.positions)
    assert [(H.positions >= 0).sum(-1).tolist() for H in compacted] == [[[2, 3], [2, 3]]] * 2
    assert held_nbytes(compacted) < held_nbytes(state)


def test_vmap_is_refused():
    cell, (_, state) = read(SharedBudget(H2O(4)))
    with pytest.raises(Error, match=r"torch.func.vmap cannot read shared:h2o:4"):
        torch.func.vmap(lambda x: cell.step(x, state)[0])(random_tokens(1, 3, 2))
