"""The settings that training and fine-tuning share."""

from dataclasses import dataclass

from ..errors import check_int, check_number


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of the optimizer, and of how the text is read. The derived classes have the defaults of most fields.

    Attributes:
        steps: number of optimizer steps. Each step reads the next ``chunk_length`` tokens of every stream.
        batch_size: number of contiguous streams into which the text is split.
        chunk_length: tokens per stream and step, through which a step backpropagates.
        reduction: spec string of the operator that bounds H; None, for fine-tuning only: that of the model family.
        chunks_per_state: H is reset after this number of chunks and at the end of a stream. Between two chunks H is detached
            from the graph. With 1, every chunk starts from an empty state.
        lr: maximum learning rate, reached after ``warmup_steps``; a cosine then decreases it to a tenth.
        warmup_steps: number of steps over which the learning rate rises linearly.
        weight_decay: weight decay of AdamW, applied to matrices only.
        max_grad_norm: gradients are clipped to this norm of all trained parameters together.
        val_fraction: fraction of the text, at its end, that is held out for validation.
        eval_every: number of steps between two validations, each followed by a checkpoint.
        seed: seed of new parameters, of dropout, and of the offset at which each epoch starts.

    Raises:
        Error: a field has a wrong type or value.
    """

    steps: int
    batch_size: int
    chunk_length: int
    reduction: str | None
    chunks_per_state: int
    lr: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float = 1.0
    val_fraction: float
    eval_every: int
    seed: int = 0

    def __post_init__(self) -> None:
        minima = {"steps": 1, "batch_size": 1, "chunk_length": 2, "chunks_per_state": 1, "warmup_steps": 0, "eval_every": 1}
        for name, least in {**minima, "seed": 0}.items():
            check_int(name, getattr(self, name), least, 2**31 - 1)
        for name, most in {"lr": 1.0, "max_grad_norm": 1e9, "val_fraction": 0.5}.items():
            check_number(name, getattr(self, name), 0, most)
        check_number("weight_decay", self.weight_decay, 0, 1.0, or_equal=True)
