r"""The cell: a pretrained decoder-only transformer as $(x_t, H_{t-1}) \mapsto (x_{t+1}, H_t)$ (arXiv:2401.06104, eq. 5).

Append, attend, reduce, one token at a time: the fold of :meth:`Cell.step` over a text is what reading that text means,
and every faster way has to give the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Error, check_device, check_dtype
from ..layers.rotary import Rope
from ..recurrence.trace import Trace
from ..recurrence.unroll import Events
from ..reductions.contract import Reduction
from ..reductions.registry import per_layer
from ..state.fingerprint import Fingerprint, version
from ..state.multistate import MultiState, join
from ..state.position_remapping import ABSOLUTE, Places
from ..state.state import State
from ..storage.files import atomic_dir
from ..storage.lazy_tensors import LazyTensor
from ..storage.model_folder import write_model_folder
from .validation import check_ids, check_state, check_text, check_token

CHUNK = 1024
"""Tokens, of all rows of the batch together, that pass the layers at once: enough to keep the processor busy."""

MOST = 2**24
"""Sequences side by side: no machine holds as many, and a slip of the finger should not try."""


class Cell(nn.Module, ABC):
    """What every family shares: the step, its fold, the state. A family says how a token enters, passes the layers
    and leaves."""

    config: Any
    layers: nn.ModuleList
    extra_files: Mapping[str, bytes] = MappingProxyType({})
    """Small files of the model (tokenizer, chat template) by name. :meth:`save` writes them next to the parameters."""

    # What a family says.

    @property
    @abstractmethod
    def default_reduction(self) -> Reduction:
        """The operator under which the cell is the published model."""

    @property
    @abstractmethod
    def facts(self) -> str:
        """In words, every fact of the config that enters a transition."""

    @property
    @abstractmethod
    def marks(self) -> list[Tensor]:
        """A few parameters that tell this model from another of the same shape; the first also gives dtype and
        device of a new state."""

    @property
    def rope(self) -> Rope | None:
        """How queries and keys are rotated; None where they are not."""
        return None

    @abstractmethod
    def empty_layer(self, batch_size: int, reduction: Reduction, clock: Tensor, dtype: torch.dtype) -> MultiState:
        """One layer's H before the first token."""

    @abstractmethod
    def transition(self, token: Tensor, state: State, active: Tensor | None, in_place: bool) -> tuple[Tensor, State]:
        """``(B,)`` ids and the state -> ``(B, E)``, what leaves the last layer, and the new state."""

    @abstractmethod
    def fold(
        self,
        tokens: Tensor,
        layers: Iterable[MultiState],
        active: Tensor | None,
        events: Sequence[Events] | None = None,
        own: bool = False,
    ) -> tuple[Tensor, list[MultiState]]:
        """T transitions at once: ``(B, T)`` ids, of which those where ``active (B, T)`` is false are not read ->
        ``(B, T, E)`` and the layers' new H. What happened in each layer is added to its ``events``. ``own``: whether nobody
        needs ``layers`` any more, so that the new H may be written over them."""

    @abstractmethod
    def read_out(self, x: Tensor) -> Tensor:
        """``(…, E) -> (…, V)``: final norm and vocabulary product."""

    # What a user calls.

    def initial_state(
        self,
        batch_size: int = 1,
        reduction: Reduction | str | Sequence[Reduction | str] | None = None,
        *,
        places: str = ABSOLUTE,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before the first token; the operator rides in it.

        Args:
            batch_size: sequences side by side.
            reduction: an operator, its text form, or one of either per layer; None is the family's own.
            places: where rows stand when they are read: "absolute", at their positions; "inside", counted among the rows of H
                (StreamingLLM); "compressed", gaps above 10 shortened (arXiv:2401.06104, extrapolation). See ``places.py``.
            device, dtype: the parameters' unless said.

        Raises:
            Error: a batch size below 1, an operator that does not fit the cell, places that are not known or of a cell that
                rotates nothing.
        """
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise Error(f"initial_state: batch_size is {batch_size!r:.60}; expected a whole number of at least 1")
        if batch_size > MOST:
            raise Error(f"initial_state: batch_size is {batch_size!r:.60}; expected at most {MOST}")
        check_dtype(dtype)
        check_device(device)
        operators = per_layer(self.default_reduction if reduction is None else reduction, len(self.layers))
        found, mark = Places.named(places, self.rope), self.marks[0]
        clock = torch.zeros(batch_size, dtype=torch.int64, device=device or mark.device)
        layers = [self.empty_layer(batch_size, operator, clock, dtype or mark.dtype) for operator in operators]
        return State((replace(H, places=found) for H in layers), self.fingerprint())

    def step(self, token: Tensor, state: State | None = None, *, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Read one token: ``(x_t, H_{t-1}) -> (logits, H_t)``. Pure: ``state`` is never edited and can be used again.

        Args:
            token: ``(B,)`` int64.
            state: H before the token; None is ``initial_state(B)``.
            active: ``(B,)`` bool; rows where it is false stand still, H and clock untouched (their logits mean nothing;
                where H still grows, it grows by a row that is empty to them, until a call drops it).

        Returns:
            logits ``(B, V)`` for the next token, and the new state.

        Raises:
            Error: a token of another shape or type, an id outside the vocabulary (looked at on the CPU only), a state
                of another model or batch size.
        """
        token, state = self._admit(token, state, active)
        x, state = self.transition(token, state, active, in_place=False)
        return self.read_out(x), state

    def step_(self, token: Tensor, state: State, *, active: Tensor | None = None) -> tuple[Tensor, State]:
        """The same transition in place: ``state`` itself moves on, its storage reused, and is returned.

        Raises:
            Error: as :meth:`step`, and where a graph would have to be edited (a state that carries one, or trainable
                parameters with gradients on).
        """
        if not isinstance(state, State):
            raise Error(f"step_: state is {type(state).__name__}; expected a State to move on, as initial_state gives")
        if not torch.compiler.is_compiling():
            if state.clock.is_inference() and not torch.is_inference_mode_enabled():
                raise Error("step_ cannot edit a state made under torch.inference_mode() outside of it; state.clone() can be")
            if state.carries_graph or self.builds_graph(state):
                raise Error("step_ edits the state in place, which a graph cannot follow; use step, or state.detach()")
        token, state = self._admit(token, state, active)
        x, after = self.transition(token, state, active, in_place=True)
        return self.read_out(x), state.become(after)

    def forward(
        self, tokens: Tensor, state: State | None = None, *, lengths: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, State]:
        """Read a text: what folding :meth:`step` over it gives, however it is split over calls, but the parameters are read
        once for many tokens (``fold.py``). Pure, as the step is.

        Args:
            tokens: ``(B, T)`` int64, right-padded where ragged; T may be 0.
            state: H before the text; None is ``initial_state(B)``.
            lengths: ``(B,)`` int64, row b reads its first ``lengths[b]`` tokens, 0 allowed.
            last_only: compute the vocabulary product at each row's last real token only.

        Returns:
            logits ``(B, T, V)``, NaN past a row's end, or with ``last_only`` ``(B, V)``, NaN for a row that read
            nothing; and the state after the text.

        Raises:
            Error: as :meth:`step`, ids checked on every device; lengths outside 0 … T.
        """
        tokens, lengths = check_text(tokens, lengths, self.config.vocab_size)
        B, T = tokens.shape
        state = self.initial_state(B) if state is None else state
        self.check_state(state, B)
        logits = self.marks[0].new_full((B, *(() if last_only else (T,)), self.config.vocab_size), torch.nan)
        rows, start, before = torch.arange(B, device=tokens.device), 0, state
        ended: list[tuple[Tensor, State]] = []  # rows of the batch that are at their end are laid aside
        while bool((over := lengths[rows] <= start).logical_not().any()):
            if bool(over.any()):
                ended.append((rows[over], state.select(over.nonzero()[:, 0])))
                rows, state = rows[~over], state.select((~over).nonzero()[:, 0])
            length = lengths[rows]
            stop = min(start + max(1, CHUNK // len(rows)), int(length.amax()))
            active = torch.arange(start, stop, device=tokens.device) < length[:, None]  # (B', t)
            some = None if stop <= int(length.amin()) else active
            x, layers = self.fold(tokens[rows, start:stop], state.ordered(), some, own=state is not before)
            state = state.with_layers(layers)
            if last_only:
                now = length <= stop
                logits[rows[now]] = self.read_out(x[now, length[now] - 1 - start])
            else:
                logits[rows, start:stop] = self.read_out(x).masked_fill(~active[..., None], torch.nan)
            start = stop
        if not ended:
            return logits, state.clone() if state is before else state
        ended.append((rows, state))
        back = torch.cat([rows for rows, _ in ended]).argsort()
        layers = [join(parts) for parts in zip(*(state for _, state in ended), strict=True)]
        return logits, state.with_layers(layers).select(back)

    def scan(
        self, tokens: Tensor, state: State | None = None, *, lengths: Tensor | None = None, weights: bool = False
    ) -> tuple[Tensor, Trace]:
        """The same fold, and what happened inside.

        Args:
            tokens, state, lengths: as of a call.
            weights: whether the trace also tells the operator's scores, T × (S + T) numbers a layer.

        Returns:
            logits ``(B, T, V)``, NaN past a row's end, and the :class:`Trace`: ``trace[l].left (B, K, T)``, the position that
            left at each token, and ``trace.at(n)``, the state after the first n tokens.

        Raises:
            Error: as a call.
        """
        tokens, lengths = check_text(tokens, lengths, self.config.vocab_size)
        B, T = tokens.shape
        state = self.initial_state(B) if state is None else state
        self.check_state(state, B)
        state = state.ordered()
        layers, read = list(state), [self.marks[0].new_zeros(B, 0, self.config.width)]
        events = [Events(scores=weights) for _ in layers]
        active = torch.arange(T, device=tokens.device) < lengths[:, None]  # (B, T)
        ragged = not bool(active.all())
        for start in range(0, T, step := max(1, CHUNK // B)):
            cut = slice(start, start + step)
            for layer in events:
                layer.last = start + step >= T
            x, layers = self.fold(tokens[:, cut], layers, active[:, cut] if ragged else None, events)
            read.append(x)
        logits = self.read_out(torch.cat(read, dim=1))
        return logits.masked_fill(~active[..., None], torch.nan) if ragged else logits, Trace(state, events)

    def save(self, folder: str | Path) -> None:
        """Write a model folder: config, parameters and extra files (:mod:`msrnn.storage.model_folder`).

        Args:
            folder: a path that does not exist, or an empty folder.

        Raises:
            Error: the folder exists and is not empty, or it cannot be written.
        """
        tensors = {name: LazyTensor.of(x) for name, x in self.state_dict().items()}
        with atomic_dir(folder) as target:
            write_model_folder(target, self.config.to_dict(), tensors, self.extra_files)

    # What guards them.

    def fingerprint(self) -> Fingerprint:
        """What tells this cell's states from another's; computed anew when a marked parameter has changed."""
        marks = self.marks
        key = tuple(map(version, marks))
        cached = getattr(self, "_fingerprint", None)
        if cached is None or cached[0] != key:
            self._fingerprint = cached = (key, Fingerprint.of(self.facts, marks))
        return cached[1]

    def check_state(self, state: State, batch_size: int) -> None:
        """Refuse a state of another model, batch size, dtype or device."""
        check_state(state, batch_size, self.fingerprint(), self.marks[0])

    def _admit(self, token: Tensor, state: State | None, active: Tensor | None) -> tuple[Tensor, State]:
        """Check a step's arguments; give its ids and the state it starts from."""
        token = check_token(token, active)
        state = self.initial_state(token.shape[0]) if state is None else state
        if not torch.compiler.is_compiling():
            if token.device.type == "cpu":
                check_ids(token, self.config.vocab_size)
            self.check_state(state, token.shape[0])
        return token, state

    def builds_graph(self, state: State) -> bool:
        """Whether a step from ``state`` is to be differentiated."""
        return torch.is_grad_enabled() and (state.carries_graph or any(p.requires_grad for p in self.parameters()))
