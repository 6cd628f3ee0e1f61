"""Layers of a state to and from one safetensors file: rows, clock, operators and the fingerprint of the cell."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed.heads import RankHeads
from ..distributed.saving import gather_lazily, write_together
from ..errors import Error, describe
from ..layers.rotary import ROPE_TYPES, Rope
from ..reductions.contract import LEARNED
from ..reductions.head_budgets import HeadBudget, HeadSizes
from ..storage.atomic import atomic_file
from ..storage.files import reject_duplicate_keys
from ..storage.lazy_tensors import LazyTensor
from ..storage.safetensors_io import read_metadata, read_tensors, write_tensors
from .fingerprint import Fingerprint
from .jagged_rows import JaggedMultiState, padded
from .multistate import MultiState
from .operator_fields import constants_of, operator_from_dict, operator_to_dict, take_constants
from .position_remapping import PositionRemapping
from .quantised_rows import SCALES
from .row_checks import check_jagged, check_layers
from .split_heads import jagged_lazily, operator_of_all_ranks, padded_to_all_ranks

FORMAT, VERSION, INT8_VERSION, JAGGED_VERSION = "msrnn-state", "2", "3", "4"
"""States with 8-bit rows, and those with jagged rows, have versions of their own, because earlier releases cannot read them.
The rows of a state with jagged layers may have 8 bits."""
OWN_ENTRIES = ("format", "version", "operators", "cell", "places")
"""Names in the metadata of a state file that describe the state itself."""


def write_layers(
    layers: Sequence[MultiState],
    fingerprint: Fingerprint,
    path: str | Path,
    metadata: Mapping[str, str] | None,
    more: Mapping[str, Tensor],
) -> None:
    """Write the layers of a state to one safetensors file.

    All ranks of a split cell have to call this. Rank 0 writes the rows of all heads.

    Args:
        metadata: further strings by name, to be stored in the metadata of the file.
        more: further tensors of the state, ``logits (B, V)`` and ``recent_tokens (B, n)``.

    Raises:
        Error: keys or values that are not finite, logits of another shape, metadata that are not strings, the settings of an
            operator cannot be written and read back, or the path cannot be written to.
    """
    heads = layers[0].heads
    if heads is None:
        tensors, entries = _checked(layers, fingerprint, metadata, more)
        _write(path, {name: LazyTensor.of(x) for name, x in tensors.items()}, entries)
        return
    error, tensors, entries = None, dict[str, Tensor](), dict[str, str]()
    layers = [_for_one_file(H, heads) for H in layers]
    try:
        tensors, entries = _checked(layers, fingerprint, metadata, more)
    except Error as found:
        error = found
    heads.ranks.raise_together(error)
    shapes = [(name, tuple(x.shape), x.dtype) for name, x in tensors.items() if name.startswith("layers.")]
    heads.ranks.check_same_values("state", layers[0].clock, entries["operators"], shapes)
    places = {name: heads.placement if name.startswith("layers.") else None for name in tensors}
    whole = {name: gather_lazily(heads.ranks, x, places[name]) for name, x in tensors.items()}
    for i, H in enumerate(layers):
        if isinstance(H.reduction, HeadBudget):
            entries["version"] = JAGGED_VERSION
            whole |= jagged_lazily({name: whole[f"layers.{i}.{name}"] for name in H.rows}, H, f"layers.{i}.")
    write_together(heads.ranks, whole, partial(_write, path, entries=entries))


def _for_one_file(H: MultiState, heads: RankHeads) -> MultiState:
    """Return a layer of a rank with the shape that it has on all ranks, and the operator of all heads. Collective."""
    if not isinstance(H.reduction, HeadBudget):
        return H
    operator = operator_of_all_ranks(H.reduction, heads)
    return replace(padded_to_all_ranks(padded(H), heads), reduction=operator)


def _checked(
    layers: Sequence[MultiState], fingerprint: Fingerprint, metadata: Mapping[str, str] | None, more: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file; raises as :func:`write_layers`."""
    logits, B = more.get("logits"), len(layers[0].clock)
    if logits is not None and not (isinstance(logits, Tensor) and is_logits(logits, B)):
        raise Error(f"save: logits are {describe(logits)}; expected floating-point numbers of shape ({B}, V)")
    check_layers(layers, "save")
    tensors = {f"layers.{i}.{name}": x for i, H in enumerate(layers) for name, x in H.rows.items()}
    constants = {c.digest: c for H in layers for c in constants_of(H.reduction)}
    tensors |= {f"constants.{d}.{name}": x for d, c in constants.items() for name, x in c.tensors.items()}
    entries = {
        **_check_metadata(metadata or {}),
        "format": FORMAT,
        "version": _version(layers),
        "operators": json.dumps([operator_to_dict(H.reduction) for H in layers]),
        "cell": json.dumps(asdict(fingerprint)),
    }
    if layers[0].places is not None:
        entries["places"] = _places_to_json([H.places for H in layers])
    return {**tensors, "clock": layers[0].clock, **more}, entries


def _version(layers: Sequence[MultiState]) -> str:
    if any(isinstance(H, JaggedMultiState) for H in layers):
        return JAGGED_VERSION
    return INT8_VERSION if layers[0].is_quantised else VERSION


def _write(path: str | Path, tensors: Mapping[str, LazyTensor], entries: Mapping[str, str]) -> None:
    with atomic_file(path) as staging:
        write_tensors(staging, tensors, entries)


def _check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise Error(f"metadata are {describe(metadata)}; expected strings by name")
    for name, text in metadata.items():
        if not isinstance(name, str) or name in OWN_ENTRIES:
            raise Error(f"metadata have the name {name!r:.60}; expected a str other than {', '.join(OWN_ENTRIES)}")
        if not isinstance(text, str) or (name + text).encode(errors="replace").decode() != name + text:
            raise Error(f"metadata {name!r:.60} are {text!r:.60}; expected text in UTF-8 (json.dumps gives such a text)")
    return dict(metadata)


def read_layers(path: str | Path) -> tuple[list[MultiState], Fingerprint, dict[str, Tensor]]:
    """Read what :func:`write_layers` wrote: the layers, the fingerprint and the further tensors.

    Raises:
        Error: the file is missing, damaged, or not a saved state; an operator is not defined; or rows contradict their operator
            or the clock.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise Error(f"path is {path!r:.60}; expected a str or a Path")
    metadata, tensors = read_metadata(path), dict(read_tensors(path))
    if metadata.get("format") != FORMAT:
        raise Error(f"{path} is not a saved state (format {metadata.get('format')!r})")
    if (version := metadata.get("version")) not in (VERSION, INT8_VERSION, JAGGED_VERSION):
        expected = f"{VERSION!r}, {INT8_VERSION!r} or {JAGGED_VERSION!r}"
        raise Error(f"{path} is a saved state of version {version!r}; expected {expected}. To get one, read the text again")
    try:
        operators = json.loads(metadata["operators"], object_pairs_hook=reject_duplicate_keys)
        stored = take_constants(tensors)
        reductions = [operator_from_dict(_with_nested_sizes(fields), stored) for fields in operators]
        places = _places_from_json(metadata["places"], len(reductions)) if "places" in metadata else [None] * len(reductions)
        clock = tensors.pop("clock")
        more = {str(name): tensors.pop(name) for name in ("logits", "recent_tokens") if name in tensors}
        fingerprint = Fingerprint.from_dict(json.loads(metadata["cell"], object_pairs_hook=reject_duplicate_keys))
        has_scales = version == INT8_VERSION or (version == JAGGED_VERSION and "layers.0.key_scales" in tensors)
        layers = []
        for i, reduction in enumerate(reductions):
            rows: dict[str, Any] = {name: tensors.pop(f"layers.{i}.{name}") for name in ("keys", "values", "positions")}
            if has_scales:
                rows |= {name: tensors.pop(f"layers.{i}.{name}") for name in SCALES.values()}
            row_stats = {name: tensors.pop(f"layers.{i}.{name}") for name in reduction.stat_names}
            H = MultiState(**rows, clock=clock, reduction=reduction, row_stats=row_stats, places=places[i])
            if version == JAGGED_VERSION and isinstance(reduction, HeadBudget):
                if isinstance(reduction, HeadSizes) and reduction.own_heads is not False:
                    raise ValueError(f"layer {i} has the sizes of the heads of one process; expected those of all heads")
                H = JaggedMultiState(**vars(H), head_rows=tensors.pop(f"layers.{i}.head_rows"))
                check_jagged(H)
            layers.append(_with_counts(H))
        if version == JAGGED_VERSION and not any(isinstance(H, JaggedMultiState) for H in layers):
            raise ValueError(f"version {version} without jagged rows")
    except Error as error:
        raise Error(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise Error(f"{path}: the state is incomplete or damaged ({type(error).__name__}: {error})") from None
    if tensors:
        raise Error(f"{path}: tensor {next(iter(tensors))!r} is not part of a state")
    if not layers:
        raise Error(f"{path}: the state has no layers")
    check_layers(layers, str(path))
    B = len(clock)
    if "logits" in more and not is_logits(more["logits"], B):
        raise Error(f"{path}: logits of shape {tuple(more['logits'].shape)} contradict the batch size {B} of the state")
    if "recent_tokens" in more and not _are_recent_tokens(more["recent_tokens"], B):
        raise Error(f"{path}: the recent tokens of the state are damaged; expected int64 ids of shape ({B}, n)")
    return layers, fingerprint, more


def _with_nested_sizes(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an operator with sizes per head as ``[[64, 32]]``; files with padded rows have ``[64, 32]``."""
    if fields["class"] == HeadSizes.__name__:
        settings = fields["settings"]["operator"]["settings"]
        if not any(isinstance(x, list) for x in settings["size"]):
            settings["size"] = [settings["size"]]
    return fields


def _with_counts(H: MultiState) -> MultiState:
    """Return H with its number of learned rows, and with ``no_empty_rows`` if it has none."""
    n_learned = int((padded(H).positions == LEARNED).all(0).all(0).sum())
    empty = isinstance(H, JaggedMultiState) or bool(H.empty.any())
    return replace(H, no_empty_rows=not empty, n_learned=n_learned)


def is_logits(x: Tensor, batch_size: int) -> bool:
    """Return True for floating-point numbers of shape ``(B, V)``."""
    return x.is_floating_point() and x.ndim == 2 and x.shape[0] == batch_size and x.shape[1] > 0


def _are_recent_tokens(x: Tensor, batch_size: int) -> bool:
    return x.dtype == torch.int64 and x.ndim == 2 and x.shape[0] == batch_size and x.shape[1] > 0 and bool((x >= -1).all())


def _places_to_json(places: Sequence[PositionRemapping | None]) -> str:
    """Return the rule and the rotary embedding; a list with one per layer where the layers differ."""
    ropes = [None if x is None or x.rope is None else x.rope.to_dict() for x in places]
    assert places[0] is not None
    return json.dumps({"rule": places[0].rule, "rope": ropes if any(rope != ropes[0] for rope in ropes) else ropes[0]})


def _places_from_json(text: str, n_layers: int) -> list[PositionRemapping]:
    fields = json.loads(text, object_pairs_hook=reject_duplicate_keys)
    rule, ropes = fields["rule"], fields["rope"]
    ropes = ropes if isinstance(ropes, list) else [ropes] * n_layers
    if len(ropes) != n_layers or fields.keys() != {"rule", "rope"}:
        raise ValueError("places do not fit the layers")

    def rope(values: dict[str, Any] | None) -> Rope | None:
        if values is None:
            return None
        return ROPE_TYPES[values["rope_type"]](**{name: x for name, x in values.items() if name != "rope_type"})

    return [PositionRemapping(rule, rope(values)) for values in ropes]
