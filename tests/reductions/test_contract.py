"""The operator contract: the step loop and the many-token path agree for any class, or the class is refused in one sentence."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell, tiny_decoder

import msrnn
from msrnn import H2O, TOVA, KeyDiff, Knorm, Reduction, Window
from msrnn.reductions.contract import SAFE_FLAGS
from msrnn.reductions.stochastic import CaM

TEXT, LENGTHS = random_tokens(5, 2, 30), torch.tensor([30, 21])


def assert_paths_agree(operator, cell=None, text=TEXT, lengths=LENGTHS):
    """Equal logits and states by the step loop and the many-token path; the state after it."""
    cell = tiny_cell() if cell is None else cell
    expected, end = step_loop(cell, text, cell.initial_state(2, operator), lengths)
    logits, state = cell(text, cell.initial_state(2, operator), lengths=lengths)
    assert_same(state, end, 1e-8)
    assert_close(logits, expected, 1e-8)
    return end


# Flags hold for the class that states them.


@dataclass(frozen=True)
class Decayed(H2O):
    """H2O with statistics that fade, so that its update is not additive."""

    def update(self, observation):
        faded = 0.5 * observation.row_stats["accumulated_attention"]
        return {"accumulated_attention": faded + observation.weights.mean(2)}


@dataclass(frozen=True)
class WeightedWindow(Window):
    """A Window with a score that reads weights."""

    def score(self, observation):
        return observation.weights.mean(2)


@dataclass(frozen=True)
class Helper(Knorm):
    """A subclass that overrides a helper only."""

    def keys(self, observation):
        return super().keys(observation) * observation.weights.mean(2)[..., None]


@pytest.mark.parametrize("operator", [Decayed(6), WeightedWindow(6), Helper(6)], ids=lambda o: type(o).__name__)
def test_subclass_of_shipped_operator_is_exact(operator):
    assert_paths_agree(operator)


def test_flags_are_not_inherited():
    for flag, safe in SAFE_FLAGS.items():
        assert all(getattr(kind, flag) is safe for kind in (Decayed, WeightedWindow, Helper, Reduction))
    assert Helper.needs_keys  # the safe value is the inherited one
    assert not H2O.merges_values

    class Merging(H2O):
        def merge(self, observation, values, row):
            return values

    assert Merging.merges_values
    assert CaM.merges_values


# The same observation in both paths.


@dataclass(frozen=True)
class CurrentProtected(Reduction):
    """TOVA, but the current token is not evicted: its row is the last."""

    def score(self, observation):
        score = observation.weights.mean(2)
        score[..., -1] = math.inf
        return score


@dataclass(frozen=True)
class FairShare(Reduction):
    """Counts how often a row receives more than one R-th of the attention."""

    stat_names: ClassVar[tuple[str, ...]] = ("above",)

    def update(self, observation):
        return {"above": observation.row_stats["above"] + (observation.weights.mean(2) > 1 / observation.weights.shape[-1])}

    def score(self, observation):
        return observation.row_stats["above"]


@dataclass(frozen=True)
class NewBonus(Reduction):
    """A row receives a bonus when it is appended."""

    stat_names: ClassVar[tuple[str, ...]] = ("value",)

    def update(self, observation):
        value = 0.9 * observation.row_stats["value"] + observation.weights.mean(2)
        value[..., -1] = 2.0
        return {"value": value}

    def score(self, observation):
        return observation.row_stats["value"].cumsum(-1)


@pytest.mark.parametrize("operator", [CurrentProtected(6), FairShare(6), NewBonus(6)], ids=lambda o: type(o).__name__)
def test_observation_has_the_same_layout_in_both_paths(operator):
    end = assert_paths_agree(operator)
    cell = tiny_cell()
    _, alone = step_loop(cell, TEXT[1:, :21], cell.initial_state(1, operator))
    assert_same(end.select([1]), alone, 1e-8)


@dataclass(frozen=True)
class Recording(Reduction):
    """Checks each observation that it receives against the documented layout."""

    stat_names: ClassVar[tuple[str, ...]] = ("seen",)
    needs_keys: ClassVar[bool] = True

    def check(self, observation, R=None):
        weights, positions, clock, row_stats, keys, *_ = observation
        assert R in (None, positions.shape[2])
        assert (positions[..., -1] == clock[:, None]).all()
        assert (positions >= 0).all()
        assert (positions[..., 1:] > positions[..., :-1]).all()
        assert weights.shape == (*positions.shape[:2], 2, positions.shape[2])
        assert keys.shape[:3] == row_stats["seen"].shape == positions.shape
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))

    def update(self, observation):
        self.check(observation)
        assert (observation.row_stats["seen"][..., -1] == 0).all()
        return {"seen": observation.row_stats["seen"] + 1}

    def score(self, observation):
        self.check(observation, self.size + 1)
        assert (observation.row_stats["seen"] == observation.clock[:, None, None] - observation.positions + 1).all()
        return observation.weights.mean(2)


def test_observation_has_the_documented_columns():
    assert_paths_agree(Recording(6))


def test_learned_rows_come_first_in_an_observation():
    @dataclass(frozen=True)
    class Learned(Reduction):
        def score(self, observation):
            assert observation.positions.shape[2] == 3 + self.size + 1
            assert (observation.positions[..., :3] == -2).all()
            assert (observation.positions[..., -1] == observation.clock[:, None]).all()
            return -observation.positions.double()  # a learned row has the highest score, and a lower one would not matter

    cell = tiny_decoder(persistent=3)
    state = cell.initial_state(2, Learned(4))
    expected, end = step_loop(cell, TEXT[:, :12], state)
    logits, after = cell(TEXT[:, :12], state)
    assert_close(logits, expected, 1e-8)
    assert_same(after, end, 1e-8)
    assert retained_positions(end)[0][0][0] == [-2, -2, -2, 0, 1, 2, 3]


# In-place edits.


@dataclass(frozen=True)
class Edits(Reduction):
    """Edits a received tensor in place, in ``update`` or in ``score``."""

    what: str = ""
    stat_names: ClassVar[tuple[str, ...]] = ("sum",)

    def update(self, observation):
        stats = observation.row_stats
        if self.what == "update weights":
            observation.weights.masked_fill_(observation.weights < 0.2, 0.0)
        if self.what == "update stats":
            stats["sum"].add_(observation.weights.mean(2))
            return stats
        stats["sum"] = stats["sum"] + observation.weights.mean(2)
        return stats

    def score(self, observation):
        score = observation.row_stats["sum"]
        if self.what == "score weights":
            score = observation.weights[:, :, 0]
        if self.what == "score positions":
            observation.positions.add_(1)
        if self.what.startswith("score"):
            score[observation.positions > observation.clock[:, None, None] - 2] = math.inf
        return score


class LayoutFree(Edits):
    depends_on_row_layout: ClassVar[bool] = False


EDITS = ["update weights", "update stats", "score weights", "score stats", "score positions"]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("what", EDITS)
def test_in_place_edits_are_harmless_or_refused(what, rows):
    cell, text = tiny_cell(), TEXT[:rows]
    expected, end = step_loop(cell, text, cell.initial_state(rows, Edits(6, what)))
    logits, state = cell(text, cell.initial_state(rows, Edits(6, what)))
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)
    assert logits.isfinite().all()
    for path in (lambda s: step_loop(cell, text, s), lambda s: cell(text, s)):
        with pytest.raises(msrnn.Error, match=r"LayoutFree\.(update|score) edits .* in place; expected a new tensor"):
            path(cell.initial_state(rows, LayoutFree(6, what)))
        with torch.inference_mode():
            path(cell.initial_state(rows, LayoutFree(6, what)))  # copies, because inference tensors have no version


# Extreme scores.

MAX = torch.finfo(torch.float64).max


@dataclass(frozen=True)
class ByPosition(Reduction):
    """A score for each position modulo the number of ``scores``."""

    scores: tuple = ()
    dtype: str = "float64"

    def score(self, observation):
        table = torch.tensor(self.scores, dtype=torch.float64).to(getattr(torch, self.dtype))
        return table[observation.positions % len(self.scores)]


class RowWise(ByPosition):
    depends_on_row_layout: ClassVar[bool] = False


def plain(scores, size, T):
    """The positions that a plain loop retains. NaN is the lowest score, +inf is evicted last, the oldest of equals first."""
    kept = []
    for t in range(T):
        kept.append(t)
        if len(kept) > size:
            table = {p: -math.inf if math.isnan(scores[p % len(scores)]) else scores[p % len(scores)] for p in kept}
            kept.remove(min(kept, key=lambda p: (table[p], p)))
    return kept


@pytest.mark.parametrize("kind", [ByPosition, RowWise])
@pytest.mark.parametrize(
    "scores",
    [
        (math.nan, 1.0, 2.0),
        (math.inf, 1.0, math.nan),
        (math.inf, MAX, math.inf),
        (MAX, math.inf),
        (-math.inf, 0.0, -MAX),
        (math.inf,),
        (math.nan,),
        (-math.inf, math.nan, 3.0),
        (-1.0, -2.0, math.nan, -3.0),
        (1.0, 1.0),
    ],
    ids=str,
)
def test_extreme_scores_have_one_rule(kind, scores):
    end = assert_paths_agree(kind(5, scores))
    assert retained_positions(end)[0] == [[plain(scores, 5, n)] * 2 for n in LENGTHS.tolist()]


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "bfloat16", "float8_e4m3fn"])
def test_scores_of_any_real_dtype_have_one_rule(dtype):
    end = assert_paths_agree(ByPosition(5, (1, 0, 1, 1, 0, 0, 1), dtype))
    assert retained_positions(end)[0] == [[plain((1, 0, 1, 1, 0, 0, 1), 5, n)] * 2 for n in LENGTHS.tolist()]


@pytest.mark.parametrize("layout", [True, False])
def test_integer_scores_are_exact_beyond_float32(layout):
    @dataclass(frozen=True)
    class Newest(Reduction):
        depends_on_row_layout: ClassVar[bool] = layout

        def score(self, observation):
            return 2**30 - observation.positions

    end = assert_paths_agree(Newest(5))
    assert retained_positions(end) == [[[[0, 1, 2, 3, 4]] * 2] * 2] * 2


# Ties that rounding decides.


@pytest.mark.parametrize("operator", [Knorm(8), KeyDiff(1), KeyDiff(3), Knorm(1)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_ties_up_to_rounding_are_exact_on_repeated_tokens(operator, seed):
    text = random_tokens(seed, 2, 12).repeat(1, 3)
    cell = tiny_cell(seed=seed)
    end = assert_paths_agree(operator, cell, text, torch.tensor([36, 31]))
    _, state = cell(text[:1, :17], cell.initial_state(1, operator))
    _, split = cell(text[:1, 17:], state)
    assert_same(split, end.select([0]), 1e-8)


def test_keydiff_with_one_row_is_the_window():
    cell = tiny_cell()
    for path in (step_loop, lambda cell, text, state: cell(text, state)):
        assert retained_positions(path(cell, TEXT, cell.initial_state(2, "keydiff:1"))[1]) == [[[[29]] * 2] * 2] * 2


def test_scores_within_the_tolerance_are_equal():
    @dataclass(frozen=True)
    class Near(ByPosition):
        tie_tolerance: ClassVar[float] = 1e-3

    assert retained_positions(assert_paths_agree(Near(5, (2.0, 2.0 - 1e-3, 2.0, 1.0))))[0][0][0] == plain(
        (2.0, 2.0, 2.0, 1.0), 5, 30
    )
    assert retained_positions(assert_paths_agree(Near(5, (2.0, 1.9, MAX))))[0][0][0] == plain((2.0, 1.9, MAX), 5, 30)
    extreme = (math.inf, -math.inf, 0.0, math.nan)
    assert retained_positions(assert_paths_agree(Near(5, extreme)))[0][0][0] == plain(extreme, 5, 30)


# Wrong answers.

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


@pytest.mark.parametrize("edited", ["values", "row"])
def test_merge_that_edits_what_it_is_given_is_refused(edited):
    """A class that reads any row layout receives the library's own tensors."""

    @dataclass(frozen=True)
    class Edits(Reduction):
        depends_on_row_layout: ClassVar[bool] = False

        def score(self, observation):
            return observation.weights.mean(2)

        def merge(self, observation, values, row):
            (values if edited == "values" else row).mul_(2)
            return values.clone()

    cell = tiny_cell()
    for path in (step_loop, lambda cell, text, state: cell(text, state)):
        with pytest.raises(msrnn.Error, match=f"Edits.merge edits {edited} in place; expected a new tensor"):
            path(cell, TEXT, cell.initial_state(2, Edits(4)))


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


@pytest.mark.parametrize("layout", [True, False])
def test_statistics_may_be_taken_out_of_the_dict(layout):
    class Taking(Reduction):
        stat_names: ClassVar[tuple[str, ...]] = ("a",)
        depends_on_row_layout: ClassVar[bool] = layout

        def update(self, observation):
            return {"a": observation.row_stats.pop("a") + observation.weights.mean(2)}

        def score(self, observation):
            return observation.row_stats.pop("a")

    assert_paths_agree(Taking(5))


@pytest.mark.parametrize("reads_weights", [True, False])
@pytest.mark.parametrize("layout", [True, False])
def test_layers_are_told_apart_by_fields_that_equality_leaves_out(layout, reads_weights):
    """Layers with equal operators are evaluated together, so the layer index has to count although ``==`` ignores it."""

    @dataclass(frozen=True)
    class ByLayer(Reduction):
        layer: int = field(default=0, compare=False)
        depends_on_row_layout: ClassVar[bool] = layout
        needs_weights: ClassVar[bool] = reads_weights

        def for_layer(self, layer):
            return replace(self, layer=layer)

        def score(self, observation):
            turn = observation.positions * (3 + self.layer) % 7
            return turn + observation.weights.mean(2) / 2

    end = retained_positions(assert_paths_agree(ByLayer(5)))
    for layer, heads in enumerate(end):
        scores = tuple(p * (3 + layer) % 7 for p in range(7))
        assert reads_weights or heads == [[plain(scores, 5, n)] * 2 for n in LENGTHS.tolist()]


def test_statistics_carry_no_graph():
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)

    class Trained(Reduction):
        stat_names: ClassVar[tuple[str, ...]] = ("a",)

        def update(self, observation):
            with torch.enable_grad():
                return {"a": observation.row_stats["a"] + weight * observation.weights.mean(2)}

        def score(self, observation):
            return observation.row_stats["a"] * weight

    state = assert_paths_agree(Trained(5))
    assert not any(x.requires_grad for H in state for x in H.rows.values())


def test_spec_names_of_the_library_cannot_be_taken():
    with pytest.raises(msrnn.Error, match=r"Mine: spec name 'tova' is that of msrnn\.TOVA; expected another name"):

        class Mine(Reduction):
            spec_names: ClassVar = {"tova": {}}

    for bonus in (1.0, 2.0):  # a class of the same name replaces the earlier one, as in a notebook

        @dataclass(frozen=True)
        class Again(Reduction):
            spec_names: ClassVar = {"again": {}}
            extra = bonus
            score = TOVA.score

    assert type(msrnn.parse_reduction("again:4")).extra == 2.0


@pytest.mark.parametrize("operator", [CurrentProtected(6), NewBonus(6)], ids=lambda o: type(o).__name__)
def test_step_of_a_full_cache_is_one_graph(operator):
    """A synchronisation with the device would break the graph."""
    cell = tiny_cell()
    _, state = cell(TEXT, cell.initial_state(2, operator))
    stepped = torch.compile(cell.layers[0].step, backend="eager", fullgraph=True)(torch.zeros(2, 24).double(), state[0])
    plain = cell.layers[0].step(torch.zeros(2, 24).double(), state[0])
    assert_close(stepped[0], plain[0])
    assert stepped[1].positions.equal(plain[1].positions)
