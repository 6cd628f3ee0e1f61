"""A program of a user, for type checkers: ``tests/support/check_dist.py`` runs mypy on it against the installed wheel."""

from dataclasses import dataclass

import torch
from torch import Tensor

import converters
import msrnn


@dataclass(frozen=True)
class Oldest(msrnn.Reduction):
    """An operator that evicts the oldest row."""

    size: int

    def score(self, observation: msrnn.Observation) -> Tensor:
        return observation.positions.float()


def continue_text(source: str, text: str) -> str:
    cell: msrnn.Cell = converters.load(source, dtype=torch.float32)
    tokenizer = converters.tokenizer(source)
    ids: list[int] = tokenizer.encode(text).ids
    state: msrnn.State = cell.initial_state(1, msrnn.TOVA(64))
    logits, state = cell(torch.tensor([ids]), state)
    token: Tensor = logits[:, -1].argmax(-1)
    logits, state = cell.step(token, state)
    generated = msrnn.generate(cell, state=state, logits=logits, max_new_tokens=4)
    new: list[int] = generated.tokens[0].tolist()
    return str(tokenizer.decode(new))


def rows_of(state: msrnn.State) -> dict[int, tuple[int, ...]]:
    first: msrnn.MultiState = state[0]
    assert first.keys.shape == first.values.shape
    return {layer: tuple(H.positions.shape) for layer, H in enumerate(state)}


def operators() -> list[msrnn.Reduction]:
    return [Oldest(8), msrnn.Window(8), msrnn.parse_reduction("h2o:8"), msrnn.Sinks(8, sinks=2)]


def refused(source: str) -> str | None:
    try:
        converters.convert(source, "target", to="hf")
    except msrnn.Error as error:
        return str(error)
    return None
