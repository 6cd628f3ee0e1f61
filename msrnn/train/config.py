"""Configuration of a training run: a preset or a JSON file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import Error, did_you_mean
from ..models.config import Config
from ..models.decoder_config import DecoderConfig
from ..models.encoder_decoder import EncoderDecoderConfig
from ..models.registry import config_from_dict
from ..reductions.per_layer import per_layer
from ..reductions.registry import parse_reduction
from ..reductions.tova_paper import Full
from ..storage.files import read_json
from .run_config import RunConfig

BYTES, BPE = "bytes", "bpe"
"""Tokenizers: one token per byte, or a byte-level BPE trained on the text; ``bpe:4096`` gives the size of the vocabulary."""

RENAMED = {
    **{"batch": "batch_size", "chunk": "chunk_length", "carry": "chunks_per_state", "warmup": "warmup_steps"},
    **{"clip": "max_grad_norm", "held_out": "val_fraction", "every": "eval_every"},
}
"""Fields of older configuration files and their names today."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """All settings of a run except the text. The same configuration and text give the same numbers.

    Attributes:
        model: fields of the model config except ``vocab_size``, which follows from the tokenizer.
        tokenizer: ``bytes``, or for example ``bpe:4096``.

    The other fields are those of :class:`RunConfig`.

    Raises:
        Error: a field has a wrong type or value, or the model cannot be trained with these settings.
    """

    model: Mapping[str, Any] = field(kw_only=False)
    tokenizer: str = BYTES
    steps: int = 1000
    batch_size: int = 8
    chunk_length: int = 128
    reduction: str = "full"
    chunks_per_state: int = 1
    lr: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.1
    val_fraction: float = 0.05
    eval_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.model, Mapping):
            raise Error(f"model is {self.model!r:.60}; expected an object of fields")
        kind, _, size = self.tokenizer.partition(":") if isinstance(self.tokenizer, str) else ("", "", "")
        is_bpe = kind == BPE and size.isascii() and size.isdigit() and 257 <= int(size[:9]) <= 2**20
        if self.tokenizer != BYTES and not is_bpe:
            raise Error(f"tokenizer is {self.tokenizer!r:.60}; expected {BYTES}, or {BPE} with a size, such as {BPE}:4096")
        object.__setattr__(self, "model", dict(self.model))
        config = self.model_config(256 if self.tokenizer == BYTES else int(size))
        per_layer(parse_reduction(self.reduction), config.n_layers, Full())
        if isinstance(config, DecoderConfig) and config.positions == "learned":
            chunks = 1 if config.recurrent else self.chunks_per_state  # a recurrent memory restarts the clock with every chunk
            if chunks * self.chunk_length > config.context_length:
                product = f"chunks_per_state {chunks} times chunk_length {self.chunk_length}"
                raise Error(f"{product} exceeds the {config.context_length} learned positions (model.context_length)")

    def model_config(self, vocab_size: int) -> Config | DecoderConfig:
        """Return the model config for a vocabulary of ``vocab_size`` tokens.

        Raises:
            Error: a field is unknown, missing or invalid, or the model is an encoder-decoder.
        """
        if "vocab_size" in self.model:
            raise Error("model.vocab_size is given; expected no vocab_size, because the tokenizer defines it")
        config = config_from_dict({**self.model, "vocab_size": vocab_size})
        if isinstance(config, EncoderDecoderConfig):
            raise Error("model.family is 'encoder-decoder'; `msrnn train` trains decoder-only models")
        return config


TINY = TrainConfig(
    model={
        "family": "llama",
        "width": 128,
        "n_layers": 4,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 32,
        "ffn_width": 384,
        "norm_eps": 1e-5,
        "rope": {"rope_type": "default", "theta": 10000.0},
        "context_length": 1024,
    }
)
DECODER = {
    "family": "decoder",
    **{name: x for name, x in TINY.model.items() if name not in ("family", "norm_eps", "rope")},
    "ffn": "gelu",
    "ffn_width": 512,
    "norm": "layer",
}
PRESETS = {
    "tiny": TINY,
    "tiny-decoder": replace(TINY, model={**DECODER, "dropout": 0.1}),
    "tiny-bounded": replace(TINY, reduction="tova:64", chunks_per_state=16),
    "tiny-xl": replace(TINY, reduction="window:128", chunks_per_state=16),
    "small": replace(
        TINY,
        model={**TINY.model, "width": 384, "n_layers": 6, "n_heads": 6, "head_dim": 64, "ffn_width": 1024},
        tokenizer="bpe:4096",
        steps=5000,
        chunk_length=256,
        lr=1e-3,
        warmup_steps=200,
    ),
}
"""Presets by name. ``tiny-decoder`` is a :class:`~msrnn.models.decoder.Decoder`; ``tiny-xl`` has the memory of Transformer-XL
(arXiv:1901.02860)."""


def read_train_config(name: str) -> TrainConfig:
    """Return a preset, or read a JSON file with fields of :class:`TrainConfig`.

    The field ``preset`` of a file names a preset that supplies the missing fields. The fields of ``model`` then replace single
    fields of the preset's model.

    Raises:
        Error: ``name`` is neither a preset nor a file, or a field is unknown or invalid.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".json"):
        found = f"--config is {name!r:.60}{did_you_mean(name, PRESETS)}"
        raise Error(f"{found}; expected one of {', '.join(PRESETS)}, or a .json file")
    values = read_json(Path(name))
    preset = values.pop("preset", None)
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        hint = did_you_mean(str(preset), PRESETS)
        raise Error(f"{name}: preset is {preset!r:.60}{hint}; expected one of {', '.join(PRESETS)}")
    known = [f.name for f in fields(TrainConfig)]
    for unknown in sorted(values.keys() - set(known)):
        if unknown in RENAMED:
            raise Error(f"{name}: field {unknown!r} has a new name; expected {RENAMED[unknown]!r}")
        raise Error(f"{name}: field {unknown!r:.60} is not known{did_you_mean(unknown, known)}; expected {', '.join(known)}")
    model = values.pop("model", {})
    if not isinstance(model, dict):
        raise Error(f"{name}: model is {model!r:.60}; expected an object of fields")
    if preset is None:
        return TrainConfig(model=model, **values)
    return replace(PRESETS[preset], model={**PRESETS[preset].model, **model}, **values)
