r"""Positions of rows at attention time: those of the text, or remapped to smaller distances.

Rotary angles grow with the distance in the text, and a model is not trained on distances beyond its training length. With a
position remapping, keys are stored unrotated and are rotated at remapped positions for every token. The oldest cached row gets
position 0, and each following row the previous position plus a gap given by the rule. The query gets the position of its own
row. The stored ``positions`` do not change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Error
from ..layers.attention import SCALED_PRODUCT, LogitRule, attention_logits
from ..layers.differentiation import is_readable
from ..layers.rotary import Rope, apply_rotary
from ..reductions.contract import EMPTY

MAX_KEY_ELEMENTS = 2**22
"""Maximum number of key elements that are rotated for single queries at once: 16 MB in float32."""


def _compressed(gap: Tensor) -> Tensor:
    """Shorten gaps above 10 to ln(ln gap). This is not monotone: 10 stays 10, and 11 becomes 0.87."""
    return torch.where(gap > 10, gap.log().log(), gap)


ABSOLUTE = "absolute"
RULES: dict[str, Callable[[Tensor], Tensor]] = {"inside": torch.ones_like, "compressed": _compressed}
"""The remapped gap of two neighbouring rows at positions ``gap (…)`` apart, floating-point. ``inside``: 1, so that the
remapped position is the index in the cache (StreamingLLM, arXiv:2309.17453, sec. 3.2). ``compressed``: the extrapolation of
arXiv:2401.06104."""


@dataclass(frozen=True)
class PositionRemapping:
    """A rule, one of ``RULES``, and the rotary embedding of a layer. "absolute" is not a remapping: it is None.

    ``rope`` is None in a layer without positions (SmolLM3), where nothing is rotated.
    """

    rule: str
    rope: Rope | None

    def __post_init__(self) -> None:
        if not isinstance(self.rule, str) or self.rule not in RULES:
            raise Error(f"places are {self.rule!r:.60}; expected one of {', '.join([ABSOLUTE, *RULES])}")

    @staticmethod
    def per_layer(rule: str, ropes: Sequence[Rope | None]) -> "list[PositionRemapping | None]":
        """Return the remapping of a rule in each layer; None everywhere for "absolute".

        Args:
            rule: one of ``RULES``, or "absolute".
            ropes: the rotary embedding of each layer; None for a layer without one.

        Raises:
            Error: an unknown rule, or a rule for a cell without rotary positions.
        """
        if isinstance(rule, str) and rule == ABSOLUTE:
            return [None] * len(ropes)
        if not any(ropes):
            raise Error(f"places are {rule!r:.60}; expected {ABSOLUTE!r}, because this cell has no rotary positions")
        return [PositionRemapping(rule, rope) for rope in ropes]

    @property
    def is_relative(self) -> bool:
        """True if attention depends on the distances of remapped positions only."""
        return self.rope is None or self.rope.relative

    def remapped_positions(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Map ``positions (B, K, R)`` int64 to remapped positions in ``dtype``; undefined for empty and learned rows."""
        ordered, order = positions.sort(dim=-1)
        gap = (ordered[..., 1:] - ordered[..., :-1]).to(dtype)
        gap = RULES[self.rule](gap).masked_fill(ordered[..., :-1] < 0, 0)
        remapped = torch.cat((gap.new_zeros(*gap.shape[:-1], 1), gap.cumsum(-1)), dim=-1)
        return remapped.scatter(-1, order, remapped)

    def rotate(self, q: Tensor, keys: Tensor, positions: Tensor, n_learned: int = 0) -> tuple[Tensor, Tensor]:
        """Rotate one query and the rows that it attends to, its own row last, at remapped positions.

        Args:
            q: ``(B, N, D)``; keys: ``(B, K, R, D)``; not rotated.
            positions: ``(B, K, R)`` int64.
            n_learned: number of learned rows, the first ones. They are not rotated.

        Returns:
            Query ``(B, N, D)`` and keys ``(B, K, R, D)``, rotated.
        """
        if self.rope is None:
            return q, keys
        K, D = keys.shape[1], keys.shape[3]
        if is_readable(positions) and bool((positions == positions[:, :1]).all()):
            positions = positions[:, :1]  # all heads hold the same tokens
        remapped = self.remapped_positions(positions, torch.promote_types(keys.dtype, torch.float32))
        cos, sin = self.rope.cos_sin(remapped, D, keys.dtype)  # (B, 1 or K, R, 1, D)
        rotated = apply_rotary(keys.unsqueeze(-2), (cos, sin)).squeeze(-2)
        if n_learned:
            rotated = torch.cat((keys[:, :, :n_learned], rotated[:, :, n_learned:]), dim=2)
        return apply_rotary(q.unflatten(1, (K, -1)), (cos[:, :, -1], sin[:, :, -1])).flatten(1, 2), rotated

    def attention_logits(
        self, q: Tensor, keys: Tensor, positions: Tensor, visible: Tensor, rule: LogitRule = SCALED_PRODUCT
    ) -> Tensor:
        """Return the logits of T queries and all rows that any of them attends to; the last T rows are their own.

        This works if :attr:`is_relative`, because only distances matter to it. Most remapped distances equal those in
        the text and take one product. The few rows with another distance, such as sinks, are rotated for each query separately.
        This synchronises with the device.

        Args:
            q: ``(B, K, G, T, D)``; keys: ``(B, K, R, D)``; not rotated.
            positions: ``(B, K, R)`` int64.
            visible: ``(B, 1 or K, T, R)`` bool, True where a query attends to a row.
            rule: of the logits.

        Returns:
            ``(B, K, G, T, R)`` in at least float32; undefined for rows that are not visible.
        """
        if self.rope is None:
            return attention_logits(q.flatten(2, 3), keys, rule=rule).unflatten(2, q.shape[2:4])
        (T, D), R = q.shape[3:], keys.shape[2]
        if visible.shape[1] == 1 and bool((positions == positions[:, :1]).all()):
            positions = positions[:, :1]  # all heads hold the same tokens
        wide = torch.promote_types(keys.dtype, torch.float32)
        text = positions - positions[..., -T:].amax(-1, keepdim=True)  # near 0, where angles are precise
        cos, sin = self.rope.cos_sin(text, D, keys.dtype)  # (B, K, R, 1, D)
        rotated_keys = apply_rotary(keys.unsqueeze(-2), (cos, sin)).squeeze(-2)
        rotated_q = apply_rotary(q, (cos[:, :, None, -T:, 0], sin[:, :, None, -T:, 0]))
        logits = attention_logits(rotated_q.flatten(2, 3), rotated_keys, rule=rule).unflatten(2, q.shape[2:4])
        remapped = self.remapped_positions(positions[:, :, None].masked_fill(~visible, EMPTY), wide)  # (B, K, T, R)
        distance = remapped.diagonal(R - T, -2, -1)[..., None] - remapped
        differs = ((distance - (text[:, :, -T:, None] - text[:, :, None])).abs() > 0.01) & visible
        columns = differs.flatten(0, 2).any(0).nonzero()[:, 0]  # (M,)
        at_zero = self.rope.cos_sin(positions.new_zeros(()), D, keys.dtype)
        unrotated = apply_rotary(q, at_zero).transpose(2, 3)  # (B, K, T, G, D)
        chunk = max(1, MAX_KEY_ELEMENTS * R // (keys.numel() * T))
        for some in columns.split(chunk) if len(columns) else ():
            cos_sin = self.rope.cos_sin(-distance[..., some], D, keys.dtype)  # (B, 1 or K, T, M, 1, D)
            per_query = apply_rotary(keys[:, :, None, some, None], cos_sin).squeeze(-2)  # (B, K, T, M, D)
            logits[..., some] = attention_logits(unrotated, per_query, rule=rule).transpose(2, 3)
        return logits
