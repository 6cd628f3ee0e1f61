r"""Keys and values of 8 bits: a quarter of the bytes of float32 rows.

A row is quantised once, when it enters H. The D numbers of one key/value head share the scale $s = \max_d |x_d| / 127$, and
$x_d$ is stored as a code, the nearest integer to $x_d / s$. Attention and operators use s times the code, also for the query of
the row's own token, in the step and in the many-token path. Eviction, branching and saving copy codes, and round nothing.
Scales are float32 for cells of every dtype.
"""

import torch
from torch import Tensor

from ..errors import Error, check_dtype
from ..layers.differentiation import has_derivative

QUANTISED_DTYPE = torch.int8
"""Dtype of the keys and values of 8-bit rows."""
MAX_CODE = 127
"""Maximum absolute value of a code."""
SCALES = {"keys": "key_scales", "values": "value_scales"}
"""Names of the scales of keys and of values."""


def parse_row_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a dtype of keys and values: ``torch.int8``, also for the text "int8", a floating-point dtype, or None.

    Raises:
        Error: another value.
    """
    if isinstance(dtype, torch.dtype | str) and dtype in (QUANTISED_DTYPE, "int8"):
        return QUANTISED_DTYPE
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise Error(f"dtype is {dtype!r:.60}; expected a floating-point torch.dtype, or torch.int8 for 8-bit rows")
    check_dtype(dtype)
    return dtype


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows ``(…, D)``.

    Returns:
        Codes from −127 to 127, ``(…, D)`` in the dtype of ``x`` or float32, and scales ``(…, 1)`` float32, above 0. The
        scale of a row that is not finite is not finite.

    Raises:
        Error: derivatives with respect to ``x`` may be computed. Rounding has none.
    """
    if has_derivative(x):
        raise Error(
            "8-bit rows have no gradient, and the keys or values of this cell need one; expected torch.no_grad(), frozen "
            "parameters (cell.requires_grad_(False)), or a state in a floating-point dtype"
        )
    wide = x if x.dtype == torch.float64 else x.float()
    scale = (torch.linalg.vector_norm(wide, torch.inf, dim=-1, keepdim=True) / MAX_CODE).float()
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    return (wide / scale).round(), scale


def dequantise_rows(x: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return rows ``(…, D)`` as numbers, rounded once to ``dtype``; ``x`` itself without ``scales (…)``."""
    if scales is None:
        return x
    wide = torch.promote_types(dtype, torch.float32)  # float16 has no numbers for small scales
    return (x.to(wide) * scales[..., None].to(wide)).to(dtype)


def encode_rows(keys: Tensor, values: Tensor, quantised: bool) -> dict[str, Tensor]:
    """Return keys and values ``(…, D)`` as H stores them, by name, with scales ``(…)`` if ``quantised``."""
    if not quantised:
        return {"keys": keys, "values": values}
    codes, scales = quantise_rows(torch.stack((keys, values)))
    stored = dict(zip(SCALES, codes.to(QUANTISED_DTYPE), strict=True))
    return {**stored, **dict(zip(SCALES.values(), scales.squeeze(-1), strict=True))}


def replace_values(stored: dict[str, Tensor], before: Tensor, merged: Tensor) -> dict[str, Tensor]:
    """Return the stored values after a merge, with scales; rows that the merge does not change keep their codes.

    Args:
        stored: ``values (…, D)`` int8 and ``value_scales (…)``.
        before, merged: the values before and after the merge, ``(…, D)`` floating-point.
    """
    codes, scales = quantise_rows(merged)
    changed = (merged != before).any(-1)
    values = torch.where(changed[..., None], codes.to(QUANTISED_DTYPE), stored["values"])
    return {"values": values, "value_scales": torch.where(changed, scales[..., 0], stored["value_scales"])}
