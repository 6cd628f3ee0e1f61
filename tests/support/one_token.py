"""An H with given rows, and the H after one token with given attention weights."""

import torch

from msrnn import MultiState
from msrnn.recurrence.transition import Attended, reduce


def rows_at(positions, operator, numbers=None, K=1):
    """Return an H with these positions in every head; keys equal the position, the clock is one after the newest."""
    positions = torch.tensor(positions)[None, None].repeat(1, K, 1)
    keys = positions[..., None].double()
    return MultiState(keys, -keys, positions, positions.amax((1, 2)) + 1, operator, numbers or {})


def reduced(H, weights):
    """Return H after one token with attention ``weights (K, G, S + 1)``."""
    key = H.clock.double()[:, None, None].repeat(1, H.keys.shape[1], 1)
    return reduce(H.append(key, -key, in_place=False), Attended(torch.tensor(weights).double()[None]), H.clock + 1, None)


def evicted(H, weights):
    """Return the set of positions that leave with the next token."""
    before = {*H.positions.flatten().tolist(), int(H.clock)}
    return before - set(reduced(H, weights).positions.flatten().tolist())
