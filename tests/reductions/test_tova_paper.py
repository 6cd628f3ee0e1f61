"""The operators of the TOVA paper, against a dense decoder and eviction rules in plain Python."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.eviction_rules import dense_decoder, evict_one, full, h2o, lowest, mean, sinks, tova, tova_head, window
from support.tiny_models import ROPES, assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import H2O, TOVA, Full, MultiState, Reduction, Sinks, Window, parse_reduction
from msrnn.recurrence import eviction
from msrnn.recurrence.transition import Attended, reduce

CASES = {
    "full": ("full", lambda l: full()),
    **{f"window:{n}": (Window(n), lambda l, n=n: window(n)) for n in (0, 1, 5)},
    "sinks:2:1": (Sinks(2, sinks=1), lambda l: sinks(2, 1)),
    "sinks:7": (Sinks(7), lambda l: sinks(7, 4)),
    **{f"tova:{n}": (TOVA(n), lambda l, n=n: tova(n)) for n in (1, 2, 6)},
    **{f"tova-head:{n}": (TOVA(n, per_head=True), lambda l, n=n: tova_head(n)) for n in (1, 6)},
    **{f"h2o:{n}": (H2O(n), lambda l, n=n: h2o(n, n // 2)) for n in (1, 2, 7)},
    "h2o:6:0": (H2O(6, recent=0), lambda l: h2o(6, 0)),
    "h2o:5:5": (H2O(5, recent=5), lambda l: window(5)),
    **{f"h2o-layer:{n}": (H2O(n, per_head=False), lambda l, n=n: h2o(n, n // 2, True)) for n in (1, 7)},
    "tova per layer": (TOVA((3, 7)), lambda l: tova((3, 7)[l])),
    "h2o per layer": (H2O([2, 6]), lambda l: h2o((2, 6)[l], (1, 3)[l])),
    "window per layer": (Window((0, 4)), lambda l: window((0, 4)[l])),
    "one each": (["h2o-layer:4:1", "tova-head:5"], lambda l: (h2o(4, 1, True), tova_head(5))[l]),
}
SHAPES = {"alone": (4, 4), "grouped": (4, 2), "six by three": (6, 3), "shared": (4, 1)}


@pytest.mark.parametrize("heads", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("operator", "rule"), CASES.values(), ids=CASES)
def test_operator_equals_its_rule_and_attends_to_the_retained_rows(operator, rule, heads):
    cell = tiny_cell(seed=sum(heads), n_heads=heads[0], n_kv_heads=heads[1])
    text, lengths = random_tokens(3, 3, 16), torch.tensor([16, 9, 13])
    state, logits, history = cell.initial_state(3, operator), [], []
    for t in range(16):
        read, state = cell.step(text[:, t], state, active=t < lengths)
        logits.append(read)
        history.append(retained_positions(state))
    for b, length in enumerate(lengths.tolist()):
        own = torch.stack(logits, 1)[b, :length]
        masked, _ = dense_decoder(cell, text[b, :length], lambda l, b=b: lambda t, seen: history[t][l][b])  # noqa: B023
        assert_close(own, masked)
        ruled, after = dense_decoder(cell, text[b, :length], rule)
        assert [[history[t][l][b] for t in range(length)] for l in range(2)] == after
        assert_close(own, ruled)


@pytest.mark.parametrize(("operator", "rule"), [CASES["full"], CASES["tova:6"]], ids=["full", "tova:6"])
def test_dynamic_rope_rotates_by_the_length_so_far(operator, rule):
    cell, text = tiny_cell(rope=ROPES["dynamic"]), random_tokens(3, 1, 16)
    logits, state = step_loop(cell, text, cell.initial_state(1, operator))
    ruled, after = dense_decoder(cell, text[0], rule)
    assert_close(logits[0], ruled)
    assert [row[0] for row in retained_positions(state)] == [history[-1] for history in after]
    assert (ruled - dense_decoder(tiny_cell(), text[0], rule)[0])[6:].abs().max() > 1e-3  # the scaling was at work


def test_rules_of_different_operators_differ():
    cell, text = tiny_cell(), random_tokens(3, 1, 16)[0]
    several = [window(6), sinks(6, 4), tova(6), tova_head(6), h2o(6, 3), h2o(6, 3, True), h2o(6, 0)]
    histories = [dense_decoder(cell, text, lambda l, rule=rule: rule)[1][0] for rule in several]
    assert all(a != b for i, a in enumerate(histories) for b in histories[:i])


# TOVA.

FIGURE_2 = {  # arXiv:2401.06104, fig. 2, k = 5: the weights at t, and what leaves
    5: ({0: 0.2, 1: 0.05, 2: 0.1, 3: 0.1, 4: 0.2, 5: 0.35}, 1),
    6: ({0: 0.15, 2: 0.15, 3: 0.1, 4: 0.05, 5: 0.25, 6: 0.3}, 4),
    7: ({0: 0.15, 2: 0.15, 3: 0.1, 5: 0.15, 6: 0.2, 7: 0.25}, 3),
    8: ({0: 0.2, 2: 0.15, 5: 0.15, 6: 0.1, 7: 0.15, 8: 0.25}, 6),
}


def rows_at(positions, operator, numbers=None, K=1):
    """Return an H with these positions in every head; keys equal the position, the clock is one after the newest."""
    positions = torch.tensor(positions)[None, None].repeat(1, K, 1)
    keys = positions[..., None].double()
    return MultiState(keys, -keys, positions, positions.amax((1, 2)) + 1, operator, numbers or {})


def reduced(H, weights):
    """Return H after one token with attention ``weights (K, G, S + 1)``."""
    key = H.clock.double()[:, None, None].repeat(1, H.keys.shape[1], 1)
    return reduce(H.append(key, -key, in_place=False), Attended(torch.tensor(weights).double()[None]), H.clock + 1, None)


@pytest.mark.parametrize("tilt", [0.0, 0.04])
def test_tova_on_the_example_of_the_paper(tilt):
    """One decision by the mean of both heads. ``tilt`` moves weight between the heads, so each head alone would differ."""
    H = rows_at([3, 0, 4, 1, 2], TOVA(5), K=2)
    for t, (weights, gone) in FIGURE_2.items():
        before = H.positions[0, 0].tolist()
        row = [weights[p] for p in (*before, t)]
        lean = [tilt if p == gone else -tilt if p == 0 else 0.0 for p in (*before, t)]
        one, other = ([[w + sign * d for w, d in zip(row, lean, strict=True)]] for sign in (1, -1))
        H = reduced(H, [one, other])
        assert H.positions[0, 0].tolist() == H.positions[0, 1].tolist()
        assert {*before, t} - set(H.positions[0, 0].tolist()) == {gone}
        assert H.keys[..., 0].equal(H.positions.double())
        assert H.values.equal(-H.keys)


@pytest.mark.parametrize("heads", [(4, 2), (6, 3), (5, 1), (7, 7)])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_tova_with_zero_queries_equals_window(heads, size):
    cell = tiny_cell(n_heads=heads[0], n_kv_heads=heads[1])
    for layer in cell.layers:
        layer.q.weight.zero_()
    text = random_tokens(1, 2, 20)
    states = [cell.initial_state(2, r) for r in (TOVA(size), TOVA(size, per_head=True), Window(size))]
    for token in text.T:
        outs = [cell.step(token, state) for state in states]
        states = [state for _, state in outs]
        assert retained_positions(states[0]) == retained_positions(states[1]) == retained_positions(states[2])
        assert_close(outs[0][0], outs[2][0], 1e-12)
        assert_close(outs[1][0], outs[2][0], 1e-12)


# Mistral.


def test_sliding_window_of_w_equals_window_of_w_minus_one():
    W, text = 5, random_tokens(2, 1, 18)
    cell = tiny_cell(family="mistral", sliding_window=W)
    assert cell.default_reduction == Window(W - 1)
    published, _ = dense_decoder(cell, text[0], lambda l: lambda t, seen: [range(max(0, t + 1 - (W - 1)), t + 1) for _ in seen])
    own, state = step_loop(cell, text)
    assert_close(own[0], published)
    assert state[0].reduction == Window(W - 1)
    wider, _ = step_loop(cell, text, cell.initial_state(1, Window(W)))
    assert (wider[0] - published).abs().max() > 1e-3
    unbounded, _ = step_loop(cell, text, cell.initial_state(1, "full"))
    assert (unbounded[0] - published).abs().max() > 1e-3


def test_sliding_window_of_one_attends_to_the_current_token_only():
    cell = tiny_cell(sliding_window=1)
    text = random_tokens(2, 1, 6)
    own, state = step_loop(cell, text)
    assert [H.keys.shape[2] for H in state] == [0, 0]
    alone, _ = dense_decoder(cell, text[0], lambda l: lambda t, seen: [[] for _ in seen])
    assert_close(own[0], alone)


# Ties, protection, empty rows.


@dataclass(frozen=True)
class ScoreByPosition(Reduction):
    """A given score for each position."""

    scores: tuple = ()

    def score(self, seen):
        table = torch.tensor([*self.scores, 0.0], dtype=torch.float64)
        return table[seen.positions]


def gone(H, weights):
    before = {*H.positions.flatten().tolist(), int(H.clock)}
    return before - set(reduced(H, weights).positions.flatten().tolist())


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_of_equal_scores_the_oldest_position_is_evicted(rows):
    place = {p: i for i, p in enumerate([*rows, 4])}
    weights = [0.25] * 5
    assert gone(rows_at(rows, TOVA(4)), [[weights]]) == {0}
    weights[place[1]] = weights[place[3]] = weights[place[4]] = 0.1
    assert gone(rows_at(rows, TOVA(4)), [[weights]]) == {1}
    assert gone(rows_at(rows, TOVA(4, per_head=True)), [[weights]]) == {1}
    received = torch.tensor([[[1.0 if p in (0, 2) else 0.5 for p in rows]]], dtype=torch.float64)
    assert gone(rows_at(rows, H2O(4, recent=1), {"accumulated_attention": received}), [[[0.2] * 5]]) == {1}
    assert gone(rows_at(rows, Window(4)), [[weights]]) == {0}
    assert gone(rows_at(rows, Sinks(4, sinks=2)), [[weights]]) == {2}


def test_infinite_score_is_not_evicted():
    inf = math.inf
    for stays in range(5):
        scores = tuple(1.0 if p == stays else inf for p in range(5))
        assert gone(rows_at([2, 0, 3, 1], ScoreByPosition(4, scores)), [[[0.2] * 5]]) == {stays}
    assert gone(rows_at([2, 0, 3, 1], ScoreByPosition(4, (inf, 3.0, 2.0, inf, 9.0))), [[[0.2] * 5]]) == {2}


@pytest.mark.parametrize("scores", [(-5.0,) * 5, (-math.inf,) * 5, (1.0,) * 5])
def test_empty_row_is_filled_before_an_eviction(scores):
    H = rows_at([2, -1, 3, 1], ScoreByPosition(4, scores))
    assert sorted(reduced(H, [[[0.25, 0.0, 0.25, 0.25, 0.25]]]).positions.flatten().tolist()) == [1, 2, 3, 4]
    for operator in (TOVA(4), Window(4), Sinks(4, sinks=1), H2O(4)):
        numbers = {name: torch.zeros(1, 1, 4).double() for name in operator.stat_names}
        after = reduced(rows_at([2, -1, 3, 1], operator, numbers), [[[0.25, 0.0, 0.25, 0.25, 0.25]]])
        assert sorted(after.positions.flatten().tolist()) == [1, 2, 3, 4]


def test_select_evicted_row_decides_per_head_or_layer():
    positions = torch.tensor([[[4, 0, 2, 5], [0, 1, 4, 5]]])
    assert eviction.select_evicted_row(torch.tensor([[[3.0, 2.0, 1.0, 1.0], [0.0, 7.0, 7.0, 0.0]]]), positions).tolist() == [
        [2, 0]
    ]
    assert eviction.select_evicted_row(torch.tensor([[[3.0, 2.0, 2.0, 9.0]]]), positions[:, :1].repeat(1, 2, 1)).tolist() == [
        [1]
    ]


# User-defined operators.


@dataclass(frozen=True)
class KeepEven(Reduction):
    """The oldest odd position is evicted; one decision for the layer."""

    def score(self, seen):
        return (seen.positions[:, :1] % 2 == 0).to(seen.weights.dtype)


@dataclass(frozen=True)
class LeastRecentlyRead(Reduction):
    """Statistics: the last clock at which a row received more than ``share``, and its largest weight."""

    share: float = 0.2
    stat_names: ClassVar[tuple[str, ...]] = ("last", "best")

    def update(self, seen):
        weights = seen.weights.mean(2)
        now = seen.clock[:, None, None].to(weights.dtype)
        return {
            "last": torch.where(weights > self.share, now, seen.row_stats["last"]),
            "best": torch.maximum(seen.row_stats["best"], weights),
        }

    def score(self, seen):
        return seen.row_stats["last"] + seen.row_stats["best"] / 2


def keep_even(size):
    return evict_one(size, lambda t, seen: [lowest({p: p % 2 == 0 for p in head}) for head in seen])


def least_recently_read(size, share):
    last, best = {}, {}

    def worst(t, seen):
        for h, head in enumerate(seen):
            for p, w in head.items():
                last[h, p] = t if mean(w) > share else last.get((h, p), 0)
                best[h, p] = max(best.get((h, p), 0.0), mean(w))
        return [lowest({p: last[h, p] + best[h, p] / 2 for p in head}) for h, head in enumerate(seen)]

    return evict_one(size, worst)


OWN = {
    "keep even": (KeepEven(5), lambda l: keep_even(5)),
    "keep even per layer": (KeepEven((1, 6)), lambda l: keep_even((1, 6)[l])),
    "least recently read": (LeastRecentlyRead(5), lambda l: least_recently_read(5, 0.2)),
    "least recently read per layer": (LeastRecentlyRead((2, 6), share=0.1), lambda l: least_recently_read((2, 6)[l], 0.1)),
}


@pytest.mark.parametrize(("operator", "rule"), OWN.values(), ids=OWN)
def test_user_defined_operator_works_in_every_path(operator, rule, tmp_path):
    cell, text, lengths = tiny_cell(), random_tokens(5, 2, 15), torch.tensor([15, 11])
    expected = [dense_decoder(cell, text[b, :n], rule) for b, n in enumerate(lengths.tolist())]
    by_step, end = step_loop(cell, text, cell.initial_state(2, operator), lengths)
    for b, (logits, after) in enumerate(expected):
        assert_close(by_step[b, : lengths[b]], logits)
        assert [retained_positions(end)[l][b] for l in range(2)] == [history[-1] for history in after]
    folded, state = cell(text, cell.initial_state(2, operator), lengths=lengths)
    assert_close(folded, by_step, 1e-8)
    assert_same(state, end, 1e-8)
    more = random_tokens(6, 2, 8)
    swapped, other = step_loop(cell, more[[1, 0]], end.select([1, 0]))
    end.save(tmp_path / "state")
    for start in (end, end.clone(), msrnn.load_state(tmp_path / "state")):
        straight, after = step_loop(cell, more, start)
        assert_close(swapped[[1, 0]], straight)
        assert_same(other.select([1, 0]), after, 1e-9)
    moving = end.clone()
    for t in range(8):
        read, moving = cell.step_(more[:, t], moving)
        assert_close(read, straight[:, t])
    assert_same(moving, after, 1e-9)


@dataclass(frozen=True)
class Views(Reduction):
    """A statistic that is a view of the clock."""

    stat_names: ClassVar[tuple[str, ...]] = ("now",)

    def update(self, seen):
        return {"now": seen.clock[:, None, None].to(seen.weights.dtype).expand_as(seen.positions)}

    def score(self, seen):
        return seen.row_stats["now"] + seen.weights.mean(2)


@dataclass(frozen=True)
class Edits(Reduction):
    """Adds to the received statistics in place."""

    stat_names: ClassVar[tuple[str, ...]] = ("sum",)

    def update(self, seen):
        seen.row_stats["sum"].add_(seen.weights.mean(2))
        return seen.row_stats

    def score(self, seen):
        return seen.row_stats["sum"]


@pytest.mark.parametrize("operator", [Views(3), Edits(3)], ids=["views", "edits"])
def test_update_may_return_a_view_or_its_argument(operator):
    cell, text, lengths = tiny_cell(), random_tokens(5, 2, 9), torch.tensor([9, 6])
    by_step, end = step_loop(cell, text, cell.initial_state(2, operator), lengths)
    folded, state = cell(text, cell.initial_state(2, operator), lengths=lengths)
    assert_close(folded, by_step, 1e-8)
    assert_same(state, end, 1e-8)
    alone, own = step_loop(cell, text[1:, :6], cell.initial_state(1, operator))
    assert_close(by_step[1, :6], alone[0])
    assert_same(end.select([1]), own, 1e-9)


@dataclass(frozen=True)
class KeepEvenIn(Reduction):
    """:class:`KeepEven` with scores of another dtype."""

    type: str = "bool"

    def score(self, seen):
        return (seen.positions % 2 == 0).to(getattr(torch, self.type))


@pytest.mark.parametrize("type", ["float32", "bfloat16", "bool", "int64", "uint8"])
def test_score_of_any_dtype_gives_the_same_evictions(type):
    cell, text, lengths = tiny_cell(), random_tokens(5, 2, 9), torch.tensor([9, 2])
    _, state = step_loop(cell, text, cell.initial_state(2, KeepEvenIn(4, type)), lengths)
    _, state = cell.step(text[:, 0], state)  # the short row still has empty rows to give
    assert retained_positions(state)[0] == [[[2, 4, 6, 8]] * 2, [[0, 1, 2]] * 2]


@pytest.mark.parametrize("shape", ["(B, R)", "(B, K, S)", "(B, N, R)"])
def test_score_of_another_shape_is_refused(shape):
    @dataclass(frozen=True)
    class Odd(Reduction):
        def score(self, seen):
            shapes = {
                "(B, R)": seen.positions[:, 0],
                "(B, K, S)": seen.positions[..., 1:],
                "(B, N, R)": seen.weights.flatten(1, 2),
            }
            return shapes[shape].double()

    cell = tiny_cell()
    with pytest.raises(msrnn.Error, match=r"Odd\.score returns shape"):
        cell(random_tokens(5, 2, 9), cell.initial_state(2, Odd(4)))


def test_missing_statistic_is_refused():
    @dataclass(frozen=True)
    class Forgets(Reduction):
        stat_names: ClassVar[tuple[str, ...]] = ("one", "other")

        def update(self, seen):
            return {"one": seen.weights.mean(2)}

        def score(self, seen):
            return seen.row_stats["one"]

    cell = tiny_cell()
    with pytest.raises(msrnn.Error, match=r"Forgets.*other"):
        cell.step(torch.tensor([1]), cell.initial_state(1, Forgets(3)))


# Refusals and spec strings.


@pytest.mark.parametrize(
    ("build", "thing"),
    [
        (lambda: TOVA(0), "TOVA: size is 0"),
        (lambda: TOVA(-1), "TOVA: size is -1"),
        (lambda: TOVA(2.0), "TOVA: size is 2.0"),
        (lambda: TOVA("4"), "TOVA: size is '4'"),
        (lambda: TOVA(True), "TOVA: size is True"),
        (lambda: TOVA(None), "TOVA: size is None"),
        (lambda: TOVA((4, 0)), "TOVA: size is 0"),
        (lambda: H2O(0), "H2O: size is 0"),
        (lambda: H2O(4, recent=5), "H2O: recent is 5"),
        (lambda: H2O((8, 4), recent=5), "H2O: recent is 5"),
        (lambda: H2O(4, recent=-1), "H2O: recent is -1"),
        (lambda: Sinks(4), "Sinks: sinks is 4"),
        (lambda: Sinks(4, sinks=4), "Sinks: sinks is 4"),
        (lambda: Sinks((9, 4), sinks=4), "Sinks: sinks is 4"),
        (lambda: Sinks(4, sinks=9), "Sinks: sinks is 9"),
        (lambda: Sinks(0, sinks=0), "Sinks: size is 0"),
        (lambda: Window(-1), "Window: size is -1"),
        (lambda: Full(5), "Full: size is 5"),
    ],
)
def test_invalid_sizes_are_refused(build, thing):
    with pytest.raises(msrnn.Error, match=thing):
        build()


def test_smallest_valid_sizes():
    assert Window(0).size == 0
    assert H2O(4, recent=4).recent == 4
    assert H2O(1, recent=0).recent == 0
    assert Sinks(5).sinks == 4
    assert TOVA([3, 2]) == TOVA((3, 2))
    assert hash(TOVA([3, 2])) == hash(TOVA((3, 2)))


FORMS = {
    "full": Full(),
    "window:512": Window(512),
    "window:0": Window(0),
    "sinks:512:4": Sinks(512, 4),
    "sinks:16:1": Sinks(16, sinks=1),
    "h2o:512": H2O(512),
    "h2o-layer:512": H2O(512, per_head=False),
    "tova:512": TOVA(512),
    "tova-head:512": TOVA(512, per_head=True),
}


@pytest.mark.parametrize(("text", "operator"), FORMS.items(), ids=FORMS)
def test_spec_string_round_trip(text, operator):
    assert parse_reduction(text) == operator
    assert str(parse_reduction(text)) == text
    assert parse_reduction(str(operator)) == operator
    assert [H.reduction for H in tiny_cell().initial_state(1, text)] == [operator, operator]


def test_spec_string_with_more_fields_round_trip():
    for operator in (H2O(8, recent=3), H2O(8, recent=0, per_head=False)):
        assert parse_reduction(str(operator)) == operator


BAD = (
    *("", ":5", "nothing:5", "full:3", "window", "tova", "tova:", "tova:x", "tova:-3", "tova:1.5", "tova:1e3", "tova: 3"),
    *("tova:5:6", "tova:512,x", "tova:512,256,0", "tova:٣", "tova:0", "sinks:3", "sinks:4:4", "h2o:4:5"),
)


@pytest.mark.parametrize("text", BAD)
def test_invalid_spec_string_is_refused(text):
    with pytest.raises(msrnn.Error) as refusal:
        parse_reduction(text)
    named = {
        "tova:0": "TOVA: size is 0",
        "tova:-3": "TOVA: size is -3",
        "tova:512,256,0": "TOVA: size is 0",
        "sinks:4:4": "Sinks: sinks is 4",
        "sinks:3": "Sinks: sinks is 4",
        "h2o:4:5": "H2O: recent is 5",
    }
    assert named.get(text, repr(text)) in str(refusal.value)


@pytest.mark.parametrize("thing", [None, 5, ["tova:4"], b"tova:4"])
def test_spec_string_of_another_type_is_refused(thing):
    with pytest.raises(msrnn.Error, match="reduction"):
        parse_reduction(thing)


def test_operators_must_fit_the_cell():
    cell = tiny_cell()
    with pytest.raises(msrnn.Error, match="3 sizes for a cell of 2 layers"):
        cell.initial_state(1, TOVA((3, 4, 5)))
    with pytest.raises(msrnn.Error, match="1 reductions for a cell of 2 layers"):
        cell.initial_state(1, ["tova:4"])
    with pytest.raises(msrnn.Error, match="batch_size is 0"):
        cell.initial_state(0)
