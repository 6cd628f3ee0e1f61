"""Tensors that belong to an operator, such as calibrated vectors: one entry per layer, and they never change.

The tensors are part of the value of the operator. Operators with other numbers are not equal, and a saved state contains the
numbers of its operators.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import Error, can_compute, describe
from ..storage.atomic import atomic_file
from ..storage.lazy_tensors import LazyTensor
from ..storage.safetensors_io import read_metadata, read_tensors, write_tensors

FORMAT, VERSION = "msrnn-constants", "1"


@dataclass(frozen=True, eq=False, repr=False)
class Constants:
    """Named tensors of an operator, one entry per layer in each. Two are equal if their digests and their ``layer`` are equal.

    Attributes:
        tensors: ``(L, …)`` floating-point each, by name. They are copied to the CPU.
        model: fingerprint of the model that they belong to, as JSON text; empty: any model that their shapes fit.
        source: path of the file that they were read from, as it was given; None: they were not read from a file.
        layer: the layer that :meth:`of_layer` chose; None: all layers.
        digest: 16 hex digits of the SHA-256 of names, shapes, numbers and model.
    """

    tensors: Mapping[str, Tensor]
    model: str = ""
    source: str | None = None
    layer: int | None = None
    digest: str = field(init=False)
    _moved: dict[tuple[str, torch.dtype, torch.device], Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in _checked(self.tensors).items()}
        object.__setattr__(self, "tensors", MappingProxyType(dict(sorted(tensors.items()))))
        hashed = hashlib.sha256(self.model.encode())
        for name, x in self.tensors.items():
            hashed.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode())
            hashed.update(x.view(torch.uint8).numpy().tobytes())
        object.__setattr__(self, "digest", hashed.hexdigest()[:16])

    def of_layer(self, layer: int) -> "Constants":
        """Return the constants of one layer; a layer that was chosen before stays.

        Raises:
            Error: there is no such layer.
        """
        if self.layer is not None:
            return self
        n_layers = len(next(iter(self.tensors.values())))
        if layer >= n_layers:
            raise Error(
                f"{self.name} have {n_layers} layers and no layer {layer}; expected those of a model with as many layers"
            )
        chosen = object.__new__(Constants)
        for name, value in {**vars(self), "layer": layer, "_moved": {}}.items():  # the digest is not computed again
            object.__setattr__(chosen, name, value)
        return chosen

    def get(self, name: str, like: Tensor) -> Tensor:
        """Return a tensor of the chosen layer in the dtype and on the device of ``like``."""
        key = (name, like.dtype, like.device)
        if key not in self._moved:
            x = self.tensors[name]
            self._moved[key] = (x if self.layer is None else x[self.layer]).to(like.device, like.dtype)
        return self._moved[key]

    @property
    def spec_text(self) -> str | None:
        """The file and the first half of the digest, which spec strings contain; None if there is no file."""
        return None if self.source is None else f"{self.source}@{self.digest[:8]}"

    @property
    def name(self) -> str:
        """Their name in messages, with the file if there is one."""
        return "the constants" if self.source is None else f"the constants of {self.source}"

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, which :meth:`load` reads.

        Raises:
            Error: the path cannot be written to.
        """
        with atomic_file(path) as staging:
            tensors = {name: LazyTensor.of(x) for name, x in self.tensors.items()}
            write_tensors(staging, tensors, {"format": FORMAT, "version": VERSION, "model": self.model})

    @staticmethod
    def load(text: str | Path) -> "Constants":
        """Read a file that :meth:`save` wrote.

        Args:
            text: the path; a path followed by ``@`` and the first 8 digits of the digest refuses a file with other numbers.

        Raises:
            Error: the file is missing, damaged or of another format, or its digest differs.
        """
        path, _, expected = str(text).rpartition("@")
        if not re.fullmatch("[0-9a-f]{8}", expected) or not path:
            path, expected = str(text), ""
        metadata = read_metadata(path)
        found = {name: metadata.get(name) for name in ("format", "version")}
        if found != {"format": FORMAT, "version": VERSION}:
            raise Error(f"{path} has format {found['format']!r:.60}; expected constants, as msrnn calibrate writes them")
        try:
            constants = Constants(dict(read_tensors(path)), metadata.get("model", ""), path)
        except Error as error:
            raise Error(f"{path}: {error}") from None
        if expected and not constants.digest.startswith(expected):
            raise Error(f"{path} has the digest {constants.digest[:8]}; expected {expected}, because the file has changed")
        return constants

    def check_shapes(self, owner: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse tensors that do not fit a model.

        Args:
            owner: name of the operator.
            shapes: expected shapes by name, with the number of layers first.

        Raises:
            Error: other names or shapes.
        """
        found = {name: tuple(x.shape) for name, x in self.tensors.items()}
        if found != dict(shapes):
            expected = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
            has = ", ".join(f"{name} {shape}" for name, shape in found.items())
            raise Error(f"{owner}: {self.name} are {has}; expected {expected} for this model")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constants) and (self.digest, self.layer) == (other.digest, other.layer)

    def __hash__(self) -> int:
        return hash((self.digest, self.layer))

    def __repr__(self) -> str:
        where = "" if self.layer is None else f", layer {self.layer}"
        return f"Constants({', '.join(self.tensors)}, {self.digest[:8]}{where})"

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "tensors": dict(self.tensors), "_moved": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, MappingProxyType(value) if name == "tensors" else value)  # type: ignore[arg-type]

    def __deepcopy__(self, memo: object) -> "Constants":
        return self


def _checked(tensors: object) -> Mapping[str, Tensor]:
    """Return ``tensors``; refuse anything but finite floating-point tensors ``(L, …)`` by name, all with the same L."""
    if not isinstance(tensors, Mapping) or not tensors:
        raise Error(f"constants are {describe(tensors)}; expected tensors by name")
    lengths = set()
    for name, x in tensors.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise Error(f"constants have the name {name!r:.60}; expected an identifier")
        if not isinstance(x, Tensor) or not can_compute(x.dtype) or not x.ndim or not bool(x.isfinite().all()):
            raise Error(f"constants: {name} is {describe(x)}; expected finite floating-point numbers (L, …)")
        lengths.add(len(x))
    if len(lengths) > 1 or 0 in lengths:
        raise Error(f"constants have {sorted(lengths)} layers; expected one number of layers for all tensors")
    return tensors
