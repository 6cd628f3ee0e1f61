"""The settings of a tokenizer that a Hugging Face folder has in other files than the vocabulary.

They are read as ``AutoTokenizer`` of transformers 5.23 reads them (``tokenization_utils_base.py``): ``tokenizer_config.json``,
and, if that file has no ``added_tokens_decoder``, also ``special_tokens_map.json`` and ``added_tokens.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn import Error
from msrnn.errors import is_int
from msrnn.storage.files import read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Names of special tokens in transformers; templates see them, and models may have more."""
OWN = "model_specific_special_tokens"
"""Field of ``tokenizer_config.json`` with special tokens by further names."""
FLAGS = ("add_bos_token", "add_eos_token", "legacy", "add_prefix_space")
"""Switches of ``tokenizer_config.json``."""
TOKEN_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")
KEPT = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "split_special_tokens")
"""Fields of ``tokenizer_config.json`` that are written again as they were read."""
CLASS_TOKENS = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
}
"""Special tokens of the tokenizer classes, for names that the files leave out."""


@dataclass(frozen=True)
class Settings:
    """The settings of a tokenizer. A token is a dict with ``content`` and the flags of ``tokenizers.AddedToken``.

    Attributes:
        tokenizer_class: the class of transformers that reads the vocabulary, without ``Fast``; empty if unknown.
        special: special tokens by name; None: the model has no such token, and a default does not apply.
        extra: further special tokens.
        added: added tokens by id.
        complete: True if ``added`` has the added tokens of ``tokenizer.json`` too.
        flags: ``add_bos_token``, ``add_eos_token``, ``legacy`` and ``add_prefix_space``, those that a file states.
        kept: other fields of ``tokenizer_config.json`` that are written again.
    """

    tokenizer_class: str = ""
    special: Mapping[str, dict[str, Any] | None] = field(default_factory=dict)
    extra: tuple[dict[str, Any], ...] = ()
    added: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    complete: bool = False
    flags: Mapping[str, bool] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)

    def tokens_to_add(self, present: set[str]) -> list["AddedToken"]:
        """Return the tokens that transformers adds to a tokenizer, in its order; ``present``: tokens added before."""
        named = {token["content"] for token in self.special.values() if token}
        by_content = {token["content"]: token for token in self.added.values()}
        tokens = [token for _, token in sorted(self.added.items())]
        known = present | by_content.keys()
        for token in (*filter(None, self.special.values()), *self.extra):
            if token["content"] not in known:
                known = known | {token["content"]}
                tokens.append(token)
        return [_added_token(token | {"special": token["special"] or token["content"] in named}) for token in tokens]

    def with_defaults(self, special: Mapping[str, str]) -> "Settings":
        """Return the settings with special tokens of the vocabulary, for names that the files leave out."""
        return replace(self, special=_in_order(special, self.special))

    def to_config(self) -> dict[str, Any]:
        """Return ``tokenizer_config.json`` for a ``tokenizer.json`` that contains all tokens."""
        special = {name: token["content"] for name, token in self.special.items() if token}
        own = {name: text for name, text in special.items() if name not in NAMES}
        fields: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **self.kept}
        fields |= {name: text for name, text in special.items() if name in NAMES}
        if own:
            fields["extra_special_tokens"] = own
        elif self.extra:
            fields["extra_special_tokens"] = [token["content"] for token in self.extra]
        return fields


def read_settings(folder: Path, vocabulary: bytes) -> Settings:
    """Return the settings of the tokenizer in ``folder``; without any of the files they are empty.

    Args:
        folder: with the settings.
        vocabulary: the content of the vocabulary file.

    Raises:
        Error: a file is damaged, or a field has a wrong type.
    """
    config, where = _read(folder, CONFIG), folder / CONFIG
    values = {name: value for name, value in config.items() if name.endswith("_token")}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    complete = "added_tokens_decoder" in config
    if not complete:
        more = _read(folder, SPECIAL)
        values |= {name: value for name, value in more.items() if name.endswith("_token")}
        extra = extra or more.get("extra_special_tokens") or more.get("additional_special_tokens")
    if isinstance(extra, dict):
        values, extra = values | extra, None
    if (own := config.get(OWN)) is not None and not _named(values).keys() - set(NAMES):  # else transformers does not read it
        values |= _checked(own, dict, where, OWN)
    special = {key: None if value is None else _token(value, f"{where}: {key}") for key, value in _named(values).items()}
    further = tuple(_token(x, f"{where}: an extra token") for x in _checked(extra or [], list, where, "extra_special_tokens"))
    name = _class(folder, config, vocabulary)
    return Settings(
        tokenizer_class=name,
        special=_in_order(CLASS_TOKENS.get(name, {}), special),
        extra=further,
        added=_added(folder, config, {token["content"] for token in (*filter(None, special.values()), *further)}),
        complete=complete,
        flags={key: _checked(config[key], bool, where, key) for key in FLAGS if config.get(key) is not None},
        kept={key: config[key] for key in KEPT if config.get(key) is not None},
    )


def _added(folder: Path, config: Mapping[str, Any], special: set[str]) -> dict[int, dict[str, Any]]:
    """Return the added tokens by id, from ``added_tokens_decoder`` or else from ``added_tokens.json``."""
    if "added_tokens_decoder" in config:
        where, name = folder / CONFIG, "added_tokens_decoder"
        tokens = _checked(config[name], dict, where, name)
        return {_id(n, where): _token(token, f"{where}: an added token", special=False) for n, token in tokens.items()}
    where = folder / ADDED
    return {_id(n, where): _token(text, str(where), special=text in special) for text, n in _read(folder, ADDED).items()}


def _class(folder: Path, config: Mapping[str, Any], vocabulary: bytes) -> str:
    """Return the class with which transformers reads the vocabulary of a folder.

    transformers takes the pipeline of ``tokenizer.json`` as it stands for a Mistral, and for a byte-level vocabulary (Llama 3)
    under the class of SentencePiece's vocabularies.
    """
    model = _read(folder, "config.json")
    name = config.get("tokenizer_class") or model.get("tokenizer_class") or ""
    name = name.removesuffix("Fast") if isinstance(name, str) else ""
    byte_level = name == "LlamaTokenizer" and b'"ByteLevel"' in vocabulary
    return "" if byte_level or model.get("model_type") == "mistral" else name


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the special tokens among fields that end in ``_token``; others are switches, such as ``add_bos_token``."""
    return {name: x for name, x in values.items() if name in NAMES or isinstance(x, str | dict)}


def _in_order(defaults: Mapping[str, str], special: Mapping[str, dict[str, Any] | None]) -> dict[str, dict[str, Any] | None]:
    """Return the special tokens with defaults, in transformers' order, in which new tokens get their ids."""
    tokens = {**{name: _token(text, name) for name, text in defaults.items()}, **special}
    return {name: tokens[name] for name in (*NAMES, *tokens) if name in tokens}


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return read_json(path) if path.is_file() else {}


def _checked(value: Any, kind: type, where: object, name: str) -> Any:
    if not isinstance(value, kind):
        raise Error(f"{where}: {name} is {value!r:.60}; expected a {kind.__name__}")
    return value


def _id(n: Any, where: Path) -> int:
    number = int(n) if isinstance(n, str) and n.isdecimal() else n
    if not is_int(number) or number < 0:
        raise Error(f"{where}: the id of an added token is {n!r:.60}; expected an int of at least 0")
    return number


def _token(value: Any, what: str, special: bool = True) -> dict[str, Any]:
    """Return a token that a file describes as text or as an object; ``what`` is named in error messages.

    Raises:
        Error: a value of another type, without ``content``, or with a flag that is no bool.
    """
    fields = {"content": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        raise Error(f"{what} is {value!r:.60}; expected text, or an object with its content")
    flags = {name: _checked(fields[name], bool, what, name) for name in TOKEN_FLAGS if name in fields}
    special = flags.get("special", special and "__type" not in fields)  # "__type": written by transformers before 4.34
    flags = {"normalized": not special} | flags | {"special": special}
    return dict.fromkeys(TOKEN_FLAGS, False) | flags | {"content": fields["content"]}


def _added_token(token: Mapping[str, Any]) -> "AddedToken":
    from tokenizers import AddedToken  # deferred, because reading a config does not need the package

    return AddedToken(**token)
