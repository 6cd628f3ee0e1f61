"""A state on disk: one safetensors file with the rows, the clock, the operators and what tells the cell."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import Error, check_device
from ..layers.rotary import KINDS
from ..reductions.contract import EMPTY, LEARNED, Reduction
from ..reductions.registry import kinds
from ..storage.files import atomic_file, reject_duplicate_keys
from ..storage.lazy_tensors import LazyTensor
from ..storage.safetensors_io import read_metadata, read_tensors, write_tensors
from .fingerprint import Fingerprint
from .multistate import MultiState
from .position_remapping import Places
from .state import State

FORMAT, VERSION = "msrnn-state", "1"


def save_state(state: State, path: str | Path, more: Mapping[str, str] | None = None) -> None:
    """Write ``state`` to one safetensors file: rows, clock, operators with their numbers, the cell's fingerprint; and ``more``
    text beside them, by name, for ``safetensors_io.read_metadata``.

    Raises:
        Error: an operator whose settings are not JSON; a place that cannot be written to.
    """
    tensors = {f"layers.{i}.{name}": LazyTensor.of(x) for i, H in enumerate(state) for name, x in H.rows.items()}
    operators = [{"operator": type(H.reduction).__name__, **asdict(H.reduction)} for H in state]
    try:
        operators_text = json.dumps(operators)
    except TypeError as wrong:
        raise Error(f"save: the settings of {state[0].reduction} cannot be written as JSON ({wrong})") from None
    about = {
        **(more or {}),
        "format": FORMAT,
        "version": VERSION,
        "operators": operators_text,
        "cell": json.dumps(asdict(state.fingerprint)),
    }
    if state.places is not None:
        kind = next(name for name, rope in KINDS.items() if type(state.places.rope) is rope)
        about["places"] = json.dumps({"rule": state.places.rule, "rope": {"kind": kind, **asdict(state.places.rope)}})
    with atomic_file(path) as beside:
        write_tensors(beside, {**tensors, "clock": LazyTensor.of(state.clock)}, about)


def load_state(path: str | Path, *, device: torch.device | str | None = None) -> State:
    """Read a state that :meth:`State.save` wrote. An operator of one's own has to be defined (imported) before.

    Raises:
        Error: a file that is missing, corrupt or no state; rows that contradict the operator or the clock.
    """
    check_device(device)
    about, tensors = read_metadata(path), dict(read_tensors(path))
    if (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise Error(f"{path} is not a saved state (format {about.get('format')!r}, version {about.get('version')!r})")
    try:
        operators = json.loads(about["operators"], object_pairs_hook=reject_duplicate_keys)
        reductions = [_operator(facts) for facts in operators]
        places = _places(about["places"]) if "places" in about else None
        clock = tensors.pop("clock")
        fingerprint = _fingerprint(json.loads(about["cell"], object_pairs_hook=reject_duplicate_keys))
        layers = []
        for i, reduction in enumerate(reductions):
            rows = {name: tensors.pop(f"layers.{i}.{name}") for name in ("keys", "values", "positions", *reduction.stat_names)}
            row_stats = {name: rows[name] for name in reduction.stat_names}
            H = MultiState(rows["keys"], rows["values"], rows["positions"], clock, reduction, row_stats, places=places)
            pinned = int((H.positions == LEARNED).all(0).all(0).sum())
            layers.append(replace(H, gapless=not bool(H.empty.any()), pinned=pinned))
    except Error:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as wrong:
        raise Error(f"{path}: the state is incomplete or damaged ({type(wrong).__name__}: {wrong})") from None
    if tensors:
        raise Error(f"{path}: tensor {next(iter(tensors))!r} is not part of a state")
    if not layers:
        raise Error(f"{path}: the state has no layers")
    for i, H in enumerate(layers):
        _check_layer(H, layers[0], f"{path}: layer {i}")
    state = State(layers, fingerprint)
    return state if device is None else state.to(device)


def _fingerprint(cell: dict[str, Any]) -> Fingerprint:
    facts, dtype, values = cell["signature"], cell["dtype"], cell["values"]
    plain = isinstance(values, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    if not (plain and isinstance(facts, str) and isinstance(dtype, str)):
        raise TypeError("the cell is not told by two texts and numbers")
    return Fingerprint(facts, dtype, tuple(map(float, values)))


def _places(text: str) -> Places:
    facts = json.loads(text, object_pairs_hook=reject_duplicate_keys)
    rope = KINDS[facts["rope"].pop("kind")](**facts.pop("rope"))
    return Places(**facts, rope=rope)


def _operator(facts: dict[str, Any]) -> Reduction:
    """An operator by the name of its class, among those defined so far; nothing is imported for it."""
    name = facts.pop("operator")
    named = [kind for kind in kinds() if kind.__name__ == name]
    if not named:
        raise Error(f"operator {name!r} is not defined; import the class before the state is loaded")
    return named[-1](**{key: tuple(v) if isinstance(v, list) else v for key, v in facts.items()})


def _check_layer(H: MultiState, first: MultiState, where: str) -> None:
    B, K, S, _ = H.keys.shape if H.keys.ndim == 4 else (0, 0, 0, 0)
    pinned, clock = H.pinned, H.clock
    alone = H.reduction.size is None and bool((H.positions < 0).all())  # such rows and no others: a batch may be ragged
    least = LEARNED if alone else EMPTY
    sound = (
        H.keys.is_floating_point()
        and H.keys.shape == H.values.shape == (first.keys.shape[0], first.keys.shape[1], S, first.keys.shape[3])
        and H.keys.dtype == H.values.dtype == first.keys.dtype
        and H.positions.shape == (B, K, S)
        and H.positions.dtype == clock.dtype == torch.int64
        and clock.shape == (B,)
        and all(
            x.shape == (B, K, S, *H.reduction.stat_shape(name)) and x.is_floating_point() for name, x in H.row_stats.items()
        )
        and not isinstance(H.reduction.size, tuple)
        and (H.bound is None or H.bound >= S)
        and bool(((clock >= 0) & (clock < 2**62)).all())
        and bool((H.positions[..., :pinned] == LEARNED).all())
        and bool(((H.positions[..., pinned:] >= least) & (H.positions < clock[:, None, None])[..., pinned:]).all())
    )
    if not sound:
        raise Error(f"{where}: rows of shape {tuple(H.keys.shape)} contradict the operator {H.reduction} or the clock")
