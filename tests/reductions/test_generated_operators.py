"""A thousand operators that a user could write: the many-token path equals the step loop, or the class is refused."""

from random import Random

import pytest
import torch
from support.generated_operators import generate
from support.tiny_models import random_tokens, step_loop, tiny_cell

import msrnn

CASES, PART = 1000, 100
CELLS = {layers: tiny_cell(seed=layers, n_layers=layers, width=12, n_kv_heads=2, head_dim=4, ffn_width=8) for layers in (1, 2)}


def rows(H):
    """The tensors of one layer in order of position, 0 where a row is empty."""
    H = H.sorted_by_position()
    empty = H.positions == -1
    return {name: x.masked_fill(empty.view(*empty.shape, *(1,) * (x.ndim - 3)), 0) for name, x in H.rows.items()}


def difference(found, expected):
    """What differs between two results (logits, state), or nothing."""
    for layer, (G, H) in enumerate(zip(found[1], expected[1], strict=True)):
        one, other = rows(G), rows(H)
        for name in one:
            if one[name].shape != other[name].shape or not torch.allclose(one[name], other[name], 1e-8, 1e-8, equal_nan=True):
                return f"{name} of layer {layer}"
    if not torch.allclose(found[0], expected[0], 0, 1e-8, equal_nan=True):
        return "logits"
    return ""


def result(call):
    """The value of ``call``, or the sentence with which it is refused."""
    try:
        return call()
    except msrnn.Error as refusal:
        return str(refusal)


def outcome(seed, folder):
    """``equal``, ``refused``, or what differs."""
    random, (operator, text) = Random(f"case {seed}"), generate(seed)
    cell, T = CELLS[random.choice((1, 1, 2))], random.randint(16, 26)
    ids, lengths = random_tokens(seed, 2, T), torch.tensor([T, random.randint(3, T)])
    cut = random.randint(1, T - 1)

    def start(B=2):
        return cell.initial_state(B, operator)

    def split():
        first, state = cell(ids[:, :cut], start(), lengths=lengths.clamp(max=cut))
        if seed % 3 == 0:
            state.save(folder / f"{seed}")
            state = msrnn.load_state(folder / f"{seed}")
        path = step_loop if seed % 2 else lambda cell, text, state, n: cell(text, state, lengths=n)
        rest, state = path(cell, ids[:, cut:], state, (lengths - cut).clamp(min=0))
        return torch.cat((first, rest), 1), state

    def scan():
        logits, trace = cell.scan(ids, start(), lengths=lengths)
        return logits, trace.at(T)

    expected = result(lambda: step_loop(cell, ids, start(), lengths))
    end = int(lengths[1])
    paths = {
        "cell(tokens)": lambda: cell(ids, start(), lengths=lengths),
        "two calls": split,
        "one text": lambda: cell(ids[1:, :end], start(1)),
        "scan": scan,
    }
    if not seed % 4:
        del paths["scan"]
    for path, call in paths.items():
        found = result(call)
        if isinstance(found, str) or isinstance(expected, str):
            if isinstance(found, str) and isinstance(expected, str):
                continue
            if path == "one text" and end <= operator.size:  # too short to evict a row
                continue
            return f"{seed}, {path}: {found if isinstance(found, str) else 'no refusal'}; step loop: {expected!r:.100}; {text}"
        other = (expected[0][1:, :end], expected[1].select([1])) if path == "one text" else expected
        if what := difference(found, other):
            return f"{seed}, {path}: {what} differ; {text}"
    if isinstance(expected, str) and ("expected" not in expected or len(expected.splitlines()) > 1):
        return f"{seed}: {expected!r} is no refusal in one sentence; {text}"
    return "refused" if isinstance(expected, str) else "equal"


@pytest.mark.parametrize("part", range(CASES // PART))
def test_generated_operator_is_exact_or_refused(part, tmp_path, figure):
    outcomes = [outcome(seed, tmp_path) for seed in range(part * PART, (part + 1) * PART)]
    wrong = [x for x in outcomes if x not in ("equal", "refused")]
    assert not wrong, "\n".join(wrong)
    figure(f"generated operators {part * PART}+: {outcomes.count('equal')} equal, {outcomes.count('refused')} refused")
