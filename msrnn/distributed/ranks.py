"""A process group of ``torch.distributed``, the messages of its ranks, and a count of their bytes."""

import json
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import Error
from ..layers.differentiation import in_transform
from ..storage.digest import digest


class Traffic:
    """The messages of this process since :meth:`reset`, by their purpose.

    Attributes:
        messages: number of messages.
        payload: bytes that this rank contributes. An all-gather sends them to each of the W − 1 other ranks, a ring all-reduce
            sends 2 (W − 1) / W times as many.
    """

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.payload: Counter[str] = Counter()

    def add(self, purpose: str, x: Tensor) -> None:
        """Count one message with the contribution ``x``."""
        self.messages[purpose] += 1
        self.payload[purpose] += x.nbytes

    def reset(self) -> None:
        """Forget all messages."""
        self.messages.clear()
        self.payload.clear()


TRAFFIC = Traffic()
"""The messages of this process."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a group, called ranks. Every rank calls the same methods with the same shapes, in the same order.

    Attributes:
        group_reference: a weak reference to the process group. If a cell held the group at the end of the program, after
            ``destroy_process_group``, gloo would end the process with an error.
        rank: the number of this process in the group, from 0.
        size: W, the number of processes.
    """

    group_reference: weakref.ref[Any]
    rank: int
    size: int

    @classmethod
    def of(cls, group: Any = None) -> "Ranks":
        """Return the ranks of a process group; None: of all processes.

        Raises:
            Error: ``torch.distributed`` is not initialized, or this process is not in the group.
        """
        if not dist.is_available() or not dist.is_initialized():
            hint = "call torch.distributed.init_process_group first, in a program that torchrun starts"
            raise Error(f"group: torch.distributed is not initialized; expected a process group ({hint})")
        group = dist.group.WORLD if group is None else group
        if not isinstance(group, dist.ProcessGroup):
            raise Error(f"group is {group!r:.60}; expected a process group of torch.distributed that contains this process")
        return cls(weakref.ref(group), dist.get_rank(group), dist.get_world_size(group))

    @property
    def group(self) -> Any:
        """The process group.

        Raises:
            Error: it has been destroyed.
        """
        if (group := self.group_reference()) is None:
            raise Error("the process group of this cell or state has been destroyed; expected a group that exists")
        return group

    def all_reduce_(self, x: Tensor, purpose: str) -> Tensor:
        """Overwrite a contiguous ``x`` with its sum over the ranks, and return it. All ranks receive the same bits."""
        _check_no_transform()
        TRAFFIC.add(purpose, x)
        dist.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: Tensor, purpose: str) -> Tensor:
        """Return the tensors of all ranks, which have one shape, ``(…) -> (W, …)``, on every rank."""
        _check_no_transform()
        if x.dtype == torch.bool:
            return self.all_gather(x.to(torch.uint8), purpose).to(torch.bool)
        TRAFFIC.add(purpose, x)
        gathered = x.new_empty(self.size * x.numel())
        _all_gather(gathered, x.contiguous().flatten(), group=self.group)
        return gathered.view(self.size, *x.shape)

    def exchange(self, value: Any, purpose: str) -> list[Any]:
        """Return the JSON values of all ranks, in the order of the ranks. ``all_gather_object`` of PyTorch would use pickle."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self.all_gather(torch.tensor(len(text), device=self.device), purpose).tolist()
        padded = torch.nn.functional.pad(text, (0, max(sizes) - len(text)))
        texts = self.all_gather(padded.to(self.device), purpose).cpu()  # (W, longest)
        return [json.loads(bytes(x[:n].tolist())) for x, n in zip(texts, sizes, strict=True)]

    def broadcast_(self, x: Tensor, purpose: str) -> Tensor:
        """Overwrite a contiguous ``x`` with that of rank 0, and return it."""
        _check_no_transform()
        TRAFFIC.add(purpose, x)
        dist.broadcast(x, group=self.group, group_src=0)
        return x

    def send(self, x: Tensor, purpose: str) -> None:
        """Send ``x`` to rank 0."""
        TRAFFIC.add(purpose, x)
        dist.send(x.contiguous(), group=self.group, group_dst=0)

    def receive_(self, x: Tensor, rank: int) -> Tensor:
        """Overwrite a contiguous ``x`` with what ``rank`` sends, and return it."""
        dist.recv(x, group=self.group, group_src=rank)
        return x

    def raise_together(self, error: Exception | None) -> None:
        """Raise an error on every rank if one rank has one; the first rank with an error decides the message.

        Raises:
            Error: as described, or ``error`` itself on the rank that has it.
        """
        messages = self.exchange(None if error is None else str(error) or type(error).__name__, "errors")
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise Error(f"rank {rank}: {message}")

    def check_same(self, what: str, digest: str) -> None:
        """Refuse a digest that differs between the ranks.

        Raises:
            Error: on every rank, with the name ``what``.
        """
        digests = self.exchange(digest, "checks")
        for rank, other in enumerate(digests):
            if other != digests[0]:
                raise Error(f"rank {rank} has another {what} than rank 0; expected the same on all {self.size} ranks")

    def check_same_values(self, what: str, *values: object) -> None:
        """Refuse tensors, or other values with a text form, that differ between the ranks.

        Raises:
            Error: on every rank, with the name ``what``.
        """
        _check_no_transform()
        texts = [str(x.tolist()) if isinstance(x, Tensor) and not x.is_meta else str(x) for x in values]
        self.check_same(what, digest("\n".join(texts)))

    @property
    def device(self) -> torch.device:
        """A device with tensors that the group can send."""
        nccl_only = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl_only else torch.device("cpu")

    def __deepcopy__(self, memo: object) -> "Ranks":
        return self

    def __reduce__(self) -> Any:
        raise Error("a cell or a state of a process group cannot be pickled; expected save, which writes the whole of it")


def _all_gather(out: Tensor, x: Tensor, group: Any) -> None:
    """Gather flat tensors, by the name that the function has since PyTorch 2.13, or by its earlier one."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(out, x, group=group)


def _check_no_transform() -> None:
    if in_transform():
        raise Error("torch.func and forward-mode derivatives do not include other ranks; expected autograd's backward")
