"""Random operator classes: a grammar over weights, keys, positions, clock, statistics, columns, base classes and bad habits.

``generate(seed)`` gives an operator and a line that describes it. Entries of the batch do not affect each other and the flags
are true, because the contract requires both. Everything else is allowed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch

import msrnn
from msrnn import Observation, Reduction

Term = tuple[str, Callable[[Observation], torch.Tensor]]
MAX = torch.finfo(torch.float64).max


def age(o: Observation) -> torch.Tensor:
    return (o.clock[:, None, None] - o.positions).double()


BY_ROW: list[Term] = [
    ("mean weight", lambda o: o.weights.mean(2)),
    ("largest weight", lambda o: o.weights.amax(2)),
    ("weight of the first query head", lambda o: o.weights[:, :, 0]),
    ("log weight", lambda o: (o.weights + 1e-9).log().mean(2)),
    ("weight above 0.2", lambda o: (o.weights.mean(2) > 0.2).double()),
    ("position", lambda o: o.positions.double()),
    ("position modulo 3", lambda o: (o.positions % 3).double()),
    ("age", age),
    ("recent", lambda o: (age(o) < 3).double()),
    ("clock modulo 4", lambda o: (o.clock % 4)[:, None, None].double().expand_as(o.positions)),
    ("weight at even clocks", lambda o: o.weights.mean(2) * (o.clock % 2)[:, None, None]),
]
BY_KEY: list[Term] = [
    ("key channel", lambda o: o.keys[..., 0]),
    ("key sum", lambda o: o.keys.sum(-1)),
    ("weighted key", lambda o: o.keys.abs().amax(-1) * o.weights.mean(2)),
]
BY_FIELD: list[Term] = [
    ("value channel", lambda o: o.values[..., 0]),
    ("distance to the output", lambda o: (o.values[:, :, None] - o.output[..., None, :]).square().sum(-1).mean(2)),
    ("query channel at even positions", lambda o: o.queries.mean(2)[..., :1] * (o.positions % 2 == 0)),
    ("layer input at own row", lambda o: o.x[:, None, None, 0] * (o.positions == o.clock[:, None, None])),
]
BY_COLUMN: list[Term] = [
    ("weight of the column in all heads", lambda o: o.weights.mean((1, 2))[:, None].expand_as(o.positions)),
    ("one R-th", lambda o: torch.full_like(o.weights[:, :, 0], 1 / o.weights.shape[-1])),
    ("above one R-th", lambda o: (o.weights.mean(2) > 1 / o.positions.shape[-1]).double()),
    ("cumulative weight", lambda o: o.weights.mean(2).cumsum(-1)),
    ("weight of the next column", lambda o: o.weights.mean(2).roll(1, -1)),
    ("weight minus mean", lambda o: o.weights.mean(2) - o.weights.mean((2, 3))[..., None]),
    ("softmax", lambda o: (3 * o.weights.mean(2)).softmax(-1)),
    ("column", lambda o: torch.arange(o.positions.shape[-1]).double().expand_as(o.positions)),
    (
        "current column",
        lambda o: torch.nn.functional.one_hot(torch.tensor(o.positions.shape[-1] - 1)).double().expand_as(o.positions),
    ),
    ("rank of the weight", lambda o: o.weights.mean(2).argsort(-1).argsort(-1).double()),
    ("gap to the older neighbour", lambda o: o.positions.diff(dim=-1, prepend=o.positions[..., :1]).double()),
    ("oldest weight", lambda o: o.weights.mean(2)[..., :1].expand_as(o.positions)),
    ("norm of the difference to the newest key", lambda o: (o.keys - o.keys[:, :, -1:]).abs().sum(-1)),
    ("distance to the mean key", lambda o: (o.keys - o.keys.mean(2, keepdim=True)).square().sum(-1)),
]
BASES = [
    *[(Reduction, {})] * 8,
    (msrnn.TOVA, {}),
    (msrnn.H2O, {}),
    (msrnn.H2O, {"per_head": False}),
    (msrnn.Window, {}),
    (msrnn.Sinks, {"sinks": 1}),
    (msrnn.Random, {}),
    (msrnn.KeyDiff, {}),
    (msrnn.LastQueries, {"window": 2}),
    (msrnn.Scissorhands, {"recent": 1, "history": 30}),
    (msrnn.Keyformer, {"recent": 1}),
    (msrnn.CaM, {"sinks": 1, "merge_window": 2}),
]
FINISH: list[tuple[str, Callable]] = [
    *[("", lambda score, o: score)] * 8,
    ("current protected", lambda score, o: torch.cat((score[..., :-1], torch.full_like(score[..., -1:], math.inf)), -1)),
    ("recent protected", lambda score, o: score.masked_fill(age(o) < 3, math.inf)),
    ("recent protected in place", lambda score, o: score.masked_fill_(age(o) < 3, math.inf)),
    ("current protected in place", lambda score, o: score.index_fill_(-1, torch.tensor(score.shape[-1] - 1), math.inf)),
    ("NaN", lambda score, o: score.masked_fill(o.positions % 5 == 2, math.nan)),
    ("all NaN at times", lambda score, o: score.masked_fill((o.clock % 3 == 0)[:, None, None], math.nan)),
    ("-inf", lambda score, o: score.masked_fill(o.positions % 5 == 1, -math.inf)),
    ("+inf", lambda score, o: score.masked_fill(o.positions % 2 == 1, math.inf)),
    ("all +inf", lambda score, o: torch.full_like(score, math.inf)),
    ("max and +inf", lambda score, o: torch.where(o.positions % 2 == 1, math.inf, torch.full_like(score, MAX))),
    ("zero divided by zero", lambda score, o: (score - score) / (o.positions % 3).to(score.dtype)),
    ("float32", lambda score, o: score.float()),
    ("bfloat16", lambda score, o: (o.positions % 7).bfloat16() + 0 * score.bfloat16()),
    ("int", lambda score, o: (10 * score).clamp(-1e6, 1e6).round().long()),
    ("bool", lambda score, o: score > 0.3),
    ("constant", lambda score, o: torch.zeros_like(score)),
    ("layer", lambda score, o: score.mean(1, keepdim=True)),
    ("layer of the first head", lambda score, o: score[:, :1]),
    ("weights in place", lambda score, o: o.weights.mul_(0.5).mean(2)),
    ("positions in place", lambda score, o: score + o.positions.remainder_(4)),
    ("received weights", lambda score, o: o.weights[:, :, 0]),
]
WRONG: list[tuple[str, Callable]] = [
    ("None", lambda score, o: None),
    ("float", lambda score, o: 0.5),
    ("list", lambda score, o: score.tolist()),
    ("complex", lambda score, o: score + 1j),
    ("two dimensions", lambda score, o: score.mean(1)),
    ("too few columns", lambda score, o: score[..., 1:]),
]
MERGES: list[tuple[str, Callable]] = [
    ("values faded", lambda o, values, row: 0.9 * values),
    ("values faded in place", lambda o, values, row: values.mul_(0.9)),
    ("evicted value to the newest row", lambda o, values, row: _to_newest(values, row)),
    ("values unchanged", lambda o, values, row: values),
]


def _to_newest(values: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    share = values.gather(2, row[..., None, None].expand(-1, -1, 1, values.shape[3])) / 4
    return torch.cat((values[:, :, :-1], values[:, :, -1:] + share), 2)


def _sum(random: Random, terms: list[Term]) -> Term:
    """A weighted sum of one to three terms."""
    chosen = [(random.choice(terms), random.choice((-1.0, -0.3, 0.5, 1.0, 2.0))) for _ in range(random.choice((1, 2, 2, 3)))]
    text = " + ".join(f"{factor} {name}" for (name, _), factor in chosen)
    return text, lambda o: sum(factor * term(o) for (_, term), factor in chosen)


RULES: dict[str, Callable] = {
    "decay": lambda old, new: 0.8 * old + new,
    "maximum": torch.maximum,
    "sum": torch.add,
    "replace": lambda old, new: new,
    "in place": lambda old, new: old.mul_(0.9).add_(new),
    "bonus": lambda old, new: torch.cat((old[..., :-1] * 0.9 + new[..., :-1], torch.ones_like(new[..., -1:])), -1),
}


def _update(
    random: Random, names: tuple[str, ...], sizes: dict[str, int], terms: list[Term], by_column: bool
) -> tuple[str, Callable]:
    """An update of each statistic from its value before and a sum of terms."""
    rules = {}
    for name in names:
        kind = random.choice(list(RULES) if by_column else list(RULES)[:4])
        rules[name] = (kind, *_sum(random, terms))

    def update(self, observation):
        stats = {}
        for name, (kind, _, term) in rules.items():
            old, new = observation.row_stats[name], term(observation)
            if name in sizes:  # one value per query, in turn
                turn = (observation.clock % sizes[name])[:, None, None, None] == torch.arange(sizes[name])
                stats[name] = torch.where(turn, new[..., None], old)
            else:
                stats[name] = RULES[kind](old, new.to(old.dtype))
        return stats

    return "; ".join(f"{name}: {kind} of {text}" for name, (kind, text, _) in rules.items()), update


def generate(seed: int) -> tuple[Reduction, str]:
    """The operator with this number, and its description."""
    random = Random(seed)
    base, settings = random.choice(BASES)
    by_row_only = random.random() < 0.2  # such a class may declare that it does not depend on the layout
    keys = random.random() < 0.25
    reads_fields = Random(f"fields {seed}").random() < 0.2
    terms = (
        BY_ROW
        + (BY_KEY if keys else [])
        + (BY_FIELD if reads_fields else [])
        + ([] if by_row_only else BY_COLUMN if keys else BY_COLUMN[:-2])
    )
    body: dict = {}
    text = [base.__name__]
    names: tuple[str, ...] = tuple(getattr(base, "stat_names", ()))
    if base is Reduction and random.random() < 0.5:
        names = ("a", "b")[: random.choice((1, 1, 2))]
        sizes = {"b": 3} if "b" in names and random.random() < 0.5 else {}
        body["stat_names"], body["stat_shape"] = names, lambda self, name: (sizes[name],) if name in sizes else ()
        rule, body["update"] = _update(random, names, sizes, terms, not by_row_only)
        text.append(rule)
    elif names and base in (msrnn.H2O, msrnn.Keyformer) and random.random() < 0.5:
        rule, body["update"] = _update(random, names, {}, terms, not by_row_only)
        text.append(rule)
    rule, term = _sum(random, terms)
    finish, end = random.choice(WRONG) if random.random() < 0.05 else random.choice(FINISH)
    stats = body.get("stat_names", names if "update" in body else ())

    def score(self, observation):
        total = term(observation)
        for name in stats:
            x = observation.row_stats[name]
            total = total + (x if x.ndim == 3 else x.sum(-1))
        if finish.endswith("in place") and len(stats) == 1 and observation.row_stats[stats[0]].ndim == 3:
            total = observation.row_stats[stats[0]]  # the received tensor itself
        return end(total, observation)

    if base is Reduction or "update" not in body or random.random() < 0.5:
        body["score"] = score
        text.append(f"score {rule}, {finish}")
    if keys and (base is not Reduction or random.random() < 0.9):
        body["needs_keys"] = True  # otherwise the class forgets it
    if reads_fields and (base is not Reduction or seed % 10):
        body |= dict.fromkeys(("needs_values", "needs_output", "needs_queries", "needs_input"), True)
    if random.random() < 0.12:
        merge, change = random.choice(MERGES)
        body["merge"] = lambda self, observation, values, row: change(observation, values, row)
        text.append(merge)
    if by_row_only and "place" not in finish and "layer" not in finish and "current" not in finish and random.random() < 0.5:
        body["depends_on_row_layout"] = False
        text.append("layout-free")
        if "weight" not in " ".join(text).lower() and base is Reduction and not reads_fields and "merge" not in body:
            body["needs_weights"] = False
    if "rank of the weight" in " ".join(text) and finish == "layer":
        body["tie_tolerance"] = 1e-12  # sums of ranks over heads are equal often, and differ by rounding in other paths
    body["__module__"] = __name__
    kind = dataclass(frozen=True)(type(f"Generated{seed}", (base,), body))
    least = 4 if base in (msrnn.LastQueries, msrnn.Scissorhands, msrnn.Sinks, msrnn.CaM) else 1
    size = random.randint(least, 7)
    return kind(size, **settings), f"size {size}: " + " | ".join(text)
