"""``step_`` of a full state as a recording that a GPU replays in one call.

A step launches a few thousand short kernels, and on a GPU each launch takes longer than the kernel. Once a bounded state is
full, no shape changes and rows are overwritten in place, so the launches can be recorded once as a CUDA graph. A graph reads
and writes fixed addresses. Clock, row statistics and logits, which a step returns in new tensors, are copied to fixed ones.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..errors import Error, describe
from ..recurrence.transition import Writes
from ..reductions.contract import is_same_operator
from ..reductions.head_budgets import HeadBudget
from ..state.fingerprint import tensor_version
from ..state.multistate import MultiState
from ..state.state import State
from .capture_checks import check_capturable, check_full
from .recordable import RecordableOnly
from .validation import check_device_of_ids, check_token

if TYPE_CHECKING:
    from .cell import Cell

WARM_UP_CALLS = 2
"""Number of calls before a CUDA graph is recorded. They load kernels and allocate workspaces, which cannot be recorded."""


class Graph(Protocol):
    """A recording of the operations of one call, with fixed addresses."""

    def record(self, run: Callable[[], None]) -> None:
        """Call ``run`` at least once, and record its last call."""

    def replay(self) -> None:
        """Repeat the recorded operations on the same addresses."""


class CudaGraph:
    """A CUDA graph (``torch.cuda.CUDAGraph``)."""

    def __init__(self, device: torch.device):
        self._device, self._graph = device, torch.cuda.CUDAGraph()

    def record(self, run: Callable[[], None]) -> None:
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()  # the warm-up is not allowed on the default stream
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph):
                run()

    def replay(self) -> None:
        self._graph.replay()


GRAPHS: dict[str, Callable[[torch.device], Graph]] = {"cuda": CudaGraph}
"""The kind of recording by type of device."""


def capture(cell: "Cell", state: State) -> "CapturedStep":
    """Record :meth:`step_` of a full state as a CUDA graph, and return a step with the same contract.

    ``captured(token, active=None)`` is ``cell.step_(token, captured.state, active=active)`` without the time that Python and
    PyTorch need for each operation. Capturing itself takes several steps of time and copies ``state``.

    Args:
        state: a state on a CUDA device in which every layer is bounded and holds as many rows as its operator retains, in
            every sequence. The state is copied and stays as it is.

    Raises:
        Error: another device; a state that is unbounded, not full, has empty rows or requires gradients; an operator with
            ``depends_on_row_layout``; sizes per head or a shared budget for which a step copies the rows of one layer at a
            time; hooks; trainable parameters while gradients are enabled; autocast or a transform of ``torch.func``; a step
            that waits for the device or copies from the CPU.
    """
    check_capturable(cell, state, GRAPHS)
    with torch.inference_mode(False), torch.no_grad():
        return CapturedStep(cell, state, GRAPHS[cell.device.type](cell.device))


class CapturedStep:
    """A recorded step: ``captured(token, *, active=None) -> (logits, state)``, with the contract of :meth:`Cell.step_`.

    It owns its state, a copy of the captured one. Every call overwrites :attr:`state` and returns it; ``state.clone()`` keeps
    one. :meth:`copy_` continues from another state without a new recording. Logits are new tensors. Calls build no graph of
    autograd and call no hooks.

    A call is refused after the parameters have been edited or moved (noticed by the fingerprint tensors) and after ``step_``
    was called on :attr:`state`. Modules that are replaced after the recording are not noticed: capture again.

    Attributes:
        state: the state after the last call.
    """

    def __init__(self, cell: "Cell", state: State, graph: Graph):
        self._cell, self._graph = cell, graph
        self._token, self._active = torch.zeros_like(state.clock), torch.ones_like(state.clock, dtype=torch.bool)
        self._all_active = True
        self.state = state.with_layers(map(_without_empty_rows, state)).clone()
        self._logits, _ = cell.step_(self._token, self.state)  # allocates the spare row, and stacks the layers if they can be
        self._tensors = _tensors(self.state)
        self._recorded_versions = self._versions()
        try:
            with RecordableOnly():
                self._step()
            graph.record(self._step)
        except RuntimeError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise Error(f"capture: the step cannot be recorded ({reason}); use step_") from error
        self.copy_(state)

    def __call__(self, token: Tensor, *, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Read one token of every sequence.

        Args:
            token: ``(B,)`` int64 on the device of the cell. Ids are not checked, as in every step on a GPU.
            active: ``(B,)`` bool, as in :meth:`Cell.step`.

        Returns:
            Logits ``(B, V)`` of the next token, and :attr:`state`, overwritten.

        Raises:
            Error: a token of another shape, dtype or device, or the recording is not valid any more.
        """
        token = check_token(token, active)
        if token.shape != self._token.shape:
            raise Error(f"token is {describe(token)}; the captured state has batch size {len(self._token)}")
        check_device_of_ids("token is", token, self._token.device)
        self._check_valid()
        self._token.copy_(token)
        if active is not None:
            self._active.copy_(active)
        elif not self._all_active:
            self._active.fill_(True)
        self._all_active = active is None
        self._graph.replay()
        self.state.recent_tokens = None
        return self._logits.clone(), self.state

    def copy_(self, state: State) -> "CapturedStep":
        """Overwrite :attr:`state` with another full state of the same operators and batch size, and return self.

        Raises:
            Error: the state does not fit, or the recording is not valid any more.
        """
        self._check_valid()
        self._cell.check_state(state, len(self._token))
        for layer, (old, new) in enumerate(zip(self.state, state, strict=True)):
            check_full(f"copy_: layer {layer}", new)
            fits = is_same_operator(old.reduction, new.reduction) and old.places == new.places
            if not fits or _shape_of_rows(old) != _shape_of_rows(new) or old.keys.dtype != new.keys.dtype:
                found, expected = (f"{H.reduction} with keys {describe(H.keys)}" for H in (new, old))
                raise Error(f"copy_: layer {layer} has {found}; expected {expected}, and the same places")
        for old, new in zip(*_storage(self.state, state), strict=True):
            for name, x in old.rows.items():
                x.copy_(new.rows[name])
            old.clock.copy_(new.clock)
        self.state.recent_tokens = None if state.recent_tokens is None else state.recent_tokens.clone()
        return self

    def _step(self) -> None:
        """Read ``_token`` where ``_active``; read and write only tensors that exist before and after the call."""
        writes: Writes = []
        token = check_token(self._token, self._active)
        x, after = self._cell.step_layers(token, self.state, self._active, in_place=True, writes=writes)
        logits = self._cell._logits(x)
        for write in writes:
            write()
        self._logits.copy_(logits)
        for old, new in zip(self._tensors, _tensors(after), strict=True):
            if _address(old) != _address(new):
                old.copy_(new)

    def _versions(self) -> list[tuple[int, int, bool]]:
        return [tensor_version(x) for x in self._cell.identifying_tensors]

    def _check_valid(self) -> None:
        if self._versions() != self._recorded_versions:
            raise Error("the parameters have changed or moved since the step was captured; expected a new capture")
        if not any(self.state.clock is x for x in self._tensors):
            raise Error("step_ has changed the state of a captured step; expected a new capture, or step_ on a clone of it")


def _tensors(state: State) -> list[Tensor]:
    """Return all tensors of the layers, or of the stacked layers."""
    return [x for H in state._held for x in (*H.rows.values(), H.clock)]


def _storage(old: State, new: State) -> tuple[Iterable[MultiState], Iterable[MultiState]]:
    """Return what holds the rows of two states of the same operators: the layers, or all layers of the heads of one part."""
    stacked, _ = old.stacked()
    if stacked is None or stacked.is_view:
        return old, new
    others, _ = new.stacked()
    assert others is not None
    return stacked.parts, others.parts


def _without_empty_rows(H: MultiState) -> MultiState:
    """Return a full layer with the mark that no row is empty; not with uneven heads, which are stored in another way."""
    return H if isinstance(H.reduction, HeadBudget) else replace(H, no_empty_rows=True)


def _shape_of_rows(H: MultiState) -> tuple[int, ...]:
    """Return the shape of keys without the number of rows, which is that of the fullest head under a shared budget."""
    return *H.keys.shape[:2], *H.keys.shape[3:]


def _address(x: Tensor) -> tuple[int, tuple[int, ...]]:
    return x.data_ptr(), x.stride()
