"""Calls that a split cell refuses, on every rank, before anything is computed or written."""

from pathlib import Path

import pytest
import torch
from support.rank_groups import run_ranks
from support.split_cells import refusal, text
from support.tiny_families import tiny_family

import msrnn
from msrnn.calibration.calibrate import calibrate
from msrnn.distributed.ranks import TRAFFIC
from msrnn.interop.dynamic_cache import cache_from_state

FILE = Path(__file__)
REFUSED = {
    "a text": "rank 1 has another text than rank 0",
    "an id outside the vocabulary": "rank 1 has another text than rank 0",
    "lengths": "rank 1 has another text than rank 0",
    "a prompt": "rank 1 has another text than rank 0",
    "an operator": "rank 1 has another initial state than rank 0",
    "a batch size": "rank 1 has another initial state than rank 0",
    "places": "rank 1 has another initial state than rank 0",
    "a state after more tokens": "rank 1 has another state than rank 0",
    "a trainable model": "rank 1 has another model than rank 0",
    "scores for all heads": "rank 1 has another score of layer 0 for all heads than rank 0",
}
"""Messages for arguments that are others on rank 1."""
WHOLE = {
    "calibrate": "the cell is split over 2 ranks; expected a whole cell",
    "cache_from_state": "expected all heads",
}
"""Messages of functions that need all heads."""


def call_with_others(rank, folder):
    split, tokens = msrnn.distribute(tiny_family("llama", n_layers=1, vocab_size=51)), text(51)
    _, state = split(tokens, split.initial_state(2, "tova:6"), last_only=True)
    _, later = split.step(tokens[:, 0], state)
    calls = {
        "a text": lambda: split(text(51, seed=rank)),
        "an id outside the vocabulary": lambda: split(tokens + 51 * rank),
        "lengths": lambda: split.scan(tokens, lengths=torch.tensor([3, 4 + rank])),
        "a prompt": lambda: msrnn.generate(split, text(51, seed=rank), max_new_tokens=1),
        "an operator": lambda: split.initial_state(2, ("tova:6", "window:6")[rank]),
        "a batch size": lambda: split.initial_state(1 + rank),
        "places": lambda: split.initial_state(2, "sinks:6:2", places=("absolute", "inside")[rank]),
        "a state after more tokens": lambda: (state, later)[rank].save(folder / "state"),
        "scores for all heads": lambda: msrnn.compact(state, 3, lambda _, H: H.values.sum(-1).mean(1, keepdim=True)),
        "a trainable model": lambda: msrnn.distribute(tiny_family("llama", seed=rank, frozen=False, n_layers=1)),
    }
    calls |= {
        "calibrate": lambda: calibrate(split, [tokens[0]], "q-filters"),
        "cache_from_state": lambda: cache_from_state(split, state),
    }
    found = {name: refusal(call) for name, call in calls.items()}
    by_position = msrnn.compact(state, 3, lambda _, H: H.positions[:, :1])
    assert all(H.positions.equal(G.positions.sort().values[..., -3:]) for H, G in zip(by_position, state, strict=True))
    written, works = (folder / "state").exists(), bool(split(tokens, state)[0].isfinite().all())
    TRAFFIC.reset()
    for save in (split.save, state.save):
        assert "cannot write" in refusal(lambda save=save: save(FILE / "x"))
    return found, written, works, TRAFFIC.payload["saving"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_ranks(2, call_with_others, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("name", "message"), [*REFUSED.items(), *WHOLE.items()])
def test_the_call_is_refused_on_every_rank(found, name, message):
    for messages, *_ in found:
        assert message in messages[name]


def test_nothing_is_written_and_later_calls_work(found):
    assert [of_rank[1:3] for of_rank in found] == [(False, True)] * 2


def test_nothing_is_sent_to_a_path_that_cannot_be_written(found):
    assert [of_rank[3] for of_rank in found] == [0, 0]
