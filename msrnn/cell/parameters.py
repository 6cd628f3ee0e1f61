"""Dtype, device and fingerprint of the parameters of a network, also where modules are wrapped or packed."""

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..distributed.fingerprints import sample_values
from ..distributed.rank_part import RankPart
from ..errors import Error
from ..layers.embedding import Embedding
from ..layers.lora import LoraLinear
from ..layers.packed.modules import PackedModule
from ..state.fingerprint import VALUES_PER_TENSOR, Fingerprint, tensor_version

T = TypeVar("T", bound="ParameterAccess")


class ParameterAccess(nn.Module):
    """The base class of :class:`RecurrentNetwork`."""

    config: Any
    embed: Embedding
    adapters: Mapping[str, LoraLinear] = MappingProxyType({})
    """The LoRA adapters by their paths in the cell (:mod:`msrnn.lora`)."""
    rank_part: RankPart | None = None
    """The part of the model that this process holds; None: the whole model."""
    _accepted: Fingerprint | None = None
    """The last fingerprint from elsewhere, such as from a file, that was compared with the parameters."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """Every field of the config that enters a step, as text. Part of the fingerprint of a state."""

    @property
    @abstractmethod
    def fingerprint_tensors(self) -> list[Tensor]:
        """A few parameters that distinguish this model from others of the same shape. The first is the embedding."""

    @property
    def device(self) -> torch.device:
        return self._any_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._any_weight.dtype

    @property
    def _any_weight(self) -> Tensor:
        """The weight of the embedding, also where the embedding is wrapped, pruned or parametrized."""
        weight = self.embed._parameters.get("weight")
        if weight is not None:
            return weight
        inner = next((x for x in self.embed.modules() if isinstance(x, nn.Embedding)), self)
        return next(inner.parameters())

    def tensors_of(self, *modules: str) -> list[Tensor]:
        """Return the weight of each of these modules, or all parameters and buffers of a module without a parameter ``weight``.

        So a module may be replaced by a wrapper, pruned or parametrized.
        """
        tensors: list[Tensor] = []
        for path in modules:
            module: nn.Module = self
            for name in path.split("."):
                if not isinstance(inner := getattr(module, name, None), nn.Module):
                    break
                module = inner
            if isinstance(module, LoraLinear):  # identifying_tensors adds the adapters
                module = module.base_layer
            weight = module._parameters.get("weight")
            if isinstance(module, PackedModule):  # the layout of the codes depends on the CPU
                tensors += [x for x in module.buffers() if x.is_floating_point()]
            else:
                tensors += [*module.parameters(), *module.buffers()] if weight is None else [weight]
        return tensors

    @property
    def identifying_tensors(self) -> list[Tensor]:
        """The tensors of the fingerprint: a few parameters of the model, and A and B of every adapter."""
        return [*self.fingerprint_tensors, *(x for module in self.adapters.values() for x in (module.lora_A, module.lora_B))]

    def fingerprint(self, *, recompute: bool = False) -> Fingerprint:
        """Return the fingerprint of this model; it is computed again when a fingerprint tensor has changed.

        It has no values if a tensor has no storage, as inside ``torch.func`` transforms and ``torch.export``.

        Args:
            recompute: True to read the values again. Edits through ``data`` or numpy are noticed only in this way. It
                synchronises with the device.
        """
        tensors, scales = self.identifying_tensors, [x.scaling for x in self.adapters.values()]
        try:
            key = (*map(tensor_version, tensors), *scales)
        except RuntimeError:
            return Fingerprint(self.signature)
        cached = getattr(self, "_fingerprint", None)
        if cached is None or cached[0] != key or recompute:
            new = self._read_fingerprint(tensors, scales)
            if cached is not None and new.dtype == cached[1].dtype and new.matches(cached[1]):
                new = cached[1]  # the states of this cell hold this object
            else:
                self._accepted = None
            self._fingerprint = cached = (key, new)
        return cached[1]

    def _read_fingerprint(self, tensors: list[Tensor], numbers: list[float]) -> Fingerprint:
        """Return the fingerprint of the whole model. A split cell exchanges values with the other ranks."""
        if self.rank_part is None or any(x.requires_grad or x.is_meta for x in tensors):
            return Fingerprint.of(self.signature, tensors, numbers)
        names = {id(x): name for name, x in (*self.named_buffers(), *self.named_parameters())}
        values = sample_values(self.rank_part, [(names[id(x)], x) for x in tensors], VALUES_PER_TENSOR)
        return Fingerprint.of_values(self.signature, tensors[0].dtype, values, numbers)

    def requires_grad_(self: T, requires_grad: bool = True) -> T:
        """Make all parameters trainable, or freeze them, as ``nn.Module`` does.

        Raises:
            Error: the cell has packed weights, which cannot be trained.
        """
        if requires_grad and any(isinstance(module, PackedModule) for module in self.modules()):
            raise Error("packed weights cannot be trained; expected a cell with float weights (load it without weights=)")
        return super().requires_grad_(requires_grad)
