"""The tokenizer of a folder: its vocabulary file, with the settings of the folder (:mod:`.settings`).

The vocabulary is in ``tokenizer.json``, in SentencePiece's or tiktoken's ``tokenizer.model``, or in Mistral's ``tekken.json``.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn.errors import Error
from msrnn.storage.files import parse_json, read_bytes

from . import llama, sentencepiece, tekken, tiktoken
from .processing import add_bos_and_eos
from .settings import Settings, read_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

JSON = "tokenizer.json"
FILES = (JSON, sentencepiece.FILE, tiktoken.FILE, tekken.FILE)


class NoTokenizer(Error):
    """The source has no tokenizer."""


def read_tokenizer(folder: Path) -> "Tokenizer":
    """Return the tokenizer of a folder. Its ids are those of transformers; docs/converting.md names the exceptions.

    Raises:
        NoTokenizer: the folder has none of :data:`FILES`.
        Error: a file is damaged or of an unknown kind.
    """
    return open_tokenizer(folder)[0]


def open_tokenizer(folder: Path) -> tuple["Tokenizer", Settings, bytes]:
    """Return tokenizer, settings and ``tokenizer.json``, which is unchanged where the settings change nothing.

    Raises as :func:`read_tokenizer`.
    """
    name = next((name for name in FILES if (folder / name).is_file()), None)
    if name is None:
        raise NoTokenizer(f"{folder} has no tokenizer; expected one of {', '.join(FILES)}")
    path = folder / name
    data = read_bytes(path)
    settings = read_settings(folder, data)
    try:
        if name == JSON:
            tokenizer, settings, changed = _from_json(data, path, settings)
        else:
            (tokenizer, settings), changed = _from_vocabulary(data, path, settings), True
        before = _added(tokenizer)
        tokenizer.add_tokens(settings.tokens_to_add({token.content for token in tokenizer.get_added_tokens_decoder().values()}))
        if name != JSON:
            add_bos_and_eos(tokenizer, _text(settings, "bos", True), _text(settings, "eos", False))
    except (Error, KeyboardInterrupt):
        raise
    except BaseException as error:  # tokenizers raises no narrower class, and its panics are not even an Exception
        raise Error(f"{path} is not a tokenizer ({error})") from None
    _check_ids(tokenizer, settings, folder)
    if changed or before != _added(tokenizer):
        data = tokenizer.to_str().encode()
    tokenizer.encode_special_tokens = bool(settings.kept.get("split_special_tokens"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, settings, data


def _from_json(data: bytes, path: Path, settings: Settings) -> tuple["Tokenizer", Settings, bool]:
    """Return the tokenizer of ``tokenizer.json``, the settings with its added tokens, and True if the file was rebuilt."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(data)
    fields = parse_json(data, path)
    if not settings.complete:
        added = {token["id"]: {k: v for k, v in token.items() if k != "id"} for token in fields.get("added_tokens") or ()}
        settings = replace(settings, added={**settings.added, **added})
    rebuilt = llama.rebuild(fields, settings)
    return (tokenizer, settings, False) if rebuilt is None else (rebuilt, settings, True)


def _from_vocabulary(data: bytes, path: Path, settings: Settings) -> tuple["Tokenizer", Settings]:
    """Return the tokenizer of a file that is no ``tokenizer.json``, and the settings with the special tokens of the file."""
    if path.name == tekken.FILE:
        tokenizer, special = tekken.parse_tokenizer(data, path)
    elif tiktoken.matches(data):
        tokenizer, special = tiktoken.parse_tokenizer(data, path, settings)
    else:
        tokenizer, special = sentencepiece.parse_tokenizer(data, path, llama.prepend_scheme(settings))
        # the spaces of the normalizer do not belong to an added token
        added = {n: token | {"normalized": False} for n, token in settings.added.items()}
        # transformers does not use a list of tokens here: those with an id are in the vocabulary or among the added ones
        settings = replace(settings, added=added, extra=())
    return tokenizer, settings.with_defaults(special)


def _text(settings: Settings, name: str, default: bool) -> str | None:
    """Return the token that starts or ends every text, or None."""
    token: dict[str, Any] | None = settings.special.get(f"{name}_token")
    return token["content"] if token and settings.flags.get(f"add_{name}_token", default) else None


def _added(tokenizer: "Tokenizer") -> dict[int, str]:
    return {n: repr(token) for n, token in tokenizer.get_added_tokens_decoder().items()}


def _check_ids(tokenizer: "Tokenizer", settings: Settings, folder: Path) -> None:
    """Refuse an added token with another id than its file states: the model was trained with that id."""
    for n, token in settings.added.items():
        if (found := tokenizer.token_to_id(token["content"])) != n:
            stated = f"{folder}: a settings file gives the added token {token['content']!r:.60} the id {n}"
            raise Error(f"{stated}, but the tokenizer gives it {found}; expected ids that follow those of the vocabulary")
