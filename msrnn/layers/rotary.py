r"""Rotary position embeddings (RoPE, arXiv:2104.09864) in the half-split layout: pair i of a head is ``(x[i], x[i + D/2])``.

Hugging Face uses this layout. Meta, Mistral's own files and GGUF interleave ``(x[2i], x[2i + 1])``; the converters change the
layout. Pair i of a token at position t is rotated by the angle $t \cdot f_i$. Each class is one kind of RoPE scaling
(``rope_scaling`` of Hugging Face configs): it computes the frequencies f from the settings in a model's config.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import Error, check_bool, check_number

CosSin = tuple[Tensor, Tensor]
"""cos and signed sin, ``(…, 1, D)`` each."""

MAX_SETTING = 1e15
"""Maximum of every setting: far above published values, and still exact in float64 and int64."""


@dataclass(frozen=True)
class Rope:
    r"""The plain frequencies $f_i = \theta^{-2i/D}$, and the base class of the scaled ones."""

    theta: float
    relative: ClassVar[bool] = True
    """True if the product of a rotated query and a rotated key depends only on their distance."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            label = f"{type(self).__name__}.{name}"
            if name == "truncate":
                check_bool(label, value)
            else:
                for number in value if isinstance(value, tuple) else (value,):
                    check_number(label, number, above=1 if name == "theta" else 0, at_most=MAX_SETTING)

    def check_head_dim(self, head_dim: int) -> None:
        """Refuse a head dimension that does not fit the settings.

        Raises:
            Error: ``head_dim`` is not twice the number of divisors of :class:`LongRope`.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the type and the fields, for JSON."""
        return {"rope_type": next(name for name, kind in ROPE_TYPES.items() if type(self) is kind), **vars(self)}

    @property
    def attention_scaling(self) -> float:
        """The factor on cos and sin; 1 except for YaRN and LongRoPE."""
        return 1.0

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        """Return the angles per position, ``(D/2,)``, or ``(…, D/2)`` where they depend on ``position (…,)``."""
        return self.theta ** -self._exponents(position, head_dim, dtype)

    def cos_sin(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> CosSin:
        """Return cos and signed sin (negative in the first half) for ``position (…,)`` int64, ``(…, 1, D)`` each.

        Angles are computed in at least float32, on the device of ``position``, without synchronising with it.
        """
        wide = torch.promote_types(dtype, torch.float32)
        angle = position[..., None].to(wide) * self.frequencies(position, head_dim, wide)  # (…, D/2)
        cos, sin = angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)  # (…, D)
        return cos.to(dtype)[..., None, :], sin.to(dtype)[..., None, :]  # the same for every head

    @staticmethod
    def _exponents(position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        return torch.arange(0, head_dim, 2, dtype=dtype, device=position.device) / head_dim  # (D/2,)


@dataclass(frozen=True)
class LinearRope(Rope):
    """Position interpolation (arXiv:2306.15595): every frequency divided by ``factor``."""

    factor: float

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        return super().frequencies(position, head_dim, dtype) / self.factor


@dataclass(frozen=True)
class DynamicNTKRope(Rope):
    """NTK-aware scaling that grows with the text: token t uses the frequencies of length t + 1.

    Up to ``original_length``, the training length, the frequencies are the plain ones.
    """

    factor: float
    original_length: int
    relative: ClassVar[bool] = False

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        stretch = (position[..., None] + 1).clamp(min=self.original_length).to(dtype) / self.original_length  # (…, 1)
        power = head_dim / (head_dim - 2)
        theta = self.theta * (self.factor * stretch - (self.factor - 1)) ** power
        return theta ** -self._exponents(position, head_dim, dtype)  # (…, D/2)


@dataclass(frozen=True)
class Llama3Rope(Rope):
    """The scaling of LLaMA 3.1, a function of the wavelength (``modeling_rope_utils.py`` of transformers 5.x).

    Wavelengths above ``original_length / low_freq_factor`` are multiplied by ``factor``. Wavelengths below
    ``original_length / high_freq_factor`` are kept. Those in between are interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high_freq_factor <= self.low_freq_factor:
            found = f"{self.high_freq_factor!r}; expected more than low_freq_factor, {self.low_freq_factor!r}"
            raise Error(f"Llama3Rope.high_freq_factor is {found}")

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        plain = super().frequencies(position, head_dim, dtype)
        turns = self.original_length * plain / (2 * math.pi)  # number of wavelengths in the training length
        keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return (1 - keep) * plain / self.factor + keep * plain


@dataclass(frozen=True)
class YarnRope(Rope):
    """YaRN (arXiv:2309.00071): low frequencies are interpolated, high ones kept, with a ramp in between.

    Attributes:
        factor: by which low frequencies are divided.
        original_length: the training length.
        attention_factor: the factor on cos and sin.
        beta_fast, beta_slow: rotations over ``original_length`` at the two ends of the ramp.
        truncate: True rounds the ends outward to whole dimensions, as the released models do.
    """

    factor: float
    original_length: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @property
    def attention_scaling(self) -> float:
        return self.attention_factor

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        plain = super().frequencies(position, head_dim, dtype)
        first, last = self._dimension(self.beta_fast, head_dim), self._dimension(self.beta_slow, head_dim)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        if first == last:
            last += 0.001  # avoids a division by zero, as in the released code
        index = torch.arange(head_dim // 2, dtype=dtype, device=position.device)
        ramp = ((index - first) / (last - first)).clamp(0, 1)  # 0: kept, 1: interpolated
        return ramp * plain / self.factor + (1 - ramp) * plain

    def _dimension(self, rotations: float, head_dim: int) -> float:
        """Return the (real-valued) index of the pair that makes ``rotations`` rotations over the training length."""
        return head_dim * math.log(self.original_length / (rotations * 2 * math.pi)) / (2 * math.log(self.theta))


@dataclass(frozen=True)
class LongRope(Rope):
    """LongRoPE (arXiv:2402.13753): one divisor for each frequency, in two sets. Token t uses the set of length t + 1.

    Keys of the first ``original_length`` tokens keep the rotation of the short set, as in transformers with a KV cache.

    Attributes:
        short_factor: divisors up to ``original_length``, ``(D/2,)``; a list is accepted.
        long_factor: divisors beyond it, ``(D/2,)``.
        original_length: the training length.
        attention_factor: the factor on cos and sin.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_length: int
    attention_factor: float
    relative: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("short_factor", "long_factor"):
            value: Any = getattr(self, name)
            if not isinstance(value, list | tuple):
                raise Error(f"LongRope.{name} is {value!r:.60}; expected a list of numbers")
            object.__setattr__(self, name, tuple(value))
        super().__post_init__()

    def check_head_dim(self, head_dim: int) -> None:
        for name in ("short_factor", "long_factor"):
            if (count := len(getattr(self, name))) != head_dim // 2:
                raise Error(f"LongRope.{name} has {count} numbers; expected {head_dim // 2}, half of head_dim {head_dim}")

    @property
    def attention_scaling(self) -> float:
        return self.attention_factor

    def frequencies(self, position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
        plain = super().frequencies(position, head_dim, dtype)
        divisors = torch.tensor((self.short_factor, self.long_factor), dtype=dtype)  # (2, D/2)
        short, long = plain / divisors.to(position.device, non_blocking=True)  # does not wait for the device
        return torch.where(position[..., None] + 1 > self.original_length, long, short)  # (…, D/2)


ROPE_TYPES: dict[str, type[Rope]] = {
    "default": Rope,
    "linear": LinearRope,
    "dynamic": DynamicNTKRope,
    "llama3": Llama3Rope,
    "yarn": YarnRope,
    "longrope": LongRope,
}
"""The classes by the ``rope_type`` of Hugging Face configs."""


def apply_rotary(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Rotate every head of ``x (…, heads, D)`` by ``cos_sin``, ``(…, 1, D)`` each."""
    cos, sin = cos_sin
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)  # x[i] cos ∓ x[i ± D/2] sin
