"""Settings of a benchmark run, and the models that its sections share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..reporting.progress import progress_bar
from ..state.state import State
from .baselines.transformers import MISSING, Transformers
from .result import SkipBenchmark
from .timing import Contenders, seconds

if TYPE_CHECKING:
    import tokenizers

STEPS = 8
"""Number of steps that are timed together."""


@dataclass
class Bench:
    """Settings of one run. Models are loaded when a section needs them.

    Attributes:
        load: ``load(dtype=…) -> Cell`` on the device; picklable, because worker processes call it too.
        export: returns a Hugging Face folder of the same weights, the same one at every call.
        tokenizer: returns the tokenizer of the model; raises :class:`~msrnn.Error` if it has none.
        ids: ``(N,)`` int64 on the CPU, the text to read.
        device: device of all models.
        dtype: dtype of all models, except in sections that name another one.
        packed_dtype: dtype of the activations of a cell with packed weights, or None; ``dtype`` is then that of the baselines
            only.
        tokens: length of a text; some sections read a multiple.
        size: size of the eviction operators.
        rounds: repetitions of whole texts; steps are short and have five times as many.
        kvpress: a Python interpreter with kvpress installed, or None.
        llama_cpp: a Python interpreter with llama-cpp-python installed, or None.
        gguf: the GGUF file of the model, for llama.cpp, or None.
        progress: True to show progress bars.
        ranks: number of processes that hold the model together. With several of them there is no baseline.
    """

    load: Callable[..., Cell]
    export: Callable[[], Path]
    tokenizer: Callable[[], "tokenizers.Tokenizer"]
    ids: Tensor
    device: torch.device
    dtype: torch.dtype = torch.float32
    packed_dtype: torch.dtype | None = None
    tokens: int = 2048
    size: int = 512
    rounds: int = 3
    kvpress: Path | None = None
    llama_cpp: Path | None = None
    gguf: Path | None = None
    progress: bool = False
    ranks: int = 1
    _cell: tuple[torch.dtype, Cell] | None = field(default=None, repr=False)
    _transformers: tuple[torch.dtype, Transformers | None] | None = field(default=None, repr=False)

    @property
    def tova(self) -> str:
        """Spec string of the operator for sections that need only one."""
        return f"tova:{self.size}"

    @property
    def no_baseline(self) -> str:
        """Why :meth:`transformers` returns None."""
        return MISSING if self.ranks == 1 else f"the model is split over {self.ranks} ranks"

    @property
    def bars_disabled(self) -> bool | None:
        """The ``disable`` argument of tqdm; None shows a bar only in a terminal."""
        return None if self.progress else True

    @property
    def cell_dtype(self) -> torch.dtype:
        """Dtype of the cell in sections that name no other one."""
        return self.packed_dtype or self.dtype

    def cell(self, dtype: torch.dtype | None = None) -> Cell:
        """Return the cell in ``dtype`` (default: that of the run), or in :attr:`packed_dtype`; the last one is cached."""
        dtype = self.packed_dtype or dtype or self.dtype
        if self._cell is None or self._cell[0] != dtype:
            self._cell = None  # frees the old cell before the new one is loaded
            self._cell = dtype, self.load(dtype=dtype)
        return self._cell[1]

    def transformers(self, dtype: torch.dtype | None = None) -> Transformers | None:
        """Return the same model in transformers; None with several ranks, or if it is not installed. The last one is cached."""
        if self.ranks > 1:
            return None
        dtype = dtype or self.dtype
        if self._transformers is None or self._transformers[0] != dtype:
            self._transformers = None
            self._transformers = dtype, Transformers(self.export, dtype, self.device) if Transformers.version() else None
        return self._transformers[1]

    def text(self, count: int, start: int = 0) -> Tensor:
        """Return ``(1, count)`` ids, beginning at ``start``.

        Raises:
            SkipBenchmark: the text is too short.
        """
        if len(self.ids) < start + count:
            raise SkipBenchmark(f"the text has {len(self.ids):,} tokens; expected at least {start + count:,}")
        return self.ids[None, start : start + count].to(self.device)

    def full_state(self, cell: Cell, reduction: str | None = None, tokens: int | None = None) -> State:
        """Return the state after ``tokens`` tokens (default: size + 1) under ``reduction`` (default: TOVA)."""
        ids = self.text(self.size + 1 if tokens is None else tokens)
        return cell(ids, cell.initial_state(1, reduction or self.tova), last_only=True)[1]

    def time(self, contenders: Contenders, rounds: int, *, warm_up: bool = True) -> dict[str, list[float]]:
        """Call :func:`~msrnn.bench.timing.seconds` with a progress bar; ``warm_up`` adds a round that is not counted."""
        total, description = len(contenders) * (rounds + warm_up), ", ".join(contenders)[:60]
        with progress_bar(total, "call", label=description, enabled=self.progress, leave=False) as bar:
            if warm_up:
                seconds(contenders, 1, self.device, bar.update)
            return seconds(contenders, rounds, self.device, bar.update)

    def step_ms(self, contenders: Contenders) -> dict[str, list[float]]:
        """Return milliseconds per step of contenders that make ``STEPS`` steps per call."""
        spent = self.time(contenders, 5 * self.rounds)
        return {name: [1e3 * t / STEPS for t in times] for name, times in spent.items()}


def in_place_step(cell: Cell, state: State) -> Callable[[Tensor], object]:
    """Return the function ``token (B,) -> cell.step_(token, state)``."""
    return lambda token: cell.step_(token, state)


def repeated(step: Callable[[Tensor], object], tokens: Tensor) -> Callable[[], None]:
    """Return a function that makes ``STEPS`` steps per call, cycling through the columns of ``tokens (B, T)``."""
    columns = tokens.T.contiguous()
    n = 0

    def steps() -> None:
        nonlocal n
        for _ in range(STEPS):
            step(columns[n % len(columns)])
            n += 1

    return steps
