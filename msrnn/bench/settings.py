"""What a section is given: the model, a text, how long and how often, and the peers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..state.state import State
from .baselines.transformers import Transformers
from .result import Unmeasured
from .timing import Ways, seconds

if TYPE_CHECKING:
    import tokenizers

BLOCK = 8
"""Steps that are timed together."""


@dataclass
class Bench:
    """One run's settings, and what is loaded when a section asks for it.

    Attributes:
        load: ``load(dtype=…) -> Cell`` on the device; can be pickled, so that another process can call it too.
        export: gives a Hugging Face folder of the same weights, and the same one again.
        tokenizer: gives the model's tokenizer; an :class:`~msrnn.Error` where it has none.
        ids: ``(N,)`` int64 on the CPU, the text that is read.
        dtype: in which all is measured but for what says otherwise.
        tokens: of a text; some sections read multiples.
        size: rows that H holds.
        rounds: how often whole texts are read; steps, which are short, five times as often.
        kvpress: a Python that has kvpress.
        progress: whether to show bars.
    """

    load: Callable[..., Cell]
    export: Callable[[], Path]
    tokenizer: Callable[[], "tokenizers.Tokenizer"]
    ids: Tensor
    device: torch.device
    dtype: torch.dtype = torch.float32
    tokens: int = 2048
    size: int = 512
    rounds: int = 3
    kvpress: Path | None = None
    progress: bool = False
    _cell: tuple[torch.dtype, Cell] | None = field(default=None, repr=False)
    _peer: tuple[torch.dtype, Transformers | None] | None = field(default=None, repr=False)

    @property
    def tova(self) -> str:
        """The operator that is measured where one is enough."""
        return f"tova:{self.size}"

    def cell(self, dtype: torch.dtype | None = None) -> Cell:
        """The cell in ``dtype`` (the run's, unless said); the last one asked for is kept."""
        dtype = dtype or self.dtype
        if self._cell is None or self._cell[0] != dtype:
            self._cell = None  # the old one goes first
            self._cell = dtype, self.load(dtype=dtype)
        return self._cell[1]

    def peer(self, dtype: torch.dtype | None = None) -> Transformers | None:
        """transformers with the same weights, None where it is not installed; the last one asked for is kept."""
        dtype = dtype or self.dtype
        if self._peer is None or self._peer[0] != dtype:
            self._peer = None
            self._peer = dtype, Transformers(self.export, dtype, self.device) if Transformers.version() else None
        return self._peer[1]

    def text(self, count: int, start: int = 0) -> Tensor:
        """``(1, count)`` ids from ``start`` on.

        Raises:
            Unmeasured: the text is too short.
        """
        if len(self.ids) < start + count:
            raise Unmeasured(f"the text has {len(self.ids):,} tokens; {start + count:,} are needed")
        return self.ids[None, start : start + count].to(self.device)

    def full(self, cell: Cell, form: str | None = None, tokens: int | None = None) -> State:
        """The state after so many tokens, one more than H holds unless said; under TOVA unless said."""
        ids = self.text(self.size + 1 if tokens is None else tokens)
        return cell(ids, cell.initial_state(1, form or self.tova), last_only=True)[1]

    def time(self, ways: Ways, rounds: int, *, warm: bool = True) -> dict[str, list[float]]:
        """As :func:`~msrnn.bench.timing.seconds`, each way once unmeasured before if ``warm``, with a bar."""
        from tqdm import tqdm

        total = len(ways) * (rounds + warm)
        with tqdm(total=total, desc=", ".join(ways)[:60], leave=False, disable=None if self.progress else True) as bar:
            if warm:
                seconds(ways, 1, self.device, bar.update)
            return seconds(ways, rounds, self.device, bar.update)

    def step_ms(self, ways: Ways) -> dict[str, list[float]]:
        """Milliseconds a step of ways that take ``BLOCK`` steps each."""
        spent = self.time(ways, 5 * self.rounds)
        return {name: [1e3 * t / BLOCK for t in times] for name, times in spent.items()}


def moving(cell: Cell, state: State) -> Callable[[Tensor], object]:
    """``step_`` of this state by a token ``(B,)``."""
    return lambda token: cell.step_(token, state)


def block_of(step: Callable[[Tensor], object], tokens: Tensor) -> Callable[[], None]:
    """``BLOCK`` steps, on the tokens ``(B, T)`` one after the other, from the first again after the last."""
    columns = tokens.T.contiguous()
    n = 0

    def some() -> None:
        nonlocal n
        for _ in range(BLOCK):
            step(columns[n % len(columns)])
            n += 1

    return some
