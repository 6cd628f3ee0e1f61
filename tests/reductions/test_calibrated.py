"""Operators with constants: against plain loops, in every path, saved, and refused for another model."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import adapt
from support.calibrated_rules import CASES, FILTERS, K, L
from support.naive_operators import naive
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import Constants, QFilters, parse_reduction
from msrnn.recurrence import unroll
from msrnn.state.fingerprint import Fingerprint

OPERATORS = {name: operator for name, (operator, _) in CASES.items()}


@pytest.mark.parametrize(("operator", "rule"), CASES.values(), ids=CASES)
def test_operator_equals_its_rule_in_plain_python(operator, rule):
    cell, text = tiny_cell(), random_tokens(3, 2, 18)
    logits, state = step_loop(cell, text, cell.initial_state(2, operator))
    for b in range(2):
        ruled, kept = naive(cell, text[b], rule, lambda l: operator.for_layer(l).size)
        assert [retained_positions(state)[l][b] for l in range(2)] == kept
        assert_close(logits[b], ruled)


@given(
    st.sampled_from(list(OPERATORS)), st.lists(st.integers(0, 20), min_size=1, max_size=3), st.integers(0, 20), st.booleans()
)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
def test_many_token_path_equals_step_loop(name, lengths, cut, short_blocks):
    operator, cell, ends = OPERATORS[name], tiny_cell(), torch.tensor(lengths)
    text = random_tokens(5, len(lengths), 20)
    whole, unroll.BLOCK = unroll.BLOCK, 3 if short_blocks else unroll.BLOCK
    try:
        by_step, end = step_loop(cell, text, cell.initial_state(len(ends), operator), ends)
        first, state = cell(text[:, :cut], cell.initial_state(len(ends), operator), lengths=ends.clamp(max=cut))
        second, state = cell(text[:, cut:], state, lengths=(ends - cut).clamp(min=0))
        assert_close(torch.cat((first, second), 1), by_step, 1e-8)
        assert_same(state, end, 1e-8)
        _, trace = cell.scan(text, cell.initial_state(len(ends), operator), lengths=ends, weights=True)
        _, before = step_loop(cell, text[:, :cut], cell.initial_state(len(ends), operator), ends.clamp(max=cut))
        assert_same(trace.at(cut), before, 1e-8)
    finally:
        unroll.BLOCK = whole


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_check_operator_draws_constants_that_fit(operator):
    msrnn.check_operator(operator, seeds=1)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_a_saved_state_contains_the_constants(operator, tmp_path):
    cell, text = tiny_cell(), random_tokens(5, 2, 20)
    _, state = cell(text[:, :12], cell.initial_state(2, operator))
    state.save(tmp_path / "state")
    loaded = msrnn.load_state(tmp_path / "state")
    assert_same(loaded, state)
    assert all(H.reduction.constants.layer == i for i, H in enumerate(loaded))
    straight, after = cell(text[:, 12:], state)
    on, end = cell(text[:, 12:], loaded)
    assert_close(on, straight, 0)
    assert_same(end, after, 0)
    new, end, *_ = msrnn.lookahead(cell, text, cell.initial_state(2, operator), max_new_tokens=8)
    greedy, written, _ = msrnn.generate(cell, text, cell.initial_state(2, operator), max_new_tokens=8)
    assert new.equal(greedy)
    assert_same(end, written, 1e-8)


def test_damaged_constants_of_a_state_are_refused(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    cell = tiny_cell()
    cell.initial_state(1, QFilters(4, FILTERS)).save(tmp_path / "state")
    with safe_open(tmp_path / "state", "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    (name,) = (name for name in tensors if name.startswith("constants."))
    for change, message in [
        ({name: tensors[name] + 1}, "digest"),
        ({name: torch.full_like(tensors[name], torch.nan)}, "finite"),
        ({f"{name}.more": tensors[name].clone()}, "damaged"),
    ]:
        save_file({**tensors, **change}, tmp_path / "other", metadata)
        with pytest.raises(msrnn.Error, match=message):
            msrnn.load_state(tmp_path / "other")
    save_file({n: x for n, x in tensors.items() if n != name}, tmp_path / "other", metadata)
    with pytest.raises(msrnn.Error, match=r"constants .* are missing"):
        msrnn.load_state(tmp_path / "other")


def test_constants_are_values():
    one, other = Constants(dict(FILTERS.tensors)), Constants({"filters": FILTERS.tensors["filters"] + 1e-9})
    assert one == FILTERS
    assert hash(one) == hash(FILTERS)
    assert one != other
    assert one.of_layer(0) != one.of_layer(1)
    assert one.of_layer(1).of_layer(0) == one.of_layer(1)
    assert QFilters(4, one) == QFilters(4, FILTERS) != QFilters(4, other)
    assert len({QFilters(4, one), QFilters(4, FILTERS), QFilters(4, other)}) == 2
    for copied in (pickle.loads(pickle.dumps(one.of_layer(1))), copy.deepcopy(one.of_layer(1))):
        assert copied == one.of_layer(1)
        assert copied.get("filters", torch.zeros((), dtype=torch.float64)).equal(FILTERS.tensors["filters"][1])
    numbers = torch.randn(L, K, 6)
    kept = Constants({"filters": numbers})
    numbers.zero_()
    assert kept.tensors["filters"].abs().sum() > 0
    with pytest.raises(TypeError):
        kept.tensors["filters"] = numbers
    with pytest.raises(msrnn.Error, match="no layer 2"):
        one.of_layer(2)


def test_spec_string_names_the_file_and_its_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "q filters=1.safetensors"
    FILTERS.save(path)
    operator = QFilters(4, path)
    assert operator == QFilters(4, FILTERS) == QFilters(4, str(path))
    assert parse_reduction(str(operator)) == operator
    assert str(operator).endswith(f"q%20filters%3D1.safetensors@{FILTERS.digest[:8]}")
    FILTERS.save("short.safetensors")
    assert parse_reduction("q-filters:4:short.safetensors") == operator
    assert str(parse_reduction("all-layers:q-filters:4:short.safetensors")).startswith("all-layers:q-filters:4:short")
    cell = tiny_cell()
    state = cell(random_tokens(1, 1, 9), cell.initial_state(1, "q-filters:4:short.safetensors"))[1]
    assert repr(state).count("q-filters:4:short.safetensors@") == 1  # one line for both layers
    Constants({"filters": FILTERS.tensors["filters"] * 2}).save("short.safetensors")
    with pytest.raises(msrnn.Error, match="the file has changed"):
        parse_reduction(f"q-filters:4:short.safetensors@{FILTERS.digest[:8]}")
    assert "!Constants-" in str(QFilters(4, FILTERS))  # it has no file
    with pytest.raises(msrnn.Error, match="'!' stands for"):
        parse_reduction(str(QFilters(4, FILTERS)))


@pytest.mark.parametrize(
    ("build", "thing"),
    [
        (lambda: QFilters(4, None), "QFilters: constants are None"),
        (lambda: QFilters(4, "missing.safetensors"), "missing.safetensors"),
        (lambda: Constants({}), "expected tensors by name"),
        (lambda: Constants({"a b": torch.ones(2)}), "the name 'a b'"),
        (lambda: Constants({"a": torch.ones(2, dtype=torch.int64)}), "a is"),
        (lambda: Constants({"a": torch.tensor([1.0, torch.inf])}), "finite"),
        (lambda: Constants({"a": torch.ones(2).to(torch.float8_e4m3fn)}), "a is float8_e4m3fn"),
        (lambda: Constants({"a": torch.ones(2), "b": torch.ones(3)}), r"\[2, 3\] layers"),
        (lambda: parse_reduction("q-filters:4"), "expected the form q-filters:<size: int>:<constants: str>"),
    ],
)
def test_invalid_constants_are_refused(build, thing):
    with pytest.raises(msrnn.Error, match=thing):
        build()


def test_constants_of_another_model_are_refused(tmp_path):
    cell = tiny_cell()
    for other in (tiny_cell(n_layers=3), tiny_cell(n_kv_heads=4), tiny_cell(head_dim=4)):
        with pytest.raises(msrnn.Error, match=r"the constants are filters \(2, 2, 6\); expected filters|no layer 2"):
            other.initial_state(1, QFilters(4, FILTERS))
    model = json.dumps(vars(tiny_cell().fingerprint()))
    operator = QFilters(4, Constants(dict(FILTERS.tensors), model))
    cell.initial_state(1, operator)
    with pytest.raises(msrnn.Error, match="belong to another model"):
        tiny_cell(seed=1).initial_state(1, operator)
    with pytest.raises(msrnn.Error, match="damaged model"):
        cell.initial_state(1, QFilters(4, Constants(dict(FILTERS.tensors), "{}")))
    cell.save(tmp_path / "cell")
    (tmp_path / "not").write_bytes((tmp_path / "cell" / "model.safetensors").read_bytes())
    with pytest.raises(msrnn.Error, match="expected constants"):
        QFilters(4, tmp_path / "not")
    assert Fingerprint.from_dict(json.loads(model)) == cell.fingerprint()


def test_operators_per_layer_may_have_constants_in_some_layers():
    cell, text = tiny_cell(), random_tokens(3, 1, 12)
    operators = [replace(QFilters(4, FILTERS)), "tova:4"]
    logits, _ = step_loop(cell, text, cell.initial_state(1, operators))
    assert_close(cell(text, cell.initial_state(1, operators))[0], logits, 1e-8)


def test_an_operator_that_rotates_keys_by_text_positions_needs_them():
    operator = OPERATORS["expected-attention"]
    for operators in (operator, [operator, "tova:4"]):
        with pytest.raises(
            msrnn.Error, match="ExpectedAttention rotates keys by their positions in the text; expected places="
        ):
            tiny_cell().initial_state(1, operators, places="inside")
    tiny_cell().initial_state(1, QFilters(4, FILTERS), places="inside")


def test_constants_of_one_digest_are_checked_for_every_class():
    linear = OPERATORS["learned-score"].constants
    with pytest.raises(msrnn.Error, match="QFilters: the constants are bias"):
        tiny_cell().initial_state(1, [msrnn.LearnedScore(6, linear), QFilters(4, linear)])


def test_an_adapted_cell_takes_the_constants_of_its_base_and_its_own():
    """Adapters are trained through an operator with the constants of the base."""
    base, cell = tiny_cell(), adapt(tiny_cell())
    of_base, of_adapted, of_other = (
        QFilters(4, Constants(dict(FILTERS.tensors), json.dumps(vars(x.fingerprint()))))
        for x in (base, cell.requires_grad_(False), tiny_cell(seed=1))
    )
    for operator in (of_base, of_adapted):
        cell.initial_state(1, operator)
    with pytest.raises(msrnn.Error, match="belong to another model"):
        cell.initial_state(1, of_other)
    with pytest.raises(msrnn.Error, match="belong to another model"):
        base.initial_state(1, of_adapted)


def test_a_loaded_state_names_the_file_of_each_layer(tmp_path):
    specs = [f"q-filters:4:{tmp_path}/{name}@{FILTERS.digest[:8]}" for name in ("one", "other")]
    for name in ("one", "other"):
        FILTERS.save(tmp_path / name)
    tiny_cell().initial_state(1, specs).save(tmp_path / "state")
    assert [str(H.reduction) for H in msrnn.load_state(tmp_path / "state")] == specs


def test_rows_of_one_token_tie_in_the_first_layer():
    """Their scores depend on the embedding alone. They are rounded differently where the shapes of two paths differ."""
    operator = replace(OPERATORS["learned-score with a hidden layer"], size=5)
    cell, text, lengths = tiny_cell(), random_tokens(7, 3, 24, vocab=20), torch.tensor([24, 9, 0])
    state = cell.initial_state(3, operator, places="inside")
    _, stepped = step_loop(cell, text, state, lengths)
    for t in range(24):
        _, state = cell(text[:, t : t + 1], state, lengths=(t < lengths).long())
    assert retained_positions(state) == retained_positions(stepped)
