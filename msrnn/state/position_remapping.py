r"""Where rows stand when they are read: at their positions in the text, or nearer together.

Rotary angles grow with the distance in the text, and past the training length a model has never met them. So keys can be kept
as they were made, and rotated only when they are read, at places counted among the rows that are there: the first row stands at
0, each of the others so far from the one before it as a rule says, the query where its own row stands. ``positions`` stay what
they are; only what is rotated changes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Error
from ..layers.attention import meet
from ..layers.rotary import Rope, rotate
from ..reductions.contract import EMPTY


def _compressed(gap: Tensor) -> Tensor:
    """Gaps above 10 become ln(ln gap), which is not monotone: 10 stays 10, 11 becomes 0.87."""
    return torch.where(gap > 10, gap.log().log(), gap)


KEYS = 2**22
"""Numbers of keys that are turned side by side, for each query by itself: 16 MB in float32."""

ABSOLUTE = "absolute"
RULES: dict[str, Callable[[Tensor], Tensor]] = {"inside": torch.ones_like, "compressed": _compressed}
"""How far apart two neighbours stand whose positions are ``gap (…)`` apart, floating. ``inside``: one, so that a row's place is
how many rows there are before it (StreamingLLM, arXiv:2309.17453, sec. 3.2). ``compressed``: the extrapolation of
arXiv:2401.06104."""


@dataclass(frozen=True)
class Places:
    """A rule, one of ``RULES``, and the model's rope. (What stands at its position was rotated when it came, by the cell.)"""

    rule: str
    rope: Rope

    def __post_init__(self) -> None:
        if not isinstance(self.rule, str) or self.rule not in RULES:
            raise Error(f"places are {self.rule!r:.60}; expected one of {', '.join([ABSOLUTE, *RULES])}")

    @staticmethod
    def named(rule: str, rope: Rope | None) -> "Places | None":
        """Those of a rule; None of "absolute".

        Raises:
            Error: an unknown rule, or no rope to apply it to.
        """
        if isinstance(rule, str) and rule == ABSOLUTE:
            return None
        if rope is None:
            raise Error(f"places are {rule!r:.60}; this cell rotates nothing, expected {ABSOLUTE!r}")
        return Places(rule, rope)

    def of(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, K, R)`` int64 -> the places, in ``dtype``; whatever on rows that no token left."""
        ordered, order = positions.sort(dim=-1)
        gap = (ordered[..., 1:] - ordered[..., :-1]).to(dtype)
        step = RULES[self.rule](gap).masked_fill(ordered[..., :-1] < 0, 0)
        place = torch.cat((gap.new_zeros(*gap.shape[:-1], 1), step.cumsum(-1)), dim=-1)
        return place.scatter(-1, order, place)

    def turned(self, q: Tensor, keys: Tensor, positions: Tensor, pinned: int = 0) -> tuple[Tensor, Tensor]:
        """A query and the rows that it sees, its own last, as they meet.

        Args:
            q: ``(B, N, D)``; keys: ``(B, K, R, D)``; not rotated.
            positions: ``(B, K, R)`` int64.
            pinned: how many rows are learned, the first ones: these stand nowhere.

        Returns:
            Both, rotated at their places.
        """
        K, D = keys.shape[1], keys.shape[3]
        if positions.device.type == "cpu" and not torch.compiler.is_compiling() and bool((positions == positions[:, :1]).all()):
            positions = positions[:, :1]  # all heads hold the same
        place = self.of(positions, torch.promote_types(keys.dtype, torch.float32))
        cos, sin = self.rope.rotation(place, D, keys.dtype)  # (B, 1 or K, R, 1, D)
        met = rotate(keys.unsqueeze(-2), (cos, sin)).squeeze(-2)
        if pinned:
            met = torch.cat((keys[:, :, :pinned], met[:, :, pinned:]), dim=2)
        return rotate(q.unflatten(1, (K, -1)), (cos[:, :, -1], sin[:, :, -1])).flatten(1, 2), met

    def logits(self, q: Tensor, keys: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        """T queries at once and all rows that any of them sees, given who sees which; the last T rows are their own.

        Only distances matter to a rope that is ``relative``. Most are those in the text, and take one product; the few rows
        that stand elsewhere than there, such as sinks, are turned for each query by itself. Waits for the device.

        Args:
            q: ``(B, K, G, T, D)``; keys: ``(B, K, R, D)``; not rotated.
            positions: ``(B, K, R)`` int64; hidden: ``(B, 1 or K, T, R)`` bool.

        Returns:
            ``(B, K, G, T, R)`` in at least float32; of hidden rows whatever.
        """
        (T, D), R = q.shape[3:], keys.shape[2]
        if hidden.shape[1] == 1 and bool((positions == positions[:, :1]).all()):
            positions = positions[:, :1]  # all heads hold the same
        wide = torch.promote_types(keys.dtype, torch.float32)
        text = positions - positions[..., -T:].amax(-1, keepdim=True)  # near 0, where angles are sharp
        cos, sin = self.rope.rotation(text, D, keys.dtype)  # (B, K, R, 1, D)
        met = rotate(keys.unsqueeze(-2), (cos, sin)).squeeze(-2)
        turned = rotate(q, (cos[:, :, None, -T:, 0], sin[:, :, None, -T:, 0]))
        logits = meet(turned.flatten(2, 3), met).unflatten(2, q.shape[2:4])
        place = self.of(positions[:, :, None].masked_fill(hidden, EMPTY), wide)  # (B, K, T, R)
        apart = place.diagonal(R - T, -2, -1)[..., None] - place
        moved = ((apart - (text[:, :, -T:, None] - text[:, :, None])).abs() > 0.01) & ~hidden
        some = moved.flatten(0, 2).any(0).nonzero()[:, 0]  # (M,)
        zero = self.rope.rotation(positions.new_zeros(()), D, keys.dtype)  # what gain there is
        queries = rotate(q, zero).transpose(2, 3)  # (B, K, T, G, D)
        for few in some.split(max(1, KEYS * R // (keys.numel() * T))) if len(some) else ():
            own = self.rope.rotation(-apart[..., few], D, keys.dtype)  # (B, 1 or K, T, M, 1, D)
            close = rotate(keys[:, :, None, few, None], own).squeeze(-2)  # (B, K, T, M, D)
            logits[..., few] = meet(queries, close).transpose(2, 3)
        return logits
