"""The common form of every checkpoint, and the tables that map its tensor names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from msrnn import Error
from msrnn.models import Config, DecoderConfig
from msrnn.storage.lazy_tensors import LazyTensor


@dataclass(frozen=True)
class Source:
    """An open checkpoint.

    Attributes:
        config: the config of the model.
        tensors: the parameters under msrnn's names, not read yet.
        extra_files: the small files of the model (tokenizer, chat template) by name.
    """

    config: Config | DecoderConfig
    tensors: Mapping[str, LazyTensor]
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class NameTable:
    """The tensor names of a format and msrnn's names for them, both without the suffix ``.weight``.

    Attributes:
        outer: names outside the layers.
        layer: names within a layer.
        layers: the prefix before the number of a layer.
    """

    outer: Mapping[str, str]
    layer: Mapping[str, str]
    layers: str

    def to_msrnn(self, name: str) -> str:
        """Return msrnn's name for a tensor of the format.

        Raises:
            Error: the table does not contain the name.
        """
        stem, _, suffix = name.rpartition(".")
        match = re.fullmatch(rf"{re.escape(self.layers)}\.(0|[1-9]\d*)\.(.+)", stem)
        part = self.layer.get(match[2]) if match else self.outer.get(stem)
        if suffix != "weight" or part is None:
            raise Error(f"tensor {name!r} is not part of this architecture (a bias, an adapter or another model?)")
        return f"layers.{match[1]}.{part}.weight" if match else f"{part}.weight"

    def from_msrnn(self, name: str) -> str:
        """Return the format's name for a tensor of msrnn."""
        stem = name.removesuffix(".weight")
        if not stem.startswith("layers."):
            return f"{_inverse(self.outer)[stem]}.weight"
        _, layer, part = stem.split(".")
        return f"{self.layers}.{layer}.{_inverse(self.layer)[part]}.weight"


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {msrnn_name: name for name, msrnn_name in table.items()}
