"""The config that LLaMA and the families with its layers share, and checks that all configs share."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..errors import Error, check_bool, check_int, check_number, is_int
from ..layers.rotary import Rope

MAX_SIZE = 2**28
"""Maximum of every size: far above published models; products of two sizes fit into int64."""
MAX_LAYERS = 1000


class ModelConfig:
    """Base class of the configs that a model folder can contain. Each one is a frozen dataclass with a ``family``."""

    not_in_signature: ClassVar[tuple[str, ...]] = ("dropout", "bos_token_id", "eos_token_ids")
    """Fields that do not enter a step."""
    omitted_by_default: ClassVar[tuple[str, ...]] = ()
    """Fields that :meth:`to_dict` omits where they have their default value, because few families have them."""

    @property
    def mlp_matrices(self) -> int:
        """Number of matrices in the MLP of a layer: gate, up and down."""
        return 3

    def to_dict(self: Any) -> dict[str, Any]:
        """Return the family and the fields, for JSON."""
        defaults = {f.name: f.default for f in fields(self) if f.name in self.omitted_by_default}
        shown = {name: x for name, x in vars(self).items() if name not in defaults or x != defaults[name]}
        return {"family": self.family, **{name: _to_json(x) for name, x in shown.items()}}

    def signature(self: Any) -> str:
        """Return the fields that enter a step, as text for the fingerprint of a state.

        Optional fields with their default value are omitted, so that a new optional field does not invalidate saved states.
        Floats are rounded, because a GGUF file stores ``norm_eps`` in float32.
        """
        used = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name not in self.not_in_signature]
        defaults = {f.name: f.default for f in fields(self)}
        values = [(name, f"{x:.6g}" if isinstance(x, float) else x) for name, x in used if x != defaults[name]]
        return ", ".join(f"{name} {x}" for name, x in values)


def _to_json(value: Any) -> Any:
    """Return a field for JSON: a rope as a dict, a tuple as a list."""
    if isinstance(value, tuple):
        return [_to_json(x) for x in value]
    return value.to_dict() if isinstance(value, Rope) else value


@dataclass(frozen=True)
class Config(ModelConfig):
    """The config of LLaMA and of the families with layers that need no further fields.

    Attributes:
        family: one of ``families``.
        vocab_size, width, n_layers, n_heads, n_kv_heads, head_dim, ffn_width: the sizes V, E, L, N, K and D, and the MLP width.
        norm_eps: epsilon of RMSNorm.
        rope: the rotary frequencies of all layers, or of the layers that ``layer_ropes`` does not list.
        context_length: maximum number of tokens in training.
        tied: True: the output projection reuses the embedding.
        sliding_window: number of tokens that every layer attends to, the current one included (Mistral v0.1); None: no limit.
        bos_token_id, eos_token_ids: special tokens.
        layer_windows: one ``sliding_window`` per layer where layers differ (Ministral, Gemma); otherwise ().
        layer_ropes: one rope per layer where layers differ, None: a layer without positions (Gemma 3, SmolLM3); otherwise ().
    """

    not_in_signature = (*ModelConfig.not_in_signature, "family", "context_length", "sliding_window", "layer_windows")
    omitted_by_default = ("layer_windows", "layer_ropes")
    families: ClassVar[tuple[str, ...]] = ("llama", "mistral", "yi", "ministral", "qwen2", "qwen3", "smollm3", "olmo2", "phi3")
    """The values that ``family`` can have in this class."""
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
    layer_windows: tuple[int | None, ...] = ()
    layer_ropes: tuple[Rope | None, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(self)
        check_int("config: ffn_width", self.ffn_width, at_most=MAX_SIZE)
        if self.family not in self.families:
            raise Error(f"config: family is {self.family!r:.60}; expected {' or '.join(self.families)}")
        check_bool("config: tied", self.tied)
        check_rotary_dim(self.head_dim)
        if not isinstance(self.rope, Rope):
            raise Error(f"config: rope is {self.rope!r:.60}; expected a Rope")
        for name in ("layer_windows", "layer_ropes"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) not in (0, self.n_layers):
                raise Error(f"config: {name} is {value!r:.60}; expected () or a tuple with one entry per layer")
        if self.layer_windows and self.sliding_window is not None:
            raise Error("config: sliding_window and layer_windows are both given; expected one of them")
        for name, windows in (("sliding_window", (self.sliding_window,)), ("layer_windows", self.layer_windows)):
            for window in windows:
                if window is not None:
                    check_int(f"config: {name}", window)
        for rope in (self.rope, *self.layer_ropes):
            if rope is not None and not isinstance(rope, Rope):
                raise Error(f"config: layer_ropes has {rope!r:.60}; expected a Rope or None for each layer")
            if rope is not None:
                rope.check_head_dim(self.head_dim)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The number of tokens that each layer attends to, the current one included; None: no limit."""
        return self.layer_windows or (self.sliding_window,) * self.n_layers

    @property
    def ropes(self) -> tuple[Rope | None, ...]:
        """The rotary frequencies of each layer; None: a layer without positions."""
        return self.layer_ropes or (self.rope,) * self.n_layers

    def check_numbers(self, *names: str) -> None:
        """Check that the fields ``names`` are finite numbers above 0.

        Raises:
            Error: the first field that is not.
        """
        for name in names:
            check_number(f"config: {name}", getattr(self, name), above=0)


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
