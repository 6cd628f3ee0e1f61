"""Build the tokenizer that the metadata of a GGUF file describes, and return its chat template.

There are two kinds. ``llama`` is SentencePiece's BPE with a score per piece (LLaMA 1 and 2, Mistral, Gemma). ``gpt2`` is
byte-level BPE, for which the file only names the rule that splits a text into words (:mod:`.word_splitting`). Missing keys have
llama.cpp's defaults (``src/llama-vocab.cpp``).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn.errors import Error

from ..fields import Fields
from .processing import add_bos_and_eos
from .word_splitting import COMPOSED, NAMES, WHOLE_WORDS, word_splitter

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Token types (``tokenizer.ggml.token_type``); tokens of type 5 are unused."""
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Names of special tokens in GGUF, by transformers' names."""
SPACE = "▁"
"""SentencePiece's character for a space."""
MAX_TOKEN_CHARACTERS = 1000
"""Real tokens have at most some hundreds, in runs of spaces."""


def build_tokenizer(metadata: Mapping[str, Any], path: Path) -> "Tokenizer":
    """Return the tokenizer of a file: ``encode(text).ids`` are the token ids of the model.

    Args:
        metadata: the metadata of the GGUF file, or the same keys from another format.
        path: the file, named in error messages.

    Raises:
        Error: the metadata have no tokenizer, an unknown kind or word splitting, or inconsistent values.
    """
    from tokenizers import AddedToken

    meta = Fields(metadata, path)
    kind, tokens = _get(meta, "model", str), _get(meta, "tokens", list, of=str)
    types = _get(meta, "token_type", list, [NORMAL] * len(tokens), of=int)
    if len(types) != len(tokens) or not tokens:
        raise Error(f"{path}: {len(tokens)} tokens and {len(types)} token types; expected one type for each token")
    if (longest := max(map(len, tokens))) > MAX_TOKEN_CHARACTERS:
        raise Error(f"{path}: a token has {longest} characters; expected at most {MAX_TOKEN_CHARACTERS}")
    if len(set(tokens)) != len(tokens):
        raise Error(f"{path}: only {len(set(tokens))} of {len(tokens)} tokens differ; expected each token once")
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(kind)
    if build is None:
        raise Error(f"{path}: tokenizer.ggml.model is {kind!r}; expected 'gpt2' or 'llama'")
    try:
        result = build(meta, tokens, types)
        for kinds, special in ((UNKNOWN, CONTROL), True), ((USER_DEFINED,), False):  # matched in the text before it is split
            added = [token for token, kind in zip(tokens, types, strict=True) if kind in kinds]
            # all at once, because every call builds the search for all of them again: Gemma has 6,000
            result.add_tokens([AddedToken(token, special=special, normalized=False) for token in added])
        _add_bos_and_eos(result, meta, tokens, bos_default=kind == "llama" or _pre(meta) in WHOLE_WORDS)
    except (Error, KeyboardInterrupt):
        raise
    except BaseException as error:  # tokenizers raises no narrower class, and its panics are not even an Exception
        raise Error(f"{path}: these tokens make no tokenizer ({error})") from None
    return result


def chat_template(metadata: Mapping[str, Any], path: Path) -> str | None:
    """Return the Jinja chat template, or None if the file has none.

    Raises:
        Error: the template is no text; ``path`` is the file, named in the message.
    """
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise Error(f"{path}: tokenizer.chat_template is {template!r:.60}; expected text")
    return template


def special_tokens(metadata: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the special tokens by transformers' names; raises as :func:`build_tokenizer`."""
    meta = Fields(metadata, path)
    tokens, found = _get(meta, "tokens", list, of=str), {}
    for name, key in SPECIAL.items():
        n = _get(meta, f"{key}_token_id", int, len(tokens))
        if 0 <= n < len(tokens):
            found[name] = tokens[n]
    return found


def _get(meta: Fields, name: str, kind: type, default: Any = None, of: type = object) -> Any:
    """Return ``tokenizer.ggml.<name>``, checked; without a default the key is required."""
    key = f"tokenizer.ggml.{name}"
    value = meta.values.get(key, default)
    if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(x, of) for x in value)):
        raise meta.error(key, f"{kind.__name__} for a tokenizer")
    return value


def _pre(meta: Fields) -> str:
    return _get(meta, "pre", str, "default")


def _byte_level(meta: Fields, tokens: list[str], types: list[int]) -> "Tokenizer":
    """Return byte-level BPE: bytes are written as printable characters and merged within words in the order of ``merges``."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {token: n for n, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in _get(meta, "merges", list, of=str)]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocab.keys():
            raise Error(
                f"{meta.where}: merge {' '.join(merge)!r} is no pair of tokens that join to a third; expected such a pair"
            )
    pre = _pre(meta)
    if pre not in NAMES:  # also "default", which means that the rule is unknown
        raise Error(f"{meta.where}: tokenizer.ggml.pre is {pre!r:.60}; expected one of {', '.join(NAMES)}")
    # Llama 3 first searches the vocabulary for the whole word, because no sequence of merges produces some of its tokens
    result = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in WHOLE_WORDS))
    if pre in COMPOSED:
        result.normalizer = normalizers.NFC()
    result.pre_tokenizer = word_splitter(pre)
    result.decoder = decoders.ByteLevel()
    return result


def _sentencepiece(meta: Fields, tokens: list[str], types: list[int]) -> "Tokenizer":
    """Return SentencePiece's BPE: characters are merged, best score first.

    A character outside the vocabulary becomes its byte tokens or, without them, the unknown token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _get(meta, "scores", list, of=float)
    if len(scores) != len(tokens):
        raise Error(f"{meta.where}: {len(tokens)} tokens and {len(scores)} scores; expected one score for each token")
    has_bytes = BYTE in types
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    if unknown is None and not has_bytes:
        raise Error(f"{meta.where} has no unknown token and no byte tokens; expected one kind for unknown characters")
    pieces = {x: score for x, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    vocab = {token: n for n, token in enumerate(tokens)}
    result = Tokenizer(
        models.BPE(vocab=vocab, merges=list(_merges(pieces)), unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    )
    prefix = _get(meta, "add_space_prefix", bool, True)
    start = [normalizers.Prepend(SPACE)] if prefix else []
    result.normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", SPACE)])
    end = [decoders.Strip(" ", 1, 0)] if prefix else []
    result.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *end])
    return result


def _merges(pieces: dict[str, float]) -> Iterator[tuple[str, str]]:
    """Yield all pairs of pieces that join to a piece, best score first, as SentencePiece merges any two such neighbours."""
    for piece in sorted(pieces, key=pieces.__getitem__, reverse=True):  # stable, so equal scores are in the order of ids
        for cut in range(1, len(piece)):
            if piece[:cut] in pieces and piece[cut:] in pieces:
                yield piece[:cut], piece[cut:]


def _add_bos_and_eos(result: "Tokenizer", meta: Fields, tokens: list[str], bos_default: bool) -> None:
    """Add the begin and end tokens to every text if the file requests it; ``bos_default`` applies where the key is missing."""

    def special(name: str, default: bool) -> str | None:
        if not _get(meta, f"add_{name}_token", bool, default):
            return None
        n = _get(meta, f"{name}_token_id", int)
        if not 0 <= n < len(tokens):
            raise Error(f"{meta.where}: tokenizer.ggml.{name}_token_id is {n}; expected less than {len(tokens)}")
        return tokens[n]

    bos, eos = special("bos", bos_default), special("eos", False)
    if bos is not None or eos is not None:
        add_bos_and_eos(result, bos, eos)
