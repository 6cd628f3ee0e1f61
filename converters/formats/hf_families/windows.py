"""Sliding windows: ``sliding_window``, ``layer_types`` and the fields about them.

In transformers a window W includes the current token, in every family. ``layer_types`` has one kind per layer.
"""

from collections.abc import Sequence
from typing import Any

from msrnn import Error
from msrnn.models import Config

from ...fields import Fields

FULL, SLIDING = "full_attention", "sliding_attention"
SPELLINGS = {FULL: FULL, "attention": FULL, SLIDING: SLIDING}
"""The kinds of ``layer_types`` that are read; ``attention`` is an old name."""


def read_windows(fields: Fields, default: Sequence[str], window: int | None) -> tuple[list[str], dict[str, Any]]:
    """Return the kind of each layer, and ``sliding_window`` or ``layer_windows`` of msrnn's config.

    Args:
        fields: of ``config.json``, with defaults.
        default: the kinds if ``layer_types`` is missing.
        window: W; None if the model has none.

    Raises:
        Error: another kind of layer, another number of them, or a layer with a window in a model without one.
    """
    kinds, n_layers = fields.values.get("layer_types"), fields.get_int("num_hidden_layers")
    kinds = list(default) if kinds is None else kinds
    if not isinstance(kinds, list) or len(kinds) != n_layers or not all(isinstance(x, str) and x in SPELLINGS for x in kinds):
        raise fields.error("layer_types", f"{n_layers} entries, one per layer, each {FULL!r} or {SLIDING!r}")
    kinds = [SPELLINGS[kind] for kind in kinds]
    if SLIDING in kinds and window is None:
        raise fields.error("layer_types", f"no {SLIDING!r}, because the model has no sliding_window or does not use it")
    windows = tuple(window if kind == SLIDING else None for kind in kinds)
    same = len(set(windows)) == 1
    return kinds, {"sliding_window": windows[0]} if same else {"layer_windows": windows}


def read_window(fields: Fields) -> int | None:
    """Return ``sliding_window`` of a model that uses it whenever it is given.

    Raises:
        Error: it is not an int of at least 1, or ``use_sliding_window`` contradicts it.
    """
    window = fields.get_int("sliding_window") if "sliding_window" in fields.values else None
    check_use(fields, window)
    return window


def window_if_used(fields: Fields) -> int | None:
    """Return ``sliding_window`` of a model type with ``use_sliding_window``; None if the window is not used.

    Raises:
        Error: it is used and not an int of at least 1.
    """
    used = fields.values.get("use_sliding_window") and "sliding_window" in fields.values
    return fields.get_int("sliding_window") if used else None


def same_window(fields: Fields, title: str, *, read: bool) -> dict[str, Any]:
    """Return the window of a model in which all layers have the same window, or none has one.

    Args:
        fields: of ``config.json``, with defaults.
        title: the name of the family, for messages.
        read: False: transformers ignores ``sliding_window`` of this family, so other fields must not ask for it.

    Raises:
        Error: ``use_sliding_window`` or ``layer_types`` contradicts the window, or gives some layers one.
    """
    window = fields.values.get("sliding_window") if read else None
    kind = FULL if window is None else SLIDING
    layer_types = fields.values.get("layer_types")
    if layer_types is not None and (not isinstance(layer_types, list) or any(x != kind for x in layer_types)):
        raise Error(
            f"config.json: layer_types is {layer_types!r:.80}, and sliding_window is {window!r}; expected {kind!r} "
            f"everywhere, because all layers of {title} have the same window"
        )
    check_use(fields, window)
    return {"sliding_window": window}


def check_use(fields: Fields, window: int | None) -> None:
    """Check ``use_sliding_window`` of a model type that does not have this field.

    Raises:
        Error: it contradicts the window that transformers uses.
    """
    used = fields.values.get("use_sliding_window")
    if used is not None and used != (window is not None):
        raise Error(
            f"config.json: use_sliding_window is {used!r:.60}, but transformers uses "
            f"{'no window' if window is None else f'the window {window!r}'} for this model_type; "
            f"expected {window is not None} or no such field"
        )


def windows_to_hf(config: Config, unused: int | None = None) -> dict[str, Any]:
    """Return ``sliding_window`` and ``layer_types``.

    Args:
        config: the config.
        unused: the ``sliding_window`` of a model without windows; an int where transformers needs one nevertheless, because it
            makes the mask of the layers with a window for every model.

    Raises:
        Error: the layers have windows of several sizes.
    """
    sizes = {window for window in config.windows if window is not None}
    if len(sizes) > 1:
        raise Error(f"config: layer_windows has the sizes {sorted(sizes)!s:.60}; expected one, because config.json has one")
    kinds = [FULL if window is None else SLIDING for window in config.windows]
    return {"sliding_window": next(iter(sizes), unused), "layer_types": kinds}
