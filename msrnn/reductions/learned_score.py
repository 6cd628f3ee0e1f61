"""An operator that is trained: a small network scores a row once, when its token enters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import gelu

from .calibrated import CalibratedReduction, ModelSizes
from .contract import Observation, SpecNames, is_recent


@dataclass(frozen=True)
class LearnedScore(CalibratedReduction):
    r"""A trained score at entry, in the manner of KVzap (arXiv:2601.07891; NVIDIA/kvpress at 3a056f7).

    A linear map, or an MLP with one hidden layer, reads the input of the layer for a token and gives one number per key/value
    head. It is computed once, kept as a statistic of the row, and the row with the lowest number is evicted. The ``recent``
    newest rows are protected, half of ``size`` by default.

    As in KVzap: the network (linear, or hidden layer and GELU), one for each layer, and that it is applied once. Different
    here: KVzap is trained to predict the attention of a second pass that repeats the text (KVzip+), and evicts what is below a
    threshold. ``msrnn calibrate`` trains it to predict, for each token, the logarithm of the largest attention weight that it
    receives from later queries of the same text at a distance of at least 32 tokens, and the size is fixed. The input is
    divided by its root mean square; the gains of the layer's own norm are left to the first matrix.

    Attributes:
        constants: ``weight (L, K, E)`` and ``bias (L, K)``; or, with H hidden units, ``hidden (L, H, E)``,
            ``hidden_bias (L, H)``, ``weight (L, K, H)`` and ``bias (L, K)``.
    """

    recent: int | None = None
    spec_names: ClassVar[SpecNames] = {"learned-score": {}}
    stat_names: ClassVar[tuple[str, ...]] = ("entry_score",)
    needs_weights: ClassVar[bool] = False
    needs_input: ClassVar[bool] = True
    update_is_additive: ClassVar[bool] = True
    depends_on_other_positions: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False
    tie_tolerance: ClassVar[float] = 1e-5
    """In the first layer all rows of one token tie, up to rounding."""

    def validate(self, size: int | None) -> None:
        super().validate(size)
        if self.recent is not None:
            self._check_int("recent", self.recent, at_least=0, at_most=size)

    def constant_shapes(self, sizes: ModelSizes) -> Mapping[str, tuple[int, ...]]:
        L, K, E, hidden = sizes.n_layers, sizes.n_kv_heads, sizes.width, self.constants.tensors.get("hidden")
        if hidden is None:
            return {"bias": (L, K), "weight": (L, K, E)}
        H = hidden.shape[1] if hidden.ndim == 3 else 1
        return {"bias": (L, K), "hidden": (L, H, E), "hidden_bias": (L, H), "weight": (L, K, H)}

    def update(self, observation: Observation) -> dict[str, Tensor]:
        assert observation.x is not None
        like = observation.weights
        tensors = {name: self.constants.get(name, like) for name in self.constants.tensors}
        score = predict(observation.x.to(like.dtype), tensors)  # (B, K)
        own = observation.positions == observation.clock[:, None, None]
        return {"entry_score": observation.row_stats["entry_score"] + torch.where(own, score[..., None], 0)}

    def score(self, observation: Observation) -> Tensor:
        assert isinstance(self.size, int)
        recent = is_recent(observation, self.size // 2 if self.recent is None else self.recent)
        return observation.row_stats["entry_score"].masked_fill(recent, torch.inf)


def divide_by_rms(x: Tensor) -> Tensor:
    """Return ``x (…, E)`` divided by its root mean square."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def predict(x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the scores of inputs ``x (…, E)``, ``(…, K)``; ``tensors`` are the constants of one layer."""
    x = divide_by_rms(x)
    if "hidden" in tensors:
        x = gelu(x @ tensors["hidden"].mT + tensors["hidden_bias"])
    return x @ tensors["weight"].mT + tensors["bias"]
