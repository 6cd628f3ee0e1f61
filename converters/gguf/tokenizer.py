"""Rebuild the tokenizer a GGUF file carries in its metadata, and its chat template.

Two kinds cover LLaMA, Mistral and Yi: ``llama``, SentencePiece's BPE with a score per piece, and ``gpt2``, byte-level
BPE, whose way of cutting text into words is only named (``tokenizer.ggml.pre``); the regular expressions are facts of
the models' own tokenizers. What a key means when absent is llama.cpp's (``src/llama-vocab.cpp``).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn.errors import Error

from .header import File, open_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type; 5 is a row never used
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE = "▁"  # SentencePiece writes a space so
LONGEST = 1000  # characters of a token; runs of spaces have some hundreds


def tokenizer(path: Path) -> "Tokenizer":
    """The file's tokenizer: ``encode(text).ids`` are the ids the model was trained on, ``decode`` the way back.

    Raises :class:`msrnn.Error` where the file has none, a kind or a word splitting not known here, or a damaged one.
    """
    return rebuild(open_file(path))


def rebuild(file: File) -> "Tokenizer":
    """:func:`tokenizer` of a header's metadata."""
    try:
        import tokenizers
    except ImportError as fault:
        raise Error('the package tokenizers is missing; expected it here: pip install "msrnn[gguf]"') from fault
    path = file.path
    kind, tokens = _get(file, "model", str), _get(file, "tokens", list, of=str)
    types = _get(file, "token_type", list, [NORMAL] * len(tokens), of=int)
    if len(types) != len(tokens) or not tokens:
        raise Error(f"{path}: {len(tokens)} tokens and {len(types)} token types; expected one type for each token")
    if (longest := max(map(len, tokens))) > LONGEST:
        raise Error(f"{path}: a token has {longest} characters; expected at most {LONGEST}")
    if len(set(tokens)) != len(tokens):
        raise Error(f"{path}: only {len(set(tokens))} of {len(tokens)} tokens differ; expected each to be there once")
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(kind)
    if build is None:
        raise Error(f"{path}: tokenizer.ggml.model is {kind!r}; expected 'gpt2' or 'llama'")
    try:
        result = build(file, tokens, types)
        for token, of in zip(tokens, types, strict=True):
            if of in (UNKNOWN, CONTROL, USER_DEFINED):  # found in the text as they stand, before anything is split
                added = tokenizers.AddedToken(token, special=of != USER_DEFINED, normalized=False)
                (result.add_tokens if of == USER_DEFINED else result.add_special_tokens)([added])
        _frame(result, file, tokens, begin=kind == "llama" or _pre(file) in LLAMA3)
    except (Error, KeyboardInterrupt):
        raise
    except BaseException as wrong:  # tokenizers raises nothing narrower, and where it panics not even an Exception
        raise Error(f"{path}: these tokens make no tokenizer ({wrong})") from None
    return result


def chat_template(path: Path) -> str | None:
    """The Jinja text by which a conversation becomes a prompt, or None where the file has none."""
    template = open_file(path).metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise Error(f"{path}: tokenizer.chat_template is {template!r:.60}; expected text")
    return template


def _get(file: File, name: str, kind: type, default: Any = None, of: type = object) -> Any:
    """``tokenizer.ggml.<name>``, checked; without a default it must be there."""
    value = file.metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(x, of) for x in value)):
        raise Error(f"{file.path}: tokenizer.ggml.{name} is {value!r:.60}; expected {kind.__name__} for a tokenizer")
    return value


def _pre(file: File) -> str:
    return _get(file, "pre", str, "default")


def _byte_level(file: File, tokens: list[str], types: list[int]) -> "Tokenizer":
    """Bytes written as printable characters, merged within words in the order of ``merges``."""
    from tokenizers import Tokenizer, decoders, models

    vocab = {token: n for n, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in _get(file, "merges", list, of=str)]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocab.keys():
            raise Error(f"{file.path}: merge {' '.join(merge)!r} is not of two tokens that make a third; expected that")
    # Llama 3 looks a word up whole before it merges: some of its tokens no sequence of merges reaches
    result = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=_pre(file) in LLAMA3))
    result.pre_tokenizer = _words(file)
    result.decoder = decoders.ByteLevel()
    return result


def _words(file: File) -> "PreTokenizer":
    """How text is cut into words. "default" is refused: it says that the writer of the file did not know."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    pre = _pre(file)
    if pre in LLAMA3:
        return Sequence([Split(Regex(LLAMA3_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    gpt2 = ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "gpt-2":
        return gpt2
    if pre == "smollm":
        return Sequence([Digits(individual_digits=True), gpt2])
    raise Error(f"{file.path}: tokenizer.ggml.pre is {pre!r}; expected 'smollm', 'gpt-2' or {', '.join(map(repr, LLAMA3))}")


def _sentencepiece(file: File, tokens: list[str], types: list[int]) -> "Tokenizer":
    """Characters merged, best score first; a character outside the vocabulary becomes its bytes, else the unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _get(file, "scores", list, of=float)
    if len(scores) != len(tokens):
        raise Error(f"{file.path}: {len(tokens)} tokens and {len(scores)} scores; expected one score for each token")
    bytes_too = BYTE in types
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    if unknown is None and not bytes_too:
        raise Error(f"{file.path}: neither an unknown token nor byte tokens; expected one of them for characters unheard of")
    pieces = {x: score for x, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    vocab = {token: n for n, token in enumerate(tokens)}
    result = Tokenizer(
        models.BPE(vocab=vocab, merges=list(_merges(pieces)), unk_token=unknown, fuse_unk=True, byte_fallback=bytes_too)
    )
    prefix = _get(file, "add_space_prefix", bool, True)
    start = [normalizers.Prepend(SPACE)] if prefix else []
    result.normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", SPACE)])
    end = [decoders.Strip(" ", 1, 0)] if prefix else []
    result.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *end])
    return result


def _merges(pieces: dict[str, float]) -> Iterator[tuple[str, str]]:
    """All ways to make a piece of two others, best score first: SentencePiece merges any two neighbours that make one."""
    for piece in sorted(pieces, key=pieces.__getitem__, reverse=True):  # stable: equal scores in order of ids
        for cut in range(1, len(piece)):
            if piece[:cut] in pieces and piece[cut:] in pieces:
                yield piece[:cut], piece[cut:]


def _frame(result: "Tokenizer", file: File, tokens: list[str], begin: bool) -> None:
    """Put the begin and end tokens around a text, where the file asks for it (``begin``: where it does not say)."""
    from tokenizers.processors import TemplateProcessing

    def mark(name: str, default: bool) -> list[str]:
        if not _get(file, f"add_{name}_token", bool, default):
            return []
        n = _get(file, f"{name}_token_id", int)
        if not 0 <= n < len(tokens):
            raise Error(f"{file.path}: tokenizer.ggml.{name}_token_id is {n}; expected less than {len(tokens)}")
        return [tokens[n]]

    first, last = mark("bos", begin), mark("eos", False)
    if first or last:
        names = [(token, result.token_to_id(token)) for token in dict.fromkeys(first + last)]
        pair = [*first, "$A:0", *last, *(f"{x}:1" for x in first), "$B:1", *(f"{x}:1" for x in last)]
        result.post_processor = TemplateProcessing(single=[*first, "$A", *last], pair=pair, special_tokens=names)
