"""Times of several ways to do a thing, taken in turn: what disturbs the machine for a while disturbs them all."""

import time
from collections.abc import Callable, Mapping

import torch

Ways = Mapping[str, Callable[[], object]]


def seconds(ways: Ways, rounds: int, device: torch.device, tick: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of every way in every round. Each round takes all ways in turn, every other one backwards.

    Args:
        ways: by name.
        rounds: how many.
        device: where they compute; a GPU is waited for.
        tick: called after each.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(rounds):
        for name, way in list(ways.items())[:: -1 if n % 2 else 1]:
            wait(device)
            start = time.perf_counter()
            way()
            wait(device)
            spent[name].append(time.perf_counter() - start)
            tick()
    return spent


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
