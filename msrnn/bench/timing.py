"""Interleaved timing of several implementations, so that temporary load affects all of them."""

import time
from collections.abc import Callable, Mapping

import torch

Contenders = Mapping[str, Callable[[], object]]


def seconds(contenders: Contenders, rounds: int, device: torch.device, tick: Callable[[], object]) -> dict[str, list[float]]:
    """Return the seconds of every contender in every round. Every second round runs the contenders in reverse order.

    Args:
        contenders: functions to time, by name.
        rounds: number of rounds.
        device: the device of the functions; a GPU is synchronised before and after each call.
        tick: called after each call.
    """
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for n in range(rounds):
        for name, function in list(contenders.items())[:: -1 if n % 2 else 1]:
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            spent[name].append(time.perf_counter() - start)
            tick()
    return spent


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
