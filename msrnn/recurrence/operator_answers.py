"""Checks of the tensors that the methods of an operator return."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import Error
from ..reductions.contract import Observation, Reduction
from ..reductions.head_budgets import scoring_operator

DEVICES_WITHOUT_FLOAT64 = ("mps",)


def _checked_tensor(returns: str, name: str, x: object, device: torch.device) -> Tensor:
    """Return the tensor ``x``.

    Raises:
        Error: it is no dense real tensor on ``device``, that of the rows.
    """
    if not isinstance(x, Tensor) or x.is_complex():
        found = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise Error(f"{returns} {found}{name}; expected a real tensor")
    if x.layout != torch.strided or x.device != device:
        raise Error(f"{returns} a {x.layout} tensor on {x.device}{name}; expected a dense tensor on {device}")
    return x


def checked_stats(operator: Reduction, observation: Observation, answer: object) -> dict[str, Tensor]:
    """Return the statistics that ``update`` returned, in the dtype of the weights.

    Raises:
        Error: they are no dict of tensors with the names and shapes of those in the observation.
    """
    kind, dtype = type(scoring_operator(operator)).__name__, observation.weights.dtype
    if not isinstance(answer, Mapping):
        raise Error(f"{kind}.update returns {type(answer).__name__}; expected a dict of tensors")
    expected = {name: tuple(x.shape) for name, x in observation.row_stats.items()}
    for name, x in answer.items():
        _checked_tensor(f"{kind}.update returns", f" as {name!r:.60}", x, observation.positions.device)
    if (found_shapes := {name: tuple(x.shape) for name, x in answer.items()}) != expected:
        raise Error(f"{kind}.update returns {found_shapes}; expected {expected}")
    return {name: answer[name].detach().to(dtype) for name in expected}


def checked_score(operator: Reduction, observation: Observation, score: object) -> Tensor:
    """Return the scores ``(B, 1 or K, R)`` that ``score`` returned, in at least float32, with −inf in place of NaN.

    Raises:
        Error: they are no real tensor of this shape.
    """
    kind, shape = type(scoring_operator(operator)).__name__, tuple(observation.positions.shape)
    score = _checked_tensor(f"{kind}.score returns", "", score, observation.positions.device)
    if tuple(score.shape) not in (shape, (shape[0], 1, shape[2])):
        raise Error(f"{kind}.score returns shape {tuple(score.shape)}; expected {shape} or {(shape[0], 1, shape[2])}")
    # infinities have to be representable, integers exact
    narrow = score.is_floating_point() and score.dtype != torch.float64
    wide = torch.float32 if narrow else widest_float(score.device)
    return score.detach().to(wide).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device without it, where integer scores are exact up to 2^24."""
    return torch.float32 if device.type in DEVICES_WITHOUT_FLOAT64 else torch.float64


def checked_values(operator: Reduction, values: Tensor, answer: object) -> Tensor:
    """Return the values ``(B, K, R, D)`` that ``merge`` returned, in the dtype of ``values``.

    Raises:
        Error: they are no real tensor of this shape.
    """
    kind = type(operator).__name__
    answer = _checked_tensor(f"{kind}.merge returns", "", answer, values.device)
    if answer.shape != values.shape:
        raise Error(f"{kind}.merge returns shape {tuple(answer.shape)}; expected {tuple(values.shape)}")
    return answer.to(values.dtype)
