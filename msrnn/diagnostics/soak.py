"""The soak: a bounded state reads on for as long as asked, is checked as it goes, and may be killed at any moment.

The text is read by the fold, an interval at a time. At a random place in every interval the step reads a few tokens beside it
and has to agree (``check.py``). Then H is looked at, and saved. Everything that is read, and where it is checked, follows from
the seed and the clock, so a run that was killed goes on as if it had not been.
"""

import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error
from ..reductions.contract import Reduction
from ..reporting.figures import new_figure, save_figure
from ..reporting.progress import progress_bar
from ..reporting.resume import check_same_settings
from ..state.serialization import load_state
from ..state.state import State
from ..storage.digest import digest
from ..storage.files import atomic_file, read_json, write_json
from .invariants import check_logits, check_rows, compare_step

BESIDE = 16
"""Tokens that the step reads beside the fold in every interval."""
STATE, RECORD = "state.safetensors", "record.json"


@dataclass(frozen=True)
class Interval:
    """What was measured while one interval was read.

    Attributes:
        read: tokens read at its end.
        fold_ms: milliseconds a token by the fold.
        step_ms, difference, near_ties: of the step beside it (:class:`~msrnn.diagnostics.invariants.Compared`).
        nbytes: what H held at its end.
        resident: bytes of the process in main memory then.
    """

    read: int
    fold_ms: float
    step_ms: float
    difference: float
    near_ties: int
    nbytes: int
    resident: int


@torch.no_grad()
def soak(
    cell: Cell,
    folder: str | Path,
    n_tokens: int,
    reduction: Reduction | str | Sequence[Reduction | str] | None = None,
    *,
    text: Tensor | None = None,
    seed: int = 0,
    interval: int = 2048,
    progress: bool = False,
) -> list[Interval]:
    """Read ``n_tokens`` under a bounded state, or what is missing of them since the last saved state in ``folder``.

    Args:
        cell: the cell.
        folder: where the state and the record are kept, and found again.
        n_tokens: how many tokens in all; a finished run may be asked for more.
        reduction: as ``cell.initial_state`` takes it, bounded in every layer.
        text: ``(T,)`` int64, read over and over; None is random ids, each as likely as any other.
        seed: of the random ids and of the places of the checks.
        interval: tokens between two saves.
        progress: whether to show a bar.

    Returns:
        One row per interval, those of earlier runs included.

    Raises:
        Error: an unbounded layer, an empty text, a folder that holds another run or cannot be written; and whatever does not
            hold on the way, after which token and in which layer: the last saved state is the last one that was sound.
    """
    if n_tokens < 1 or interval < 1:
        raise Error(f"soak: {n_tokens} tokens in intervals of {interval}; expected at least 1 of each")
    folder, fresh = Path(folder), cell.initial_state(1, reduction)
    if free := [H.reduction for H in fresh if H.reduction.size is None]:
        raise Error(f"soak: the reduction is {free[0]}; expected one that bounds H, such as tova:512")
    if text is not None and (text.ndim != 1 or text.dtype != torch.int64 or not text.numel()):
        raise Error(f"soak: the text is {text.dtype} of shape {tuple(text.shape)}; expected int64 of shape (T,), T at least 1")
    if text is not None and (text.amin() < 0 or text.amax() >= cell.config.vocab_size):
        found = f"ids from {int(text.amin())} to {int(text.amax())}"
        raise Error(f"soak: the text has {found}; the vocabulary has {cell.config.vocab_size}")
    source = "random ids" if text is None else digest(str(text.tolist()))
    about = {"seed": seed, "text": source, "interval": interval}
    state, rows = _resume(folder, cell, fresh, about)
    device, full = fresh.clock.device, max(size for H in fresh if isinstance(size := H.reduction.size, int))
    with progress_bar(n_tokens, "token", initial=int(state.clock), label="reading", enabled=progress, unit_scale=True) as bar:
        while (clock := int(state.clock)) < n_tokens:
            block = clock // interval
            ids = _ids(cell, text, seed, interval, block)[clock - block * interval : n_tokens - block * interval]
            state, row = _read(cell, ids[None].to(device), state, random.Random(f"{seed} {clock}"))
            if rows and rows[-1].read >= full and row.nbytes > rows[-1].nbytes:
                raise Error(f"after {row.read} tokens: H grew from {rows[-1].nbytes} to {row.nbytes} bytes; it was full before")
            rows.append(row)
            _save(folder, state, {**about, "intervals": [asdict(row) for row in rows]})
            bar.set_postfix_str(f"{row.fold_ms:.2f} ms/token, {row.resident / 1e6:.0f} MB resident", refresh=False)
            bar.update(row.read - clock)
    return rows


def _ids(cell: Cell, text: Tensor | None, seed: int, interval: int, block: int) -> Tensor:
    """``(interval,)`` ids: those of one block of the endless text, whatever was read before."""
    if text is None:
        return torch.tensor(random.Random(f"{seed} block {block}").choices(range(cell.config.vocab_size), k=interval))
    return text[torch.arange(block * interval, (block + 1) * interval, device=text.device) % len(text)]


def _read(cell: Cell, ids: Tensor, state: State, chance: random.Random) -> tuple[State, Interval]:
    """One interval, ``(1, T)`` ids: the fold, and at some place the step beside it."""
    T = ids.shape[1]
    beside = min(T, BESIDE)
    # A multiple, so that chunks come in few lengths: oneDNN compiles, and keeps, a kernel for every number of rows it meets.
    place = BESIDE * chance.randint(0, (T - beside) // BESIDE)
    before, few, after = ids.split([place, beside, T - place - beside], dim=1)
    state, first = _fold(cell, before, state)
    compared, state = compare_step(cell, few, state)
    state, second = _fold(cell, after, state)
    read = int(state.clock)
    check_rows(state, read)
    fold_ms = (1e3 * (first + second) + compared.fold_ms * beside) / T
    row = Interval(read, fold_ms, compared.step_ms, compared.difference, compared.near_ties, state.nbytes, _resident())
    return state, row


def _fold(cell: Cell, ids: Tensor, state: State) -> tuple[State, float]:
    """``(1, T)`` ids read on, and the seconds it took."""
    if not ids.shape[1]:
        return state, 0.0
    begin = time.perf_counter()
    logits, state = cell(ids, state, last_only=True)
    check_logits(logits, int(state.clock))  # waits for the device
    return state, time.perf_counter() - begin


def _save(folder: Path, state: State, record: dict[str, Any]) -> None:
    """The record first: killed before the state has followed, the record is one row ahead, which :func:`_resume` drops."""
    with atomic_file(folder / RECORD) as beside:
        write_json(beside, record)
    state.save(folder / STATE)


def _resume(folder: Path, cell: Cell, fresh: State, about: dict[str, Any]) -> tuple[State, list[Interval]]:
    """The last saved state and the rows up to it; ``fresh`` and none where there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        raise Error(f"cannot write to {folder} ({wrong.strerror})") from None
    if not (folder / RECORD).exists():
        if (folder / STATE).exists():
            raise Error(f"{folder} has a {STATE} and no {RECORD}; expected the folder of a soak, or a new one")
        return fresh, []
    record = read_json(folder / RECORD)
    check_same_settings(folder, {name: record.get(name) for name in about}, about)
    if not (folder / STATE).exists():
        return fresh, []
    state = load_state(folder / STATE, device=fresh.clock.device)
    try:
        cell.check_state(state, 1)
    except Error as refused:
        raise Error(f"{folder} holds another run: {refused}") from None
    for H, G in zip(state, fresh, strict=True):
        if H.reduction != G.reduction:
            raise Error(f"{folder} holds a run under {H.reduction}; this one is under {G.reduction}")
    try:
        rows = [row for row in (Interval(**facts) for facts in record["intervals"]) if row.read <= int(state.clock)]
    except (LookupError, TypeError):
        raise Error(f"{folder / RECORD} is incomplete or damaged; expected the record of a soak") from None
    if not rows or rows[-1].read != int(state.clock):
        raise Error(f"{folder}: {RECORD} has no row for the {int(state.clock)} tokens that {STATE} has read")
    return state, rows


def _resident() -> int:
    """Bytes of this process in main memory now; where there is no /proc, the most there have been."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def draw_soak(rows: Sequence[Interval], path: str | Path, *, title: str = "") -> None:
    """Draw two panels against the number of tokens read: milliseconds per token, and bytes of H and of the process.

    Args:
        rows: one per interval, at least one.
        path: output file; its ending selects the format (png, svg, pdf).
        title: title of the figure.

    Raises:
        Error: as :func:`~msrnn.reporting.figures.check_output_path`.
    """
    figure = new_figure(path, 8, 6)
    time, process = figure.subplots(2, 1, sharex=True)
    state = process.twinx()  # its own axis, because H is about a hundredth of the process
    read = [row.read / 1000 for row in rows]
    curves = [
        (time, "step", [row.step_ms for row in rows], "tab:orange", 1.3),
        (time, "fold", [row.fold_ms for row in rows], "tab:blue", 1.3),
        (process, "process, resident (left)", [row.resident / 1e6 for row in rows], "tab:green", 1.3),
        (
            state,
            "H (right)",
            [row.nbytes / 1e6 for row in rows],
            "tab:red",
            2.2,
        ),  # headroom avoids an overlap
    ]
    for axes, name, values, colour, headroom in curves:
        axes.plot(read, values, color=colour, label=name, marker="." if len(rows) < 40 else "")
        axes.set_ylim(0, headroom * max(max(line.get_ydata()) for line in axes.lines))
    time.set_ylabel("ms per token")
    time.legend(loc="upper right", ncols=2)
    process.set_ylabel("process, MB", color="tab:green")
    state.set_ylabel("H, MB", color="tab:red")
    process.legend(handles=[*process.lines, *state.lines], loc="upper right", ncols=2)
    process.set_xlabel("thousand tokens read")
    process.set_xlim(0, 1.01 * read[-1])
    for axes in (time, process):
        axes.grid(alpha=0.3)
    save_figure(figure, path, title)
