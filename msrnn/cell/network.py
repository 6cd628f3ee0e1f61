"""Embedding, recurrent layers and LM head: the methods that a family defines, and the loops over the layers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.attention import LogitRule
from ..layers.differentiation import in_transform
from ..layers.hooks import call_layer, has_hooks
from ..layers.positional import PositionEncoding, PositionTensors
from ..recurrence.block_layout import token_positions
from ..recurrence.records import LayerRecorder, SharedAcrossLayers
from ..recurrence.transition import Writes
from ..reductions.calibrated import CalibratedReduction, ModelSizes
from ..reductions.contract import Reduction
from ..reductions.head_budgets import HeadBudget, scoring_operator
from ..reductions.per_layer import per_layer
from ..state.fingerprint import Fingerprint
from ..state.jagged_rows import jagged_if_uneven
from ..state.multistate import MultiState
from ..state.quantised_rows import QUANTISED_DTYPE, SCALES
from ..state.split_heads import operator_of_rank
from ..state.state import State
from .constants import check_constants
from .layer import RecurrentLayer
from .parameters import ParameterAccess
from .stacked_step import stacked_step


class RecurrentNetwork(ParameterAccess, ABC):
    """A stack of recurrent layers between an embedding and an LM head. :class:`Cell` adds the calls for users."""

    layers: nn.ModuleList
    extra_files: Mapping[str, bytes] = MappingProxyType({})
    """Small files that belong to the model (tokenizer, chat template), by name. ``save`` copies them."""

    # Defined by a family.

    @property
    @abstractmethod
    def default_reduction(self) -> Reduction | tuple[Reduction, ...]:
        """The operator with which the cell equals the published model; one per layer if the layers differ."""

    @property
    def kv_dim(self) -> int:
        """Length of a cached key and of a cached value, the same in all layers."""
        return self.config.head_dim + self.position_encodings[0].extra_dims

    @property
    def n_kv_heads(self) -> int:
        """Number of key/value heads of a state: K, or those of this rank in a split cell."""
        return self.config.n_kv_heads if self.rank_part is None else self.rank_part.heads.count

    @property
    def sizes(self) -> ModelSizes:
        """The sizes that the constants of an operator depend on."""
        c = self.config
        return ModelSizes(len(self.layers), c.n_heads, c.n_kv_heads, c.head_dim, c.width)

    @property
    def constants_fingerprints(self) -> list[Fingerprint]:
        """The models that constants may belong to: this one, and the model without its adapters."""
        base = [self._read_fingerprint(self.fingerprint_tensors, [])] if self.adapters else []
        return [self.fingerprint(recompute=True), *base]

    def operators_per_layer(
        self, reduction: Reduction | str | Sequence[Reduction | str] | None, remapped: bool = False
    ) -> list[Reduction]:
        """Return the operator of each layer, as :func:`per_layer` does; ``remapped``: positions are remapped.

        Raises:
            Error: as :func:`per_layer`; constants of another model, or that need the positions in the text; sizes per head that
                do not fit the heads.
        """
        operators = per_layer(reduction, self.sizes.n_layers, self.default_reduction)
        budgets = [operator for operator in operators if isinstance(operator, HeadBudget)]
        for budget in budgets:
            budget.check_heads(self.sizes.n_kv_heads)
        scoring = [scoring_operator(operator) for operator in operators]
        if any(isinstance(operator, CalibratedReduction) for operator in scoring):
            check_constants(scoring, self.sizes, self.constants_fingerprints, remapped)
        return operators

    def embed_tokens(self, token: Tensor, position: Tensor) -> Tensor:
        """Embed ids ``(…,)`` at ``position (…,)`` as the input of the first layer, ``(…, E)``."""
        return self.embed(token)

    @abstractmethod
    def compute_logits(self, x: Tensor) -> Tensor:
        """Apply the final norm and the LM head: ``(…, E) -> (…, V)``."""

    def check_length(self, clock: Tensor) -> None:
        """Check that the cell has positions for a text; ``clock (B,)`` is the clock after the text.

        Raises:
            Error: the text is too long. Most families have no limit.
        """

    def init_layer_state(self, batch_size: int, reduction: Reduction, clock: Tensor, dtype: torch.dtype) -> MultiState:
        """Return the empty H of one layer, with keys and values of ``dtype``, floating-point or int8.

        Raises:
            Error: the position encoding does not allow the operator or the dtype.
        """
        self.position_encodings[0].check(dtype, reduction.needs_keys or reduction.needs_queries)
        shape, quantised = (batch_size, self.n_kv_heads, 0), dtype == QUANTISED_DTYPE
        keys = torch.empty(*shape, self.kv_dim, dtype=dtype, device=clock.device)
        positions = torch.empty(shape, dtype=torch.int64, device=clock.device)
        wide = torch.promote_types(self.dtype if quantised else dtype, torch.float32)
        row_stats = {name: keys.new_empty(*shape, *reduction.stat_shape(name), dtype=wide) for name in reduction.stat_names}
        scales: dict[str, Any] = (
            {name: keys.new_empty(shape, dtype=torch.float32) for name in SCALES.values()} if quantised else {}
        )
        heads = None if self.rank_part is None else self.rank_part.heads
        operator = operator_of_rank(reduction, heads)
        return MultiState(keys, keys.clone(), positions, clock, operator, row_stats, no_empty_rows=True, heads=heads, **scales)

    # The same for all families.

    def step_layers(
        self, token: Tensor, state: State, active: Tensor | None, in_place: bool, writes: Writes | None = None
    ) -> tuple[Tensor, State]:
        """Run the layers on tokens ``(B,)`` without logits, by :func:`stacked_step` or by a loop over the layers.

        Args:
            token, active: as of :meth:`Cell.step`.
            state: the state before the tokens.
            in_place, writes: as of :meth:`RecurrentLayer.step`.

        Returns:
            The output of the last layer ``(B, E)``, and the state after the tokens.
        """
        x = self._input(token, state.clock)  # (B, E)
        position_tensors = self.prepare_positions(None if state.places else state.clock, x.dtype)
        if not (state.places or state.requires_grad or in_transform()) and (plain := self._plain_layers()):
            fast = stacked_step(plain, x, state, position_tensors, active, in_place, writes)
            if fast is not None:
                return fast
        layers = []
        for layer, H, tensors in zip(self.layers, state, position_tensors, strict=True):
            x, H = call_layer(layer, x, H, active=active, position_tensors=tensors, in_place=in_place, writes=writes)
            layers.append(jagged_if_uneven(H))
        return x, state.with_layers(layers)

    def unroll(
        self,
        tokens: Tensor,
        layers: Iterable[MultiState],
        active: Tensor | None,
        recorders: Sequence[LayerRecorder] | None = None,
        donate: bool = False,
        make_state: bool = True,
    ) -> tuple[Tensor, list[MultiState]]:
        """Run all layers on T tokens, without logits.

        Args:
            tokens: ``(B, T)`` ids.
            layers: H of every layer before the tokens.
            active: ``(B, T)`` bool; tokens where it is false are not read. None: all are read.
            recorders: one per layer, to record the evictions. None: nothing is recorded.
            donate: True if the storage of ``layers`` may be overwritten.
            make_state: False if no tokens follow, so that the states after the tokens are not needed.

        Returns:
            The output of the last layer ``(B, T, E)``, and H of every layer after the tokens.
        """
        layers = layers if isinstance(layers, State) else list(layers)  # a State copies one jagged layer at a time
        clock, T = layers[0].clock, tokens.shape[1]
        self.check_length(clock + (T if active is None else active.sum(1)))
        position = token_positions(clock, active, T)
        x = self._input(tokens, position)  # (B, T, E)
        position_tensors = self.prepare_positions(None if layers[0].places else position, x.dtype)
        return self.run_layers(x, position_tensors, layers, active, recorders, donate, make_state)

    def run_layers(
        self,
        x: Tensor,
        position_tensors: Sequence[PositionTensors | None],
        layers: Iterable[MultiState],
        active: Tensor | None = None,
        recorders: Sequence[LayerRecorder] | None = None,
        donate: bool = False,
        make_state: bool = True,
    ) -> tuple[Tensor, list[MultiState]]:
        """Run all layers on embedded tokens ``(B, T, E)``, given :meth:`prepare_positions` of them; else as :meth:`unroll`."""
        after: list[MultiState] = []
        shared = SharedAcrossLayers(donate=donate, make_state=make_state)
        for i, (layer, H, tensors) in enumerate(zip(self.layers, layers, position_tensors, strict=True)):
            recorder = None if recorders is None else recorders[i]
            x, H = call_layer(layer, x, H, position_tensors=tensors, active=active, recorder=recorder, shared=shared)
            after.append(jagged_if_uneven(H))
        return x, after

    def of_rank_0(self, x: Tensor) -> Tensor:
        """Return ``x`` of rank 0 in a split cell, so that all ranks choose the same token; otherwise ``x`` itself."""
        return x if self.rank_part is None else self.rank_part.ranks.broadcast_(x.contiguous(), "choices")

    def _input(self, token: Tensor, position: Tensor) -> Tensor:
        """Return the embedded ids in the dtype of the cell, although an adapter of the embedding may have another one."""
        x, dtype = self.embed_tokens(token, position), self.dtype
        return x if x.dtype == dtype else x.to(dtype)

    def _plain_layers(self) -> list[RecurrentLayer] | None:
        """Return the layers if a call of each is :meth:`RecurrentLayer.step`; None if one has a hook or has been replaced."""
        layers = list(self.layers)
        plain = all(isinstance(x, RecurrentLayer) and type(x).step is RecurrentLayer.step and not has_hooks(x) for x in layers)
        return layers if plain else None  # type: ignore[return-value]

    @property
    def position_encodings(self) -> list[PositionEncoding]:
        """The position encoding in attention of each layer."""
        return [_unwrapped(layer).position_encoding for layer in self.layers]

    @property
    def logit_rules(self) -> list[LogitRule]:
        """The rule of attention logits of each layer."""
        return [_unwrapped(layer).logit_rule for layer in self.layers]

    def prepare_positions(self, position: Tensor | None, dtype: torch.dtype) -> list[PositionTensors | None]:
        """Return what the position encoding of each layer needs for tokens at ``position (…,)`` int64.

        Layers that share an encoding share the tensors. None: tokens without a position, or rows with remapped positions.
        """
        if position is None:
            return [None] * len(self.layers)
        known: list[tuple[PositionEncoding, PositionTensors | None]] = []
        prepared: list[PositionTensors | None] = []
        for encoding in self.position_encodings:
            found = next((i for i, (other, _) in enumerate(known) if other is encoding), len(known))
            if found == len(known):
                known.append((encoding, encoding.prepare(position, dtype)))
            prepared.append(known[found][1])
        return prepared


def _unwrapped(layer: nn.Module) -> RecurrentLayer:
    """Return the layer within ``layer``, which may be a wrapper."""
    return layer if isinstance(layer, RecurrentLayer) else next(x for x in layer.modules() if isinstance(x, RecurrentLayer))
