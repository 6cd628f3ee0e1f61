"""What one checkpoint of the family is: facts, checked, and those of some that are published."""

from dataclasses import dataclass, replace
from typing import Any

from ..errors import Error
from ..layers.rotary import Llama3, Rope

MOST, MOST_LAYERS = 2**28, 1000
"""Of anything that is counted: no model comes near, products of two fit into 64 bits, and no number makes a giant."""


class ModelConfig:
    """Base class of the configs that a model folder can contain. Each one is a frozen dataclass with a ``family``."""

    def to_dict(self: Any) -> dict[str, Any]:
        """Return the family and the fields, for JSON."""
        values = {name: x.to_dict() if isinstance(x, Rope) else x for name, x in vars(self).items()}
        return {"family": self.family, **values}


@dataclass(frozen=True)
class Config(ModelConfig):
    """What one checkpoint is: facts, no switches.

    ``window`` is the number of tokens a layer attends to, the current one included (Mistral v0.1), or None;
    ``length`` the longest text the model was made for, in tokens; ``tied`` whether the vocabulary product reuses the
    embedding; ``family`` one of ``llama``, ``mistral``, ``yi``.
    """

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
    length: int
    tied: bool = False
    window: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(self)
        check_whole(self, "ffn_width")
        if self.family not in ("llama", "mistral", "yi"):
            raise Error(f"config: family is {self.family!r:.60}; expected llama, mistral or yi")
        if not isinstance(self.rope, Rope) or not isinstance(self.tied, bool):
            raise Error(f"config: rope is {self.rope!r:.60} and tied {self.tied!r:.60}; expected a Rope and a bool")
        check_rotary(self.head_dim)
        if self.window is not None and (not _is_whole(self.window) or self.window < 1):
            raise Error(f"config: window is {self.window!r:.60}; expected None or a whole number of at least 1")


def check_sizes(config: Any) -> None:
    """Refuse what no decoder can have: sizes, ``norm_eps``, special tokens.

    Raises:
        Error: naming the field.
    """
    check_whole(config, "vocab_size", "width", "n_layers", "n_heads", "n_kv_heads", "head_dim", "length")
    if config.n_layers > MOST_LAYERS:
        raise Error(f"config: n_layers is {config.n_layers!r:.60}; expected at most {MOST_LAYERS}")
    if config.n_heads * config.head_dim > MOST:
        raise Error(f"config: {config.n_heads} heads of {config.head_dim} numbers; expected at most {MOST} side by side")
    if config.n_heads % config.n_kv_heads:
        raise Error(f"config: {config.n_heads} query heads cannot share {config.n_kv_heads} key/value heads evenly")
    check_part(config, "norm_eps", above=True)
    if not isinstance(config.eos_token_ids, tuple):
        raise Error(f"config: eos_token_ids are {config.eos_token_ids!r:.60}; expected a tuple of ids")
    for token in (*config.eos_token_ids, *(() if config.bos_token_id is None else (config.bos_token_id,))):
        if not _is_whole(token) or not 0 <= token < config.vocab_size:
            raise Error(f"config: special token id {token!r:.60} is outside the vocabulary of {config.vocab_size}")


def check_whole(config: Any, *names: str, at_least: int = 1) -> None:
    """Refuse fields that are no whole numbers from ``at_least`` on."""
    for name in names:
        value = getattr(config, name)
        if not _is_whole(value) or value < at_least:
            raise Error(f"config: {name} is {value!r:.60}; expected a whole number of at least {at_least}")
        if value > MOST:
            raise Error(f"config: {name} is {value!r:.60}; expected at most {MOST}")


def check_part(config: Any, name: str, above: bool = False) -> None:
    """Refuse a field that is no number from 0, or ``above`` it, to below 1."""
    value = getattr(config, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 or (above and value == 0):
        raise Error(f"config: {name} is {value!r:.60}; expected a number {'between 0 and' if above else 'from 0 to below'} 1")


def check_rotary(head_dim: int) -> None:
    """Refuse a head that cannot be turned."""
    if head_dim % 2 or head_dim < 4:
        raise Error(f"config: head_dim is {head_dim}; rotary positions need an even one of at least 4")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


LLAMA_2_7B = Config(
    family="llama",
    vocab_size=32000,
    width=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    head_dim=128,
    ffn_width=11008,
    norm_eps=1e-5,
    rope=Rope(10000.0),
    length=4096,
    bos_token_id=1,
    eos_token_ids=(2,),
)
LLAMA_3_8B = replace(
    LLAMA_2_7B,
    vocab_size=128256,
    n_kv_heads=8,
    ffn_width=14336,
    rope=Rope(500000.0),
    length=8192,
    bos_token_id=128000,
    eos_token_ids=(128001,),
)
LLAMA_31_8B = replace(LLAMA_3_8B, rope=Llama3(500000.0, factor=8.0, low=1.0, high=4.0, length=8192), length=131072)
LLAMA_32_1B = replace(
    LLAMA_31_8B,
    width=2048,
    n_layers=16,
    head_dim=64,
    ffn_width=8192,
    rope=Llama3(500000.0, factor=32.0, low=1.0, high=4.0, length=8192),
    tied=True,
)
