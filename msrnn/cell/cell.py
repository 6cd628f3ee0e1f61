r"""The cell: a decoder-only transformer as a recurrence, $(x_t, H_{t-1}) \mapsto (x_{t+1}, H_t)$ (arXiv:2401.06104, eq. 5).

:meth:`Cell.step` reads one token. Reading a text means one step per token; every faster path has to give the same result.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..errors import Error, check_device, check_int
from ..layers.differentiation import in_transform, is_batched_by_vmap
from ..layers.hooks import call_with_hooks, has_hooks
from ..recurrence.records import LayerRecorder
from ..recurrence.trace import Trace
from ..recurrence.transition import Writes
from ..reductions.contract import Reduction
from ..state.position_remapping import ABSOLUTE, PositionRemapping
from ..state.quantised_rows import parse_row_dtype
from ..state.state import State
from .capture import capture
from .chunking import ChunkReader
from .saving import SavedNetwork
from .validation import check_device_of_ids, check_ids, check_state, check_text, check_token


class Cell(SavedNetwork):
    """A decoder-only transformer as a multi-state RNN cell. A family is a subclass (``msrnn/models``)."""

    def initial_state(
        self,
        batch_size: int = 1,
        reduction: Reduction | str | Sequence[Reduction | str] | None = None,
        *,
        places: str = ABSOLUTE,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> State:
        """Return the state before the first token. The operator is part of the state.

        Args:
            batch_size: number of sequences.
            reduction: an operator or spec string, or one per layer. One for all bounds the layers that the published model does
                not bound, or all layers if it bounds every one (docs/families.md). None: the published model.
            places: position of a row at attention time: "absolute", its position in the text; "inside", its index among the
                cached rows (StreamingLLM); "compressed", with gaps above 10 shortened (arXiv:2401.06104, extrapolation).
            device, dtype: those of the parameters if None. ``torch.int8``: 8-bit rows (``msrnn/state/quantised_rows.py``).

        Raises:
            Error: a batch size below 1, an operator or a dtype that does not fit the cell, or unknown or impossible ``places``.
        """
        check_device(device)
        check_int("initial_state: batch_size", batch_size, at_most=2**24)  # more sequences are probably a typo
        operators = self.operators_per_layer(reduction, remapped=places != ABSOLUTE)
        if self.rank_part is not None:
            self.rank_part.ranks.check_same_values("initial state", batch_size, *operators, places, dtype)
        remappings = PositionRemapping.per_layer(places, [encoding.rope for encoding in self.position_encodings])
        clock, row_dtype = torch.zeros(batch_size, dtype=torch.int64, device=device or self.device), parse_row_dtype(dtype)
        layers = (self.init_layer_state(batch_size, operator, clock, row_dtype or self.dtype) for operator in operators)
        layers = (replace(H, places=remapping) for H, remapping in zip(layers, remappings, strict=True))
        return State(layers, self.fingerprint(recompute=True))

    capture = capture

    def step(self, token: Tensor, state: State | None = None, *, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Read one token: ``(x_t, H_{t-1}) -> (logits, H_t)``. Pure: ``state`` is not modified.

        Args:
            token: ``(B,)`` int64.
            state: the state before the token. None: ``initial_state(B)``.
            active: ``(B,)`` bool. The clock and the cached tokens of a sequence with False do not change, and its logits are
                arbitrary. While H still grows, an empty row is appended for such a sequence; later calls reuse or remove it.

        Returns:
            Logits ``(B, V)`` of the next token, and the new state.

        Raises:
            Error: a token of another shape or dtype, an id outside the vocabulary (checked on the CPU only), a state of
                another model or batch size.
        """
        if has_hooks(self):
            return call_with_hooks(self, "_step", token, state, active=active)
        return self._step(token, state, active=active)

    def _step(self, token: Tensor, state: State | None = None, *, active: Tensor | None = None) -> tuple[Tensor, State]:
        token, state = self._check_step(token, state, active)
        x, state = self.step_layers(token, state, active, in_place=False)
        return self._logits(x), state

    def step_(self, token: Tensor, state: State, *, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Read one token in place: as :meth:`step`, but overwrite ``state`` and return it.

        An exception, ctrl-C included, leaves all layers before or all after the token; or later calls refuse the state.

        Raises:
            Error: as :meth:`step`; a state that requires gradients, or trainable parameters while gradients are enabled.
        """
        if has_hooks(self):
            return call_with_hooks(self, "_step_in_place", token, state, active=active)
        return self._step_in_place(token, state, active=active)

    def _step_in_place(self, token: Tensor, state: State, *, active: Tensor | None = None) -> tuple[Tensor, State]:
        if not isinstance(state, State):
            raise Error(f"step_: state is {type(state).__name__}; expected a State, as initial_state returns it")
        if not torch.compiler.is_compiling():
            if state.clock.is_inference() and not torch.is_inference_mode_enabled():
                raise Error("step_ cannot modify a state made under torch.inference_mode() outside of it; use state.clone()")
            if state.requires_grad or self.needs_grad(state):
                raise Error("step_ works in place, which an autograd graph does not allow; use step, or state.detach()")
        token, state = self._check_step(token, state, active)
        writes: Writes = []  # done last, so that an exception before them leaves the state as it was
        x, after = self.step_layers(token, state, active, in_place=not in_transform(), writes=writes)
        return self._logits(x), state.assign_(after, writes)

    def forward(
        self, tokens: Tensor, state: State | None = None, *, lengths: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, State]:
        """Read many tokens, with the result of the step loop however the text is split over calls. Pure.

        The parameters are read once for many tokens (``msrnn/recurrence/unroll.py``).

        Args:
            tokens: ``(B, T)`` int64, right-padded if ragged; T may be 0.
            state: the state before the text. None: ``initial_state(B)``.
            lengths: ``(B,)`` int64; row b reads its first ``lengths[b]`` tokens, 0 allowed. None: all T.
            last_only: compute logits at the last token of each row only.

        Returns:
            Logits ``(B, T, V)``, NaN past the end of a row, or with ``last_only`` ``(B, V)``, NaN for a row without tokens;
            and the state after the text.

        Raises:
            Error: as :meth:`step`, with ids checked on every device; lengths outside 0 … T.
        """
        tokens, lengths, state = self._check_text(tokens, state, lengths, recompute=True)
        B, T = tokens.shape
        shape = (B, self.config.vocab_size) if last_only else (B, T, self.config.vocab_size)
        logits = torch.full(shape, torch.nan, dtype=self.dtype, device=self.device)
        reader = ChunkReader(self.unroll, tokens, lengths, state)
        for chunk in reader:
            if last_only:
                last = lengths[chunk.rows] - 1 - chunk.start  # (B',)
                ends = (last < chunk.stop - chunk.start).nonzero()[:, 0]
                logits[chunk.rows[ends]] = self._logits(chunk.x[ends, last[ends]])
            else:
                part = self._logits(chunk.x).masked_fill(~chunk.active[..., None], torch.nan)
                logits[chunk.rows, chunk.start : chunk.stop] = part
        return logits, reader.final_state()

    def scan(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        lengths: Tensor | None = None,
        weights: bool = False,
        logits: bool = True,
    ) -> tuple[Tensor, Trace]:
        """Read many tokens as :meth:`forward` does, and record the evictions of every layer.

        Args:
            tokens, state, lengths: as in :meth:`forward`.
            weights: record the scores of the operator too, T × (S + T) numbers per layer.
            logits: False to skip the LM head; the logits are then ``(B, T, 0)``.

        Returns:
            Logits ``(B, T, V)``, NaN past the end of a row, and the :class:`Trace`: ``trace[l].left (B, K, T)`` is the position
            evicted at each token, and ``trace.at(n)`` the state after the first n tokens.

        Raises:
            Error: as :meth:`forward`.
        """
        method = partial(call_with_hooks, self, "_scan") if has_hooks(self) else self._scan
        return method(tokens, state, lengths=lengths, weights=weights, logits=logits)

    def _scan(
        self, tokens: Tensor, state: State | None, *, lengths: Tensor | None, weights: bool, logits: bool
    ) -> tuple[Tensor, Trace]:
        tokens, lengths, state = self._check_text(tokens, state, lengths)
        state = state.sorted_by_position()
        recorders = [LayerRecorder(want_scores=weights) for _ in self.layers]
        parts = [torch.zeros(len(tokens), 0, self.config.vocab_size if logits else 0, dtype=self.dtype, device=self.device)]
        for chunk in ChunkReader(self.unroll, tokens, lengths, state, recorders):
            x = self._logits(chunk.x) if logits else chunk.x[..., :0]
            parts.append(x.masked_fill(~chunk.active[..., None], torch.nan))
        return torch.cat(parts, dim=1), Trace(state, recorders)

    def check_state(self, state: State, batch_size: int, *, recompute: bool = False) -> None:
        """Raise :class:`Error` for a state of another model, batch size, dtype or device; ``recompute`` as in `fingerprint`."""
        found = state.fingerprint if isinstance(state, State) else None
        fingerprint = self.fingerprint(recompute=recompute)
        if from_elsewhere := found is not fingerprint and found is not self._accepted:  # from a file, for example
            fingerprint = self.fingerprint(recompute=True)
        heads = None if self.rank_part is None else self.rank_part.heads
        check_state(state, batch_size, fingerprint, self.dtype, self.device, heads)
        if from_elsewhere and fingerprint.dtype:
            self._accepted = found
        self.position_encodings[0].check(state.dtype)

    def needs_grad(self, state: State) -> bool:
        """Return True if autograd has to record a step from ``state``."""
        return torch.is_grad_enabled() and (state.requires_grad or any(p.requires_grad for p in self.parameters()))

    def _logits(self, x: Tensor) -> Tensor:
        """Apply the final norm and the LM head, ``(…, E) -> (…, V)``, also under ``torch.autocast`` in the dtype of ``x``."""
        logits = self.compute_logits(x)
        return logits if logits.dtype == x.dtype else logits.to(x.dtype)

    def _check_step(self, token: Tensor, state: State | None, active: Tensor | None) -> tuple[Tensor, State]:
        token = check_token(token, active)
        state = self.initial_state(token.shape[0]) if state is None else state
        if not torch.compiler.is_compiling():
            check_device_of_ids("token is", token, self.device)
            self.check_state(state, token.shape[0])
            if token.device.type == "cpu" and not is_batched_by_vmap(token, state.clock):
                check_ids(token, self.config.vocab_size)
                self.check_length(state.clock + (1 if active is None else active))
        return token, state

    def _check_text(
        self, tokens: Tensor, state: State | None, lengths: Tensor | None, recompute: bool = False
    ) -> tuple[Tensor, Tensor, State]:
        if self.rank_part is not None:
            self.rank_part.ranks.check_same_values("text", tokens, lengths)
        tokens, lengths = check_text(tokens, lengths, self.config.vocab_size)
        check_device_of_ids("tokens are", tokens, self.device)
        state = self.initial_state(len(tokens)) if state is None else state
        self.check_state(state, len(tokens), recompute=recompute)
        return tokens, lengths, state
