"""The pipeline of transformers' ``LlamaTokenizer``, which does not use all parts of ``tokenizer.json``.

transformers from version 5 takes vocabulary, merges and post-processor of the file and replaces the rest
(``models/llama/tokenization_llama.py``): spaces become ``▁``, and one is put before the text. Before version 5 it used
the file as it stands.
"""

import copy
from typing import Any

from .bpe import SPACE
from .settings import Settings

CLASS = "LlamaTokenizer"


def prepend_scheme(settings: Settings) -> str | None:
    """Return where ``▁`` is put: before the ``first`` part of a text, before ``always`` every part, or ``never``.

    Parts are what added tokens leave of the text. None: the class of the tokenizer has no such rule.
    """
    if settings.tokenizer_class != CLASS:
        return None
    if not settings.flags.get("add_prefix_space", True):
        return "never"
    return "always" if settings.flags.get("legacy", False) else "first"


def rebuilt(fields: dict[str, Any], settings: Settings) -> dict[str, Any] | None:
    """Return the fields of ``tokenizer.json`` that transformers uses in place of ``fields``, or None if it uses these."""
    model, scheme = fields.get("model") or {}, prepend_scheme(settings)
    if settings.tokenizer_class == "GPT2Tokenizer" and "add_prefix_space" in settings.flags:
        return _with_prefix_space(fields, settings.flags["add_prefix_space"])
    if scheme is None or model.get("type") != "BPE":
        return None
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if scheme != "never" else []
    steps = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    pipeline: dict[str, Any] = {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": [*steps, *strip]},
        "added_tokens": [],
    }
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": True, "byte_fallback": True}
    return fields | pipeline | {"model": bpe | {"vocab": model.get("vocab"), "merges": model.get("merges")}}


def _with_prefix_space(fields: dict[str, Any], add: bool) -> dict[str, Any] | None:
    """Return ``fields`` with ``add_prefix_space`` in its byte-level pre-tokenizer, or None if nothing changes."""
    changed = copy.deepcopy({"pre_tokenizer": fields.get("pre_tokenizer")})
    step = changed["pre_tokenizer"] or {}
    for part in step.get("pretokenizers") or [step]:
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = add
    return None if changed["pre_tokenizer"] == fields.get("pre_tokenizer") else fields | changed
