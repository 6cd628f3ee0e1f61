"""Changes that users make to a module of a model: adapters, wrappers, hooks, pruning, parametrizations.

A change is a function ``(model, path)``, the same for a cell and for a model of transformers. Each is linear, so that
:data:`MERGED` has the weight with which an unchanged module gives the same result.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune


class Lora(nn.Module):
    """A hand-made LoRA adapter, without an attribute ``weight``."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        n_out, n_in = _weight(base).shape if not isinstance(base, nn.Embedding) else _weight(base).shape[::-1]
        self.a, self.b = (nn.Parameter(0.3 * x) for x in (_noise(0, n_in, 2), _noise(1, 2, n_out)))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (self.a[x] if isinstance(self.base, nn.Embedding) else x @ self.a) @ self.b


class PublicLora(Lora):
    """The same with an attribute ``weight``, as peft's layers have it."""

    @property
    def weight(self) -> Tensor:
        return _weight(self.base)


class Wrapper(nn.Module):
    """A wrapper with another ``forward``."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def forward(self, *args, **kwargs):
        return 1.3 * self.base(*args, **kwargs)


class Scaled(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.3 * x


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def replace_module(model: nn.Module, path: str, new: Callable[[nn.Module], nn.Module]) -> None:
    """Put ``new(module)`` in the place of a module."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, name, new(getattr(owner, name)))


def _mask(weight: Tensor) -> Tensor:
    return (_noise(2, *weight.shape) > -0.5).to(weight.dtype)


def _pre_hook(model: nn.Module, path: str) -> None:
    module = model.get_submodule(path)
    embeds, size = isinstance(module, nn.Embedding), len(_weight(module))
    module.register_forward_pre_hook(lambda _, args: ((args[0] + 1) % size if embeds else 0.7 * args[0],))


def _own_forward(model: nn.Module, path: str) -> None:
    module = model.get_submodule(path)
    forward = module.forward
    module.forward = lambda x: 1.3 * forward(x)


CHANGES: dict[str, Callable[[nn.Module, str], object]] = {
    "lora": lambda model, path: replace_module(model, path, Lora),
    "lora with a weight": lambda model, path: replace_module(model, path, PublicLora),
    "wrapper": lambda model, path: replace_module(model, path, Wrapper),
    "hook": lambda model, path: model.get_submodule(path).register_forward_hook(lambda _, args, y: 1.3 * y),
    "pre-hook": _pre_hook,
    "forward of the instance": _own_forward,
    "pruning": lambda model, path: prune.custom_from_mask(m := model.get_submodule(path), "weight", _mask(_weight(m))),
    "parametrization": lambda model, path: parametrize.register_parametrization(model.get_submodule(path), "weight", Scaled()),
    "weight norm": lambda model, path: _edit_norm(parametrizations.weight_norm(model.get_submodule(path))),
}
CHANGES_OF_A_WEIGHT = {"pruning", "parametrization", "weight norm"}
"""Changes that a tied LM head shares with the embedding. The others change the lookup only."""


def _edit_norm(module: nn.Module) -> None:
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(1.3)


def _merged_lora(weight: Tensor, embeds: bool) -> Tensor:
    n_out, n_in = weight.shape[::-1] if embeds else weight.shape
    product = 0.09 * _noise(0, n_in, 2) @ _noise(1, 2, n_out)
    return weight + (product if embeds else product.T)


MERGED: dict[str, Callable[[Tensor, bool], Tensor]] = {
    **dict.fromkeys(CHANGES, lambda weight, embeds: 1.3 * weight),
    **dict.fromkeys(("lora", "lora with a weight"), _merged_lora),
    "pre-hook": lambda weight, embeds: weight.roll(-1, 0) if embeds else 0.7 * weight,
    "pruning": lambda weight, embeds: weight * _mask(weight),
}
