"""The config of LLaMA, Mistral and Yi checkpoints, and checks that all configs share."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..errors import Error, check_bool, check_int, is_int
from ..layers.rotary import Rope

MAX_SIZE = 2**28
"""Maximum of every size: far above published models; products of two sizes fit into int64."""
MAX_LAYERS = 1000


class ModelConfig:
    """Base class of the configs that a model folder can contain. Each one is a frozen dataclass with a ``family``."""

    not_in_signature: ClassVar[tuple[str, ...]] = ("dropout", "bos_token_id", "eos_token_ids")
    """Fields that do not enter a step."""

    def to_dict(self: Any) -> dict[str, Any]:
        """Return the family and the fields, for JSON."""
        values = {name: x.to_dict() if isinstance(x, Rope) else x for name, x in vars(self).items()}
        return {"family": self.family, **values}

    def signature(self: Any) -> str:
        """Return the fields that enter a step, as text for the fingerprint of a state.

        Optional fields with their default value are omitted, so that a new optional field does not invalidate saved states.
        Floats are rounded, because a GGUF file stores ``norm_eps`` in float32.
        """
        used = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name not in self.not_in_signature]
        defaults = {f.name: f.default for f in fields(self)}
        values = [(name, f"{x:.6g}" if isinstance(x, float) else x) for name, x in used if x != defaults[name]]
        return ", ".join(f"{name} {x}" for name, x in values)


@dataclass(frozen=True)
class Config(ModelConfig):
    """The config of one LLaMA, Mistral or Yi checkpoint.

    Attributes:
        family: ``llama``, ``mistral`` or ``yi``.
        vocab_size, width, n_layers, n_heads, n_kv_heads, head_dim, ffn_width: the sizes V, E, L, N, K and D, and the MLP width.
        norm_eps: epsilon of RMSNorm.
        rope: the rotary frequencies.
        context_length: maximum number of tokens in training.
        tied: True: the output projection reuses the embedding.
        sliding_window: number of tokens that a layer attends to, the current one included (Mistral v0.1); None: no limit.
        bos_token_id, eos_token_ids: special tokens.
    """

    not_in_signature = (*ModelConfig.not_in_signature, "family", "context_length", "sliding_window")
    family: str
    vocab_size: int
    width: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_width: int
    norm_eps: float
    rope: Rope
    context_length: int
    tied: bool = False
    sliding_window: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(self)
        check_int("config: ffn_width", self.ffn_width, at_most=MAX_SIZE)
        if self.family not in ("llama", "mistral", "yi"):
            raise Error(f"config: family is {self.family!r:.60}; expected llama, mistral or yi")
        if not isinstance(self.rope, Rope):
            raise Error(f"config: rope is {self.rope!r:.60}; expected a Rope")
        check_bool("config: tied", self.tied)
        check_rotary_dim(self.head_dim)
        self.rope.check_head_dim(self.head_dim)
        if self.sliding_window is not None:
            check_int("config: sliding_window", self.sliding_window)


def check_sizes(config: Any) -> None:
    """Check the fields that all decoders have: sizes, ``norm_eps`` and special tokens.

    Raises:
        Error: a field has a wrong type or value.
    """
    for name in ("vocab_size", "width", "n_layers", "n_heads", "n_kv_heads", "head_dim", "context_length"):
        check_int(f"config: {name}", getattr(config, name), at_most=MAX_LAYERS if name == "n_layers" else MAX_SIZE)
    if config.n_heads * config.head_dim > MAX_SIZE:
        raise Error(f"config: {config.n_heads} heads of {config.head_dim} elements; expected at most {MAX_SIZE} elements")
    if config.n_heads % config.n_kv_heads:
        raise Error(f"config: n_heads is {config.n_heads}; expected a multiple of n_kv_heads, {config.n_kv_heads}")
    check_fraction("config: norm_eps", config.norm_eps, above_zero=True)
    if not isinstance(config.eos_token_ids, tuple):
        raise Error(f"config: eos_token_ids are {config.eos_token_ids!r:.60}; expected a tuple of ids")
    for token in (*config.eos_token_ids, *(() if config.bos_token_id is None else (config.bos_token_id,))):
        if not is_int(token) or not 0 <= token < config.vocab_size:
            raise Error(f"config: special token id is {token!r:.60}; expected an id of the vocabulary of {config.vocab_size}")


def check_fraction(name: str, value: object, above_zero: bool = False) -> None:
    """Refuse a value that is not a number from 0 (or above it) to below 1.

    Raises:
        Error: the message begins with ``name``.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1 or (above_zero and value == 0):  # type: ignore[operator]
        raise Error(f"{name} is {value!r:.60}; expected a number {'above' if above_zero else 'of at least'} 0 and below 1")


def check_rotary_dim(head_dim: int) -> None:
    """Refuse a head dimension without rotary pairs.

    Raises:
        Error: ``head_dim`` is odd or below 4.
    """
    if head_dim % 2 or head_dim < 4:
        raise Error(f"config: head_dim is {head_dim}; expected an even number of at least 4 for rotary positions")
