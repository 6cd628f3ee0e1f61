"""What every kind of checkpoint is read into, and how one names its tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from msrnn import Error
from msrnn.models import Config, DecoderConfig
from msrnn.storage.lazy_tensors import LazyTensor


@dataclass(frozen=True)
class Source:
    """A checkpoint opened: facts, tensors, files that go along.

    Attributes:
        config: the facts.
        tensors: by our names, none of them read yet.
        extra_files: the small files of the model (tokenizer, chat template) by name.
    """

    config: Config | DecoderConfig
    tensors: Mapping[str, LazyTensor]
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """A name table: a format's names for ours, all without the ``.weight`` at the end.

    Attributes:
        outer: of what stands outside the layers.
        layer: of what is in a layer.
        layers: what stands before a layer's number.
    """

    outer: Mapping[str, str]
    layer: Mapping[str, str]
    layers: str

    def ours(self, name: str) -> str:
        """A tensor's name -> our name.

        Raises:
            Error: a name that the table does not have.
        """
        stem, _, kind = name.rpartition(".")
        match = re.fullmatch(rf"{re.escape(self.layers)}\.(0|[1-9]\d*)\.(.+)", stem)
        part = self.layer.get(match[2]) if match else self.outer.get(stem)
        if kind != "weight" or part is None:
            raise Error(f"tensor {name!r} is not part of this architecture (a bias, an adapter or another model?)")
        return f"layers.{match[1]}.{part}.weight" if match else f"{part}.weight"

    def theirs(self, name: str) -> str:
        """The inverse of :meth:`ours`."""
        stem = name.removesuffix(".weight")
        if not stem.startswith("layers."):
            return f"{_inverse(self.outer)[stem]}.weight"
        _, layer, part = stem.split(".")
        return f"{self.layers}.{layer}.{_inverse(self.layer)[part]}.weight"


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in table.items()}
