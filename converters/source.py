"""The common form of every checkpoint, and the tables that map its tensor names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from msrnn import Error
from msrnn.models import Config, DecoderConfig
from msrnn.models.packing import LazyMatrix
from msrnn.storage.lazy_tensors import LazyTensor

from .names import is_buffer, split_wrappers, unknown_name

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """An open checkpoint.

    Attributes:
        config: the config of the model.
        tensors: the parameters under msrnn's names, not read yet.
        extra_files: the small files of the model (tokenizer, chat template) by name.
        n_token_ids: the largest id of the tokenizer, plus 1; 0 without a tokenizer.
        packed: the matrices that can keep their own four bits, by msrnn's names of their modules; they are in ``tensors`` too.
        tokenizer_error: why the tokenizer of a folder or file cannot be used; None if it can be used, or for a model in memory.
    """

    config: Config | DecoderConfig
    tensors: Mapping[str, LazyTensor]
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    n_token_ids: int = 0
    tokenizer_error: Error | None = None
    packed: Mapping[str, LazyMatrix] = field(default_factory=dict)


@dataclass(frozen=True)
class NameTable:
    """The tensor names of a format and msrnn's names for them.

    Attributes:
        outer: names outside the layers, both without the suffix ``.weight``.
        layer: names within a layer, both without the suffix ``.weight``.
        layers: the prefix before the number of a layer.
        vectors: full names of further parameters of a layer, such as biases, and msrnn's full names.
    """

    outer: Mapping[str, str]
    layer: Mapping[str, str]
    layers: str
    vectors: Mapping[str, str] = field(default_factory=dict)

    def to_msrnn(self, name: str) -> str:
        """Return msrnn's name for a tensor of the format.

        Raises:
            Error: the table does not contain the name.
        """
        if (found := self._find(name)) is None:
            raise unknown_name(name)
        return found

    def unwrap(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Return ``tensors`` under the names of the format: without buffers, and without the prefixes of wrappers.

        The prefix of the layers in the format (``model.`` in ``model.layers``) may be missing, as in a checkpoint of the
        network without its head class.

        Raises:
            Error: the table does not contain a name, two names are one tensor, or there are several prefixes.
        """
        body = self.layers.removesuffix("layers")
        heads = {f"{stem}.weight" for stem, name in self.outer.items() if name == "head"}
        unwrapped: dict[str, T] = {}
        names: dict[str, str] = {}
        examples: dict[tuple[bool, str], str] = {}  # a name with each prefix, of the head and of other tensors
        for name, x in tensors.items():
            if is_buffer(name):
                continue
            prefix, rest = split_wrappers(name)
            is_head = rest in heads
            plain = rest if is_head else body + rest
            if self._find(plain) is None:
                raise unknown_name(name)
            if plain in names:
                raise Error(f"tensors {names[plain]!r} and {name!r} are both {plain!r}; expected the tensors of one model")
            unwrapped[plain], names[plain] = x, name
            examples.setdefault((is_head, prefix), name)
        prefixes = {prefix for is_head, prefix in examples if not is_head}
        # the prefix of the layers (`model.`) counts as a wrapper here, and the name of the head does not have it
        prefixes |= {prefix for is_head, prefix in examples if is_head and not prefixes & {prefix, prefix + body}}
        if len(prefixes) > 1:
            a, b = list(examples.values())[:2]
            raise Error(f"tensors {a!r} and {b!r} have different prefixes; expected the tensors of one model")
        return unwrapped

    def _find(self, name: str) -> str | None:
        match = re.fullmatch(rf"{re.escape(self.layers)}\.(0|[1-9]\d*)\.(.+)", name)
        if match and match[2] in self.vectors:
            return f"layers.{match[1]}.{self.vectors[match[2]]}"
        stem, _, suffix = (match[2] if match else name).rpartition(".")
        part = (self.layer if match else self.outer).get(stem)
        if suffix != "weight" or part is None:
            return None
        return f"layers.{match[1]}.{part}.weight" if match else f"{part}.weight"

    def from_msrnn(self, name: str) -> str:
        """Return the format's name for a tensor of msrnn."""
        if not name.startswith("layers."):
            return f"{_inverse(self.outer)[name.removesuffix('.weight')]}.weight"
        _, layer, part = name.split(".", 2)
        if (vector := _inverse(self.vectors).get(part)) is not None:
            return f"{self.layers}.{layer}.{vector}"
        return f"{self.layers}.{layer}.{_inverse(self.layer)[part.removesuffix('.weight')]}.weight"


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {msrnn_name: name for name, msrnn_name in table.items()}
