"""States and the ``DynamicCache`` of transformers: read a text with one library and continue it with the other.

A layer of the cache has keys and values ``(B, K, S, D)`` of the newest S tokens, rotated at absolute positions as the rows of
H are. In a layer without a window these are all tokens. In a layer with a window W they are the newest W - 1 tokens, which are
the rows that ``Window(W - 1)`` retains. A cache has no positions, so only states with exactly these rows have a counterpart. It
has no mask either, so the mask of a padded batch is an argument.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, describe, missing_package
from ..reductions.contract import EMPTY, Reduction
from ..reductions.head_budgets import HeadBudget
from ..reductions.per_layer import per_layer
from ..state.multistate import MultiState
from ..state.state import State

if TYPE_CHECKING:
    from transformers import DynamicCache


def state_from_cache(
    cell: Cell,
    cache: "DynamicCache",
    reduction: Reduction | str | Sequence[Reduction | str] | None = None,
    *,
    attention_mask: Tensor | None = None,
) -> State:
    """Return the state of ``cell`` after the text that a model of transformers has read into ``cache``.

    The model has to be the one that ``cell`` was loaded from. Shapes and windows are compared, but a cache does not show the
    weights, and a pruned cache looks like that of a shorter text. The state shares no storage with the cache.

    Args:
        cell: the cell to continue with.
        cache: what ``model(…).past_key_values`` returns; its layers are dynamic, with or without sliding windows.
        reduction: as of :meth:`msrnn.Cell.initial_state`. An operator other than that of the published model has to be one that
            keeps no statistics and would not have evicted yet, because transformers has read the text without it.
        attention_mask: ``(B, T)`` bool, or 0 and 1, of a padded batch: the mask of the whole text that is in the cache. The
            first token of each row has position 0, as in ``model.generate`` and in every text that is padded on the right.
            None: no padding.

    Raises:
        Error: the package transformers is missing; the cache is empty, of another class, or does not fit the cell; its dtype or
            device is not that of the cell; its numbers are not finite; rows that the operator retains are absent; the operator
            cannot continue; the keys of a text of this length depend on how it was read (dynamic NTK scaling and LongRoPE
            beyond the original length).
    """
    layers = _dynamic_layers(cache)
    published = per_layer(None, len(cell.layers), cell.default_reduction)
    if len(layers) != len(published):
        raise Error(f"cache has {len(layers)} layers; expected {len(published)}, those of the cell")
    T, B = layers[0].get_seq_length(), layers[0].keys.shape[0]
    positions = _token_positions(attention_mask, B, T, cell.device)  # (B, T)
    clock = (positions >= 0).sum(1)
    state = cell.initial_state(B, reduction)
    longest = int(clock.max()) if B else 0
    _check_rotation(cell, longest)
    filled = []
    for i, (H, layer, own) in enumerate(zip(state, layers, published, strict=True)):
        name = f"layer {i} of the cache"
        _check_layer(name, layer, H, own, T, cell)
        _check_operator(f"layer {i}", H.reduction, own, longest)
        first = T - layer.keys.shape[2]
        needed = positions >= _first_retained(own, clock)[:, None]  # (B, T)
        if bool(needed[:, :first].any()):
            raise Error(f"{name} has the newest {T - first} of {T} tokens; expected all that {own} retains of each text")
        kept = positions.masked_fill(~needed, EMPTY)[:, first:]  # (B, S)
        empty = (kept == EMPTY)[:, None, :, None]  # (B, 1, S, 1); padding may have any numbers
        rows = {"keys": layer.keys.detach().masked_fill(empty, 0), "values": layer.values.detach().masked_fill(empty, 0)}
        if not all(bool(x.isfinite().all()) for x in rows.values()):
            raise Error(f"{name} has NaN or infinite keys or values; expected finite numbers")
        rows["positions"] = kept[:, None].repeat(1, layer.keys.shape[1], 1)  # (B, K, S)
        filled.append(H.with_rows(rows, clock).sorted_by_position())
    return state.with_layers(filled)


def cache_from_state(cell: Cell, state: State) -> "DynamicCache":
    """Return a cache with the rows of ``state``, so that the model of transformers continues the text.

    The cache shares no storage with the state.

    Args:
        cell: the cell that ``state`` belongs to.
        state: a state of equally long texts with all rows that the published model retains: all tokens, in a layer with a
            window W the newest W - 1. Other operators are accepted as long as they have evicted nothing.

    Raises:
        Error: the package transformers is missing; the state belongs to another cell, has texts of different lengths, int8
            rows, remapped positions or learned rows, or a row has been evicted that the published model retains.
    """
    cell.check_state(state, len(state.clock))
    if state.heads is not None:
        raise Error(f"state holds {state.heads}; expected all heads, as a saved state has them (msrnn.load_state)")
    transformers_cache = _cache_classes()
    lengths = sorted(set(state.clock.tolist()))
    if len(lengths) != 1:
        found = f"texts of {', '.join(map(str, lengths))} tokens" if lengths else "no text"
        raise Error(f"state has {found}; expected equal lengths, because a DynamicCache has no mask (see state.select)")
    if state[0].is_quantised:
        raise Error(f"state has int8 rows; expected {cell.dtype} (see state.to)")
    if state.places is not None:
        raise Error(f"state has places {state.places.rule}, with keys that are not rotated; expected absolute positions")
    _check_rotation(cell, lengths[0])
    published = per_layer(None, len(cell.layers), cell.default_reduction)
    cache = transformers_cache.DynamicCache()
    for i, (H, own) in enumerate(zip(state, published, strict=True)):
        _check_rows_of_model(f"layer {i}", cell, H.n_learned, H.keys.shape[-1])
        _check_operator(f"layer {i}", H.reduction, own, lengths[0], with_stats=True)
        H = H.sorted_by_position()
        first = int(_first_retained(own, H.clock)[0])
        expected = torch.arange(first, lengths[0], device=H.positions.device)
        if H.positions.shape[2] != len(expected) or bool((H.positions != expected).any()):
            raise Error(f"layer {i} has evicted rows; expected those of all positions from {first} to {lengths[0] - 1}")
        layer = transformers_cache.DynamicLayer()
        if own.size == 0:  # its DynamicSlidingWindowLayer then attends to rows that it should have dropped
            raise Error(f"layer {i} has a window of 1, which the caches of transformers do not handle; expected at least 2")
        if own.size is not None:
            layer = transformers_cache.DynamicSlidingWindowLayer(sliding_window=int(own.size) + 1)  # type: ignore[arg-type]
        layer.update(H.keys, H.values)  # copies them
        if own.size is not None:
            layer.cumulative_length = lengths[0]
        cache.layers.append(layer)
    return cache


def _cache_classes() -> Any:
    """Return the module of transformers that defines the caches."""
    try:
        from transformers import cache_utils
    except ImportError:
        raise missing_package("transformers", "transformers") from None
    return cache_utils


def _dynamic_layers(cache: Any) -> list[Any]:
    """Return the layers of a cache that has read some text."""
    classes = _cache_classes()
    if not isinstance(cache, classes.Cache):
        raise Error(f"cache is {describe(cache)}; expected a DynamicCache of transformers")
    layers = list(cache.layers)
    for i, layer in enumerate(layers):
        if type(layer) not in (classes.DynamicLayer, classes.DynamicSlidingWindowLayer):
            raise Error(f"layer {i} of the cache is a {type(layer).__name__}; expected one of a DynamicCache")
    if not layers or any(not layer.is_initialized for layer in layers):
        raise Error("cache is empty; expected one that has read a text, or cell.initial_state for a new text")
    return layers


def _token_positions(mask: Tensor | None, B: int, T: int, device: torch.device) -> Tensor:
    """Return the position of each token ``(B, T)`` int64, -1 for padding."""
    if mask is None:
        return torch.arange(T, device=device).expand(B, T)
    if not isinstance(mask, Tensor) or mask.shape != (B, T) or not bool(((mask == 0) | (mask == 1)).all()):
        raise Error(f"attention_mask is {describe(mask)}; expected zeros and ones of shape {(B, T)}, as the text in the cache")
    seen = mask.to(device) != 0
    if bool(((seen[:, 1:] != seen[:, :-1]).sum(1) > 1).any()) or not bool(seen.any(1).all()):
        raise Error("attention_mask has gaps or rows without tokens; expected padding on one side of each row")
    return (seen.long().cumsum(1) - 1).masked_fill(~seen, EMPTY)


def _first_retained(own: Reduction, clock: Tensor) -> Tensor:
    """Return the oldest position ``(B,)`` that the published model retains after ``clock (B,)`` tokens."""
    return torch.zeros_like(clock) if own.size is None else (clock - own.size).clamp(min=0)  # type: ignore[operator]


def _check_rotation(cell: Cell, longest: int) -> None:
    """Refuse a text if its keys depend on how it was read."""
    for encoding in cell.position_encodings:
        rope: Any = encoding.rope
        if rope is not None and not rope.relative and longest > rope.original_length:
            kind = f"{type(rope).__name__} rotates keys by the length at which they were read"
            raise Error(f"the text has {longest} tokens, and {kind}; expected at most {rope.original_length} tokens")


def _check_layer(name: str, layer: Any, H: MultiState, own: Reduction, T: int, cell: Cell) -> None:
    """Refuse a layer of the cache that does not fit the cell."""
    _check_rows_of_model(name, cell, H.n_learned, H.keys.shape[-1])
    (B, K, _, D), found = H.keys.shape, tuple(layer.keys.shape)
    if (found[:2], found[3]) != ((B, K), D) or layer.values.shape != layer.keys.shape:
        raise Error(f"{name} has keys {found}; expected ({B}, {K}, S, {D}), as the cell")
    for x in (layer.keys, layer.values):
        if x.dtype != cell.dtype or x.device != cell.device:
            raise Error(f"{name} is {x.dtype} on {x.device}; expected {cell.dtype} on {cell.device}, as the cell")
    if layer.get_seq_length() != T:
        raise Error(f"{name} has read {layer.get_seq_length()} tokens; expected {T}, as layer 0")
    window = getattr(layer, "sliding_window", None)
    if window is not None and own.size != window - 1:
        raise Error(f"{name} has a sliding window of {window}; expected that of the cell ({own})")


def _check_rows_of_model(name: str, cell: Cell, n_learned: int, dim: int) -> None:
    if n_learned or dim != cell.config.head_dim:
        raise Error(f"{name}: this cell caches learned rows or longer keys, which a DynamicCache has no place for")


def _check_operator(name: str, operator: Reduction, own: Reduction, longest: int, with_stats: bool = False) -> None:
    """Refuse an operator under which the rows of the published model are not those of the state.

    ``with_stats``: True if the statistics of the operator are known or not needed.
    """
    if operator == own or not longest:
        return
    if operator.stat_names and not with_stats:
        raise Error(f"{name}: {operator} needs statistics of the tokens that were read; expected an operator that keeps none")
    bound = operator.rows_before_eviction if isinstance(operator, HeadBudget) else operator.size
    for size in (bound, own.size):
        if size is not None and longest > size:  # type: ignore[operator]
            found = f"{longest} tokens were read, and {operator} and the published model ({own}) differ beyond {size}"
            raise Error(f"{name}: {found}; expected {own}, or a shorter text")
