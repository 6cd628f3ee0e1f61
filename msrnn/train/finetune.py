"""Fine-tuning of a pretrained cell on a text by LoRA adapters, through the operator that bounds its KV cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..cell.cell import Cell
from ..cell.validation import check_ids
from ..distributed.whole import write_whole
from ..errors import Error, check_int
from ..lora.adapters import add, remove
from ..lora.folder import WEIGHTS_FILE, adapter_tensors, check_family, write_new
from ..lora.targets import ALL_LINEAR
from ..storage.atomic import atomic_file
from ..storage.digest import digest
from ..storage.lazy_tensors import LazyTensor
from ..storage.safetensors_io import write_tensors
from .data import Streams, short_text
from .loop import Run, find_run
from .run_config import RunConfig
from .trainer import Trainer, nats_per_token

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """All settings of a run except the model and the text.

    Attributes:
        val_tokens: at most this number of held-out tokens is read in each validation.
        r, lora_alpha, target_modules, lora_dropout: as of :func:`msrnn.lora.add`.

    The other fields are those of :class:`~msrnn.train.run_config.RunConfig`.

    Raises:
        Error: a field has a wrong type or value.
    """

    steps: int = 200
    batch_size: int = 1
    chunk_length: int = 256
    reduction: str | None = None
    chunks_per_state: int = 4
    lr: float = 5e-4
    warmup_steps: int = 10
    weight_decay: float = 0.0
    val_fraction: float = 0.1
    val_tokens: int = 4096
    eval_every: int = 50
    r: int = 8
    lora_alpha: float = 16.0
    target_modules: Sequence[str] | str = ("q", "v")
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("val_tokens", self.val_tokens, 2, 2**31 - 1)
        targets = self.target_modules
        if not isinstance(targets, Sequence) or not all(isinstance(name, str) for name in targets):  # a set has no fixed order
            raise Error(f"target_modules is {targets!r:.60}; expected a list of names, or {ALL_LINEAR!r}")


@dataclass(frozen=True)
class AdapterFiles:
    """:class:`~msrnn.train.checkpointing.RunFiles` of an adapter. ``base_model``: name or path of the base."""

    base_model: str | None

    def create(self, folder: Path, trainer: Trainer) -> None:
        """Write the adapter in PEFT's format."""
        write_new(trainer.cell, folder, self.base_model)

    def update(self, folder: Path, trainer: Trainer) -> None:
        """Replace A and B."""

        def write(tensors: Mapping[str, LazyTensor]) -> None:
            with atomic_file(folder / WEIGHTS_FILE) as staged:
                write_tensors(staged, tensors, {"format": "pt"})

        write_whole(trainer.cell.rank_part, adapter_tensors(trainer.cell), write)


def finetune(
    cell: Cell,
    text: str,
    encode: Encode,
    config: FinetuneConfig,
    folder: str | Path,
    *,
    base_model: str | None = None,
    progress: bool = False,
) -> Trainer:
    """Add LoRA adapters to ``cell`` and train them on ``text``, or resume the run in ``folder``, until the last step.

    A stopped run resumes from its last checkpoint and ends with the same bits, on the same machine with the same number of
    threads. The random state of the caller is unchanged.

    Args:
        cell: a pretrained cell without adapters; it gets them in place. Its weights may be packed.
        text: its end is held out.
        encode: returns the token ids of a text with the special tokens that begin it (``lambda x: tokenizer.encode(x).ids``).
        config: the settings.
        folder: a new or empty folder, or the folder of this run. It will contain the adapter in PEFT's format and the training
            state.
        base_model: name or path of the model, for the file of the adapter.
        progress: True to show a progress bar.

    Returns:
        The finished trainer. ``trainer.validation`` has the held-out loss under the operator in nats per token, by step; that
        of step 0 is of the unchanged model.

    Raises:
        Error: before the first step, if the text is too short or has ids outside the vocabulary, the cell or a target does not
            fit, or the folder contains something else or cannot be written.
        Diverged: the loss is not finite.
    """
    folder, base = Path(folder), cell.fingerprint(recompute=True).digest()
    settings = {**asdict(config), "base": base, "text": digest(text)}
    resumed = find_run(folder, settings, None if cell.rank_part is None else cell.rank_part.ranks)
    check_family(cell)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        batches, held_out = split_text(text, encode, config, cell.device)
        for streams in (batches, held_out):
            check_ids(torch.cat((streams.ids, torch.tensor(streams.bos, dtype=torch.int64))), cell.config.vocab_size)
        cell.operators_per_layer(config.reduction)  # refuses an operator that the cell cannot use
        trainer = prepare(cell, config)
        run = Run(trainer, folder, AdapterFiles(base_model), settings)
        try:
            run.start(resumed)
        except BaseException:
            remove(cell)
            raise

        def validate() -> float:
            return nats_per_token(cell, held_out, config.reduction)

        if 0 not in trainer.validation:
            trainer.validation[0] = validate()
        run.finish(batches, validate, config.eval_every, "nats/token", progress)
    return trainer


def prepare(cell: Cell, config: FinetuneConfig) -> Trainer:
    """Seed the random generators, add the adapters to ``cell``, and return the trainer before its first step.

    Raises:
        Error: as :func:`msrnn.lora.add`.
    """
    torch.manual_seed(config.seed)
    add(
        cell,
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=config.target_modules,
        lora_dropout=config.lora_dropout,
        generator=torch.Generator().manual_seed(config.seed),
    )
    return Trainer(cell, config)


def split_text(text: str, encode: Encode, config: FinetuneConfig, device: torch.device) -> tuple[Streams, Streams]:
    """Return the streams of both splits of ``text``.

    Raises:
        Error: one is too short.
    """
    bos, cut = list(encode("")), len(text) - int(config.val_fraction * len(text))
    train_ids, val_ids = (torch.tensor(list(encode(part))[len(bos) :], dtype=torch.int64) for part in (text[:cut], text[cut:]))
    B, T = config.batch_size, config.chunk_length
    train = Streams(train_ids, B, T, config.chunks_per_state, config.seed, bos, device)
    val = Streams(val_ids[: max(config.val_tokens, 2 * T) + 1], 1, T, config.chunks_per_state, None, bos, device)
    if train.n_chunks < 1 or val.n_chunks < 1:
        raise short_text(len(train_ids), len(val_ids), B, T, config.val_fraction)
    return train, val
