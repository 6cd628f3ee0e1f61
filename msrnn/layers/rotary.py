r"""Rotary positions (arXiv:2104.09864), half-split: pair i of a head is ``(x[i], x[i + D/2])``.

That is Hugging Face's layout; Meta, Mistral's own files and GGUF interleave ``(x[2i], x[2i + 1])``, which
converters undo. A token at position t turns pair i by the angle $t \cdot f_i$; the classes below are the ways
to choose the frequencies f, each a frozen record of what a model's configuration says.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import Error

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rope:
    r"""The plain frequencies $f_i = \theta^{-2i/D}$; the base of the other kinds."""

    theta: float
    relative: ClassVar[bool] = True
    """Whether the product of a turned query and a turned key depends on their distance alone."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name == "truncate" and not isinstance(value, bool):
                raise Error(f"{type(self).__name__}.{name} is {value!r}; expected a bool")
            if name != "truncate" and not (number and 0 < value <= 1e15):
                raise Error(f"{type(self).__name__}.{name} is {value!r}; expected a number above 0")
        if self.theta <= 1:
            raise Error(f"{type(self).__name__}.theta is {self.theta!r}; expected a number above 1")

    def to_dict(self) -> dict[str, Any]:
        """Return the kind and the fields, for JSON."""
        return {"kind": next(name for name, kind in KINDS.items() if type(self) is kind), **vars(self)}

    @property
    def gain(self) -> float:
        """What cos and sin are multiplied by (1 but for yarn)."""
        return 1.0

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        """Angles per position, ``(D/2,)``, or ``(…, D/2)`` where they depend on ``position (…,)``."""
        return self.theta ** -self._exponents(position, head_dim, dtype)

    def rotation(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
        """cos, and sin with its sign (− in the first half), for tokens at ``position (…,)`` int64: ``(…, 1, D)`` each.

        Angles are computed in at least float32, on the device of ``position``, without waiting for it.
        """
        wide = torch.promote_types(dtype, torch.float32)
        angle = position[..., None].to(wide) * self.frequencies(position, head_dim, wide)  # (…, D/2)
        cos, sin = angle.cos() * self.gain, angle.sin() * self.gain
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)  # (…, D)
        return cos.to(dtype)[..., None, :], sin.to(dtype)[..., None, :]  # the same for every head

    @staticmethod
    def _exponents(position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        return torch.arange(0, head_dim, 2, dtype=dtype, device=position.device) / head_dim  # (D/2,)


@dataclass(frozen=True)
class Linear(Rope):
    """Position interpolation (arXiv:2306.15595): every frequency divided by ``factor``."""

    factor: float

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        return super().frequencies(position, head_dim, dtype) / self.factor


@dataclass(frozen=True)
class Dynamic(Rope):
    """NTK-aware scaling that grows with the text: token t is turned by the frequencies of length t + 1.

    Up to ``length``, the model's training length, they are the plain ones.
    """

    factor: float
    length: int
    relative: ClassVar[bool] = False

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        stretch = (position[..., None] + 1).clamp(min=self.length).to(dtype) / self.length  # (…, 1)
        power = head_dim / (head_dim - 2)
        theta = self.theta * (self.factor * stretch - (self.factor - 1)) ** power
        return theta ** -self._exponents(position, head_dim, dtype)  # (…, D/2)


@dataclass(frozen=True)
class Llama3(Rope):
    """LLaMA 3.1's scaling: waves longer than ``length / low`` are stretched by ``factor``, those shorter than
    ``length / high`` kept, those between blended (facts of ``transformers`` ``modeling_rope_utils.py``, 5.x)."""

    factor: float
    low: float
    high: float
    length: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high <= self.low:
            raise Error(f"Llama3.high is {self.high!r}; expected more than low, {self.low!r}")

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        plain = super().frequencies(position, head_dim, dtype)
        turns = self.length * plain / (2 * math.pi)  # how often a wave fits into the training length
        keep = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)  # 0 stretched … 1 as it was
        return (1 - keep) * plain / self.factor + keep * plain


@dataclass(frozen=True)
class Yarn(Rope):
    """YaRN (arXiv:2309.00071): slow waves interpolated, fast ones kept, a ramp between, and a gain on cos and sin.

    ``beta_fast`` and ``beta_slow`` are turns over ``length`` where the ramp ends; ``truncate`` rounds its ends to
    whole dimensions outward (the released models do). ``attention_factor`` is the gain itself.
    """

    factor: float
    length: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @property
    def gain(self) -> float:
        return self.attention_factor

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        plain = super().frequencies(position, head_dim, dtype)
        first, last = self._dimension(self.beta_fast, head_dim), self._dimension(self.beta_slow, head_dim)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        if first == last:
            last += 0.001  # the released code's way around a ramp of no length
        index = torch.arange(head_dim // 2, dtype=dtype, device=position.device)
        ramp = ((index - first) / (last - first)).clamp(0, 1)  # 0 kept … 1 interpolated
        return ramp * plain / self.factor + (1 - ramp) * plain

    def _dimension(self, turns: float, head_dim: int) -> float:
        """The (real-valued) pair index whose wave makes ``turns`` turns over ``length``."""
        return head_dim * math.log(self.length / (turns * 2 * math.pi)) / (2 * math.log(self.theta))


KINDS: dict[str, type[Rope]] = {"default": Rope, "linear": Linear, "dynamic": Dynamic, "llama3": Llama3, "yarn": Yarn}


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn every head of ``x (…, heads, D)`` by ``rotation``, cos and signed sin ``(…, 1, D)`` each."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)  # x[i] cos ∓ x[i ± D/2] sin
