"""The file of ``msrnn generate --state``: a saved state with the logits of the next token and the last ids of the text."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, is_int
from ..state.loading import load_state
from ..state.state import State
from ..storage.safetensors_io import read_metadata
from ..text.detokenizer import CONTEXT_TOKENS


class SavedText(NamedTuple):
    """A text to continue: the state that has read it, the logits ``(1, V)`` of the next token if known, and its last ids."""

    state: State
    logits: Tensor | None
    ids: Sequence[int]

    def save(self, path: Path) -> None:
        """Write the file. Raises as :meth:`State.save`."""
        self.state.save(path, logits=self.logits, metadata={"generate": json.dumps({"ids": self.ids[-CONTEXT_TOKENS:]})})


def new_text(args: argparse.Namespace, cell: Cell) -> SavedText:
    """Return the start of a text under ``--reduction`` and ``--kv-dtype``."""
    return SavedText(cell.initial_state(1, args.reduction, dtype=args.kv_dtype), None, [])


def read_text_state(args: argparse.Namespace, cell: Cell, needs_logits: bool) -> SavedText:
    """Read the file of ``--state``.

    Raises:
        Error: the file is damaged, is a saved chat, has no logits although there is no prompt, or belongs to another model,
            batch size, dtype, ``--reduction`` or ``--kv-dtype``.
    """
    path = args.state
    metadata = read_metadata(path)
    if "chat" in metadata:
        raise Error(f"{path} is a saved chat; expected a state (msrnn chat continues a chat with /load)")
    if needs_logits:
        state, logits = load_state(path, device=args.device, logits=True, group=args.group)
    else:
        state, logits = load_state(path, device=args.device, group=args.group), None
    cell.check_state(state, 1)
    if args.reduction is not None:
        found, expected = ([H.reduction for H in s] for s in (state, cell.initial_state(1, args.reduction)))
        if found != expected:
            other = next(operator for operator, own in zip(found, expected, strict=True) if operator != own)
            raise Error(f"--reduction is {args.reduction}, but the state in {path} has {other}; omit --reduction")
    if args.kv_dtype is not None and not state[0].is_quantised:
        raise Error(f"--kv-dtype is {args.kv_dtype}, but the state in {path} has {state.dtype} rows; omit --kv-dtype")
    return SavedText(state, logits, _read_ids(metadata, path, cell.config.vocab_size))


def _read_ids(metadata: dict[str, str], path: Path, vocab_size: int) -> list[int]:
    try:
        ids = json.loads(metadata.get("generate", '{"ids": []}'))["ids"]
        if isinstance(ids, list) and all(is_int(i) and 0 <= i < vocab_size for i in ids):
            return ids
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    raise Error(f"{path}: the ids of the text are damaged; expected a file of msrnn generate --state")
