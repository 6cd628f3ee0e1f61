"""What every kind of checkpoint is read into."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from msrnn.models import Config


@dataclass(frozen=True)
class Source:
    """A checkpoint opened: facts, tensors, files that go along.

    Attributes:
        config: checked, before any tensor is read.
        tensors: our names and tensors, one by one; to be gone through once.
        carried: gives the small files that go along, by name (tokenizer, chat template).
    """

    config: Config
    tensors: Iterator[tuple[str, Tensor]]
    carried: Callable[[], dict[str, bytes]]
