"""Long runs of a bounded state, which are checked at intervals and can be killed and resumed.

The unroll reads the text, one interval after the other. At a random position in every interval the step loop reads a few tokens
from the same state, and the results are compared (``invariants.py``). At the end of the interval the state is checked and
saved. The tokens and the positions of the comparisons depend only on the seed and the clock, so a resumed run equals an
uninterrupted run.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, check_int
from ..reductions.contract import Reduction
from ..reporting.figures import new_figure, save_figure
from ..reporting.line_styles import BLUE, GREEN, ORANGE, PURPLE
from ..reporting.progress import progress_bar
from ..reporting.resume import check_same_settings
from ..state.loading import load_state
from ..state.state import State
from ..storage.atomic import atomic_file
from ..storage.digest import digest
from ..storage.files import read_json, write_json
from ..storage.output_paths import create_folder
from .invariants import check_logits, check_rows, compare_step
from .process_memory import rss_bytes

CHECK_TOKENS = 16
"""Number of tokens per interval that the step loop reads too."""
STATE, RECORD = "state.safetensors", "record.json"


@dataclass(frozen=True)
class Interval:
    """Measurements of one interval.

    Attributes:
        read: number of tokens read in total at the end of the interval.
        unroll_ms: milliseconds per token of the unroll.
        step_ms, difference, near_ties: as in :class:`~msrnn.diagnostics.invariants.StepVsUnroll`.
        nbytes: bytes of H at the end.
        rss_bytes: resident memory of the process at the end.
    """

    read: int
    unroll_ms: float
    step_ms: float
    difference: float
    near_ties: int
    nbytes: int
    rss_bytes: int


@torch.no_grad()
def soak(
    cell: Cell,
    folder: str | Path,
    n_tokens: int,
    reduction: Reduction | str | Sequence[Reduction | str] | None = None,
    *,
    text: Tensor | None = None,
    seed: int = 1,
    interval: int = 2048,
    progress: bool = False,
) -> list[Interval]:
    """Read tokens with a bounded state until ``n_tokens`` have been read; resume from the last saved state in ``folder``.

    Args:
        cell: the model.
        folder: folder of the state and the record.
        n_tokens: total number of tokens; it may be increased for a finished run.
        reduction: as for ``cell.initial_state``; bounded in every layer.
        text: ``(T,)`` int64, repeated as needed; None means uniformly random ids.
        seed: seed of the random ids and of the positions of the comparisons.
        interval: number of tokens between two saves.
        progress: True to show a progress bar.

    Returns:
        One record per interval, including those of earlier runs.

    Raises:
        Error: a layer is unbounded, the text is not usable, the folder belongs to another run or cannot be written, or a check
            failed. The message of a failed check states token and layer; the last saved state passed all checks.
    """
    check_int("n_tokens", n_tokens)
    check_int("interval", interval)
    folder, fresh = Path(folder), cell.initial_state(1, reduction)
    if unbounded := [H.reduction for H in fresh if H.reduction.size is None]:
        raise Error(f"reduction is {unbounded[0]}; expected an operator that bounds H, such as tova:512")
    if text is not None:
        _check_text(text, cell.config.vocab_size)
    source = "random ids" if text is None else digest(str(text.tolist()))
    settings = {"seed": seed, "text": source, "interval": interval}
    state, rows = _resume(folder, cell, fresh, settings)
    device, full = fresh.clock.device, max(size for H in fresh if isinstance(size := H.reduction.size, int))
    with progress_bar(n_tokens, "token", initial=int(state.clock), label="reading", enabled=progress, unit_scale=True) as bar:
        while (clock := int(state.clock)) < n_tokens:
            block = clock // interval
            ids = _ids(cell, text, seed, interval, block)[clock - block * interval : n_tokens - block * interval]
            state, row = _read(cell, ids[None].to(device), state, random.Random(f"{seed} {clock}"))
            if rows and rows[-1].read >= full and row.nbytes > rows[-1].nbytes:
                raise Error(f"after {row.read} tokens: H grew from {rows[-1].nbytes} to {row.nbytes} bytes after it was full")
            rows.append(row)
            _save(folder, state, {**settings, "intervals": [asdict(row) for row in rows]})
            bar.set_postfix_str(f"{row.unroll_ms:.2f} ms/token, {row.rss_bytes / 1e6:.0f} MB resident", refresh=False)
            bar.update(row.read - clock)
    return rows


def _check_text(text: Tensor, vocab_size: int) -> None:
    if text.ndim != 1 or text.dtype != torch.int64 or not text.numel():
        raise Error(f"text is {text.dtype} of shape {tuple(text.shape)}; expected int64 of shape (T,), T at least 1")
    if text.amin() < 0 or text.amax() >= vocab_size:
        raise Error(f"text has ids from {int(text.amin())} to {int(text.amax())}; expected 0 to {vocab_size - 1}")


def _ids(cell: Cell, text: Tensor | None, seed: int, interval: int, block: int) -> Tensor:
    """Return the ``(interval,)`` ids of one interval of the endless text, independent of the other intervals."""
    if text is None:
        return torch.tensor(random.Random(f"{seed} block {block}").choices(range(cell.config.vocab_size), k=interval))
    return text[torch.arange(block * interval, (block + 1) * interval, device=text.device) % len(text)]


def _read(cell: Cell, ids: Tensor, state: State, rng: random.Random) -> tuple[State, Interval]:
    """Read one interval, ``(1, T)`` ids, by the unroll, and compare it with the step loop at a random position."""
    T = ids.shape[1]
    checked = min(T, CHECK_TOKENS)
    # Multiples of CHECK_TOKENS give few different lengths. oneDNN compiles and keeps one kernel per number of rows.
    start = CHECK_TOKENS * rng.randint(0, (T - checked) // CHECK_TOKENS)
    before, middle, after = ids.split([start, checked, T - start - checked], dim=1)
    state, first = _unroll(cell, before, state)
    compared, state = compare_step(cell, middle, state)
    state, second = _unroll(cell, after, state)
    read = int(state.clock)
    check_rows(state, read)
    unroll_ms = (1e3 * (first + second) + compared.unroll_ms * checked) / T
    row = Interval(read, unroll_ms, compared.step_ms, compared.difference, compared.near_ties, state.nbytes, rss_bytes())
    return state, row


def _unroll(cell: Cell, ids: Tensor, state: State) -> tuple[State, float]:
    """Read ``(1, T)`` ids and return the state and the seconds."""
    if not ids.shape[1]:
        return state, 0.0
    begin = time.perf_counter()
    logits, state = cell(ids, state, last_only=True)
    check_logits(logits, int(state.clock))  # waits for the device
    return state, time.perf_counter() - begin


def _save(folder: Path, state: State, record: dict[str, Any]) -> None:
    """Write the record, then the state. If the run is killed in between, :func:`_resume` drops the additional record row."""
    with atomic_file(folder / RECORD) as path:
        write_json(path, record)
    state.save(folder / STATE)


def _resume(folder: Path, cell: Cell, fresh: State, settings: dict[str, Any]) -> tuple[State, list[Interval]]:
    """Return the last saved state and the records up to it, or ``fresh`` and an empty list."""
    create_folder(folder)
    if not (folder / RECORD).exists():
        if (folder / STATE).exists():
            raise Error(f"{folder} has a {STATE} and no {RECORD}; expected the folder of a soak, or a new one")
        return fresh, []
    record = read_json(folder / RECORD)
    check_same_settings(folder, {name: record.get(name) for name in settings}, settings)
    if not (folder / STATE).exists():
        return fresh, []
    state = load_state(folder / STATE, device=fresh.clock.device)
    try:
        cell.check_state(state, 1)
    except Error as error:
        raise Error(f"{folder} contains another run: {error}") from None
    for H, G in zip(state, fresh, strict=True):
        if H.reduction != G.reduction:
            raise Error(f"{folder} contains a run under {H.reduction}; this one is under {G.reduction}")
    try:
        rows = [row for row in (Interval(**fields) for fields in record["intervals"]) if row.read <= int(state.clock)]
    except (LookupError, TypeError):
        raise Error(f"{folder / RECORD} is incomplete or damaged; expected the record of a soak") from None
    if not rows or rows[-1].read != int(state.clock):
        raise Error(f"{folder}: {RECORD} has no row for the {int(state.clock)} tokens that {STATE} has read")
    return state, rows


def draw_soak(rows: Sequence[Interval], path: str | Path, *, title: str = "") -> None:
    """Draw two panels against the number of tokens read: milliseconds per token, and bytes of H and of the process.

    Args:
        rows: one per interval, at least one.
        path: output file; its ending selects the format (png, svg, pdf).
        title: title of the figure.

    Raises:
        Error: as :func:`~msrnn.reporting.figures.check_figure_file`.
    """
    figure = new_figure(path, 8, 6)
    time, process = figure.subplots(2, 1, sharex=True)
    state = process.twinx()  # its own axis, because H is about a hundredth of the process
    read = [row.read / 1000 for row in rows]
    curves = [
        (time, "step", [row.step_ms for row in rows], ORANGE, 1.3),
        (time, "unroll", [row.unroll_ms for row in rows], BLUE, 1.3),
        (process, "process, resident (left)", [row.rss_bytes / 1e6 for row in rows], GREEN, 1.3),
        (state, "H (right)", [row.nbytes / 1e6 for row in rows], PURPLE, 2.2),  # the headroom avoids an overlap
    ]
    for axes, name, values, colour, headroom in curves:
        axes.plot(read, values, color=colour, label=name, marker="." if len(rows) < 40 else "")
        axes.set_ylim(0, headroom * max(max(line.get_ydata()) for line in axes.lines))
    time.set_ylabel("ms per token")
    time.legend(loc="upper right", ncols=2)
    process.set_ylabel("process, MB", color=GREEN)
    state.set_ylabel("H, MB", color=PURPLE)
    process.legend(handles=[*process.lines, *state.lines], loc="upper right", ncols=2)
    process.set_xlabel("thousand tokens read")
    process.set_xlim(0, 1.01 * read[-1])
    for axes in (time, process):
        axes.grid(alpha=0.3)
    save_figure(figure, path, title)
