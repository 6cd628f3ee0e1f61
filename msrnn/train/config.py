"""What a training run is: the model's facts and how it learns, from a preset or a JSON file."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import Error
from ..models.config import Config
from ..models.decoder_config import DecoderConfig
from ..models.encoder_decoder import EncoderDecoderConfig
from ..models.registry import config_from_dict
from ..reductions.registry import parse_reduction, per_layer
from ..storage.files import read_json

BYTES, BPE = "bytes", "bpe"
"""Tokenizers: each byte a token; or byte-level BPE trained on the text, ``bpe:4096`` with the size of its vocabulary."""


@dataclass(frozen=True)
class Recipe:
    """A run, but for its text: the same recipe on the same text gives the same numbers.

    Attributes:
        model: facts of the model's config but the vocabulary, which is the tokenizer's.
        tokenizer: ``bytes``, or such as ``bpe:4096``.
        steps: of the optimizer; each reads ``batch`` contiguous streams of the text, ``chunk`` tokens further.
        reduction: what bounds H while it learns, in its text form.
        carry: after so many chunks, and where a stream ends, H begins anew; until then it is carried from chunk to chunk,
            without its graph. 1: each chunk is read from an empty state.
        lr: the highest learning rate, reached after ``warmup`` steps; from there a cosine leads down to a tenth of it.
        weight_decay: AdamW's, of matrices only.
        clip: the longest gradient, of all parameters together.
        held_out: which part of the text, its end, is never learnt from.
        every: steps from one validation and save to the next.
        seed: of the parameters, of dropout, and of where in the text each epoch begins.
    """

    model: Mapping[str, Any]
    tokenizer: str = BYTES
    steps: int = 1000
    batch: int = 8
    chunk: int = 128
    reduction: str = "full"
    carry: int = 1
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.1
    clip: float = 1.0
    held_out: float = 0.05
    every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch": 1, "chunk": 2, "carry": 1, "warmup": 0, "every": 1, "seed": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
                raise Error(f"recipe: {name} is {value!r:.60}; expected a whole number of at least {least}")
        for name, most in {"lr": 1.0, "weight_decay": 1.0, "clip": 1e9, "held_out": 0.5}.items():
            value, bound = getattr(self, name), "of at least" if name == "weight_decay" else "above"
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            if not fits or not (0 < value <= most or (value == 0 and bound != "above")):
                raise Error(f"recipe: {name} is {value!r:.60}; expected a number {bound} 0, at most {most:g}")
        if not isinstance(self.tokenizer, str) or not isinstance(self.model, Mapping):
            raise Error(f"recipe: tokenizer is {self.tokenizer!r:.60} and model {self.model!r:.60}; expected a text and facts")
        kind, _, size = self.tokenizer.partition(":")
        if self.tokenizer != BYTES and not (
            kind == BPE and size.isascii() and size.isdigit() and 257 <= int(size[:9]) <= 2**20
        ):
            raise Error(
                f"recipe: tokenizer is {self.tokenizer!r:.60}; expected {BYTES}, or {BPE} with a size, such as {BPE}:4096"
            )
        object.__setattr__(self, "model", dict(self.model))
        config = self.config(256 if self.tokenizer == BYTES else int(size))
        per_layer(parse_reduction(self.reduction), config.n_layers)
        carry = 1 if isinstance(config, DecoderConfig) and config.recurrent else self.carry  # its clock begins anew
        if isinstance(config, DecoderConfig) and config.positions == "learned" and carry * self.chunk > config.length:
            found = f"carry {carry} times chunk {self.chunk}"
            raise Error(f"recipe: {found} is beyond the {config.length} positions that are learned (model.length)")

    def config(self, vocab_size: int) -> Config | DecoderConfig:
        """The model's facts, now that the size of the vocabulary is known.

        Raises:
            Error: an unknown, missing or impossible fact; a model that reads a source.
        """
        if "vocab_size" in self.model:
            raise Error("recipe: model.vocab_size is said; expected none, as it is the tokenizer's")
        config = config_from_dict({**self.model, "vocab_size": vocab_size})
        if isinstance(config, EncoderDecoderConfig):
            raise Error(
                "recipe: model.family is 'encoder-decoder', which answers a source; expected one that goes on with a text"
            )
        return config


TINY = Recipe(
    model={
        "family": "llama",
        "width": 128,
        "n_layers": 4,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 32,
        "ffn_width": 384,
        "norm_eps": 1e-5,
        "rope": {"kind": "default", "theta": 10000.0},
        "length": 1024,
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
    "tiny-bounded": replace(TINY, reduction="tova:64", carry=16),
    "tiny-xl": replace(TINY, reduction="window:128", carry=16),
    "small": replace(
        TINY,
        model={**TINY.model, "width": 384, "n_layers": 6, "n_heads": 6, "head_dim": 64, "ffn_width": 1024},
        tokenizer="bpe:4096",
        steps=5000,
        chunk=256,
        lr=1e-3,
        warmup=200,
    ),
}
"""By name. ``tiny-decoder`` is of parts (``models/decoder.py``), ``tiny-xl`` has Transformer-XL's memory (arXiv:1901.02860)."""


def read_recipe(name: str) -> Recipe:
    """A preset, or a JSON file with fields of :class:`Recipe`; ``preset`` there names one that says the rest, and the facts of
    ``model`` take the place of the preset's one by one.

    Raises:
        Error: neither a preset nor a file; an unknown field, or a value that makes no sense.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".json"):
        raise Error(f"--config is {name!r:.60}; expected one of {', '.join(PRESETS)}, or a .json file")
    said = read_json(Path(name))
    preset = said.pop("preset", None)
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise Error(f"{name}: preset is {preset!r:.60}; expected one of {', '.join(PRESETS)}")
    known = [f.name for f in fields(Recipe)]
    if unknown := sorted(said.keys() - set(known)):
        raise Error(f"{name}: field {unknown[0]!r:.60} is not known; expected {', '.join(known)}")
    model = said.pop("model", {})
    if not isinstance(model, dict):
        raise Error(f"{name}: model is {model!r:.60}; expected facts by name")
    if preset is None:
        return Recipe(model=model, **said)
    return replace(PRESETS[preset], model={**PRESETS[preset].model, **model}, **said)
