"""The pipeline of transformers' ``LlamaTokenizer``, which does not use all parts of ``tokenizer.json``.

transformers from version 5 takes vocabulary, merges and post-processor of the file and replaces the rest
(``models/llama/tokenization_llama.py``): spaces become ``▁``, and one is put before the text. Before version 5 it used
the file as it stands.
"""

import copy
import json
from typing import TYPE_CHECKING, Any

from .bpe import SPACE
from .settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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


def rebuild(fields: dict[str, Any], settings: Settings) -> "Tokenizer | None":
    """Return the tokenizer that transformers makes of ``tokenizer.json``, or None if it uses the file as it stands.

    Args:
        fields: the content of ``tokenizer.json``.
        settings: those of the folder.
    """
    from tokenizers import Tokenizer

    model, scheme = fields.get("model") or {}, prepend_scheme(settings)
    if settings.tokenizer_class == "GPT2Tokenizer" and "add_prefix_space" in settings.flags:
        changed = _with_prefix_space(fields, settings.flags["add_prefix_space"])
        return None if changed is None else Tokenizer.from_str(json.dumps(changed))
    if scheme is None or model.get("type") != "BPE":
        return None
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": True, "byte_fallback": True}
    bpe |= {"vocab": model.get("vocab"), "merges": model.get("merges")}
    replaced: dict[str, Any] = {"normalizer": None, "pre_tokenizer": None, "decoder": None, "added_tokens": [], "model": bpe}
    tokenizer = Tokenizer.from_str(json.dumps(fields | replaced))
    set_pipeline(tokenizer, scheme)
    return tokenizer


def set_pipeline(tokenizer: "Tokenizer", scheme: str) -> None:
    """Let ``tokenizer`` write and read spaces as ``LlamaTokenizer`` does, with a scheme of :func:`prepend_scheme`."""
    from tokenizers import decoders, pre_tokenizers

    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if scheme != "never" else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def _with_prefix_space(fields: dict[str, Any], add: bool) -> dict[str, Any] | None:
    """Return ``fields`` with ``add_prefix_space`` in its byte-level pre-tokenizer, or None if nothing changes."""
    changed = copy.deepcopy({"pre_tokenizer": fields.get("pre_tokenizer")})
    step = changed["pre_tokenizer"] or {}
    for part in step.get("pretokenizers") or [step]:
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = add
    return None if changed["pre_tokenizer"] == fields.get("pre_tokenizer") else fields | changed
