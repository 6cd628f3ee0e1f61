"""The chat templates and special tokens in the small files of a model (``Cell.extra_files``)."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import Error
from .chat_template import ChatTemplate, check_variables

if TYPE_CHECKING:
    import tokenizers

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
DEFAULT, TOOL_USE = "default", "tool_use"


def find_template(extra_files: Mapping[str, bytes], name: str | None = None, tools: bool = False) -> str | None:
    """Return the Jinja text of a template, or None if the model has no template.

    Args:
        extra_files: the small files of the model.
        name: the name of one of its templates; None: ``tool_use`` for a chat with tools, if there is one, or ``default``.
        tools: the chat has tools.

    Raises:
        Error: no template has the name, or a file is damaged.
    """
    listed = _config(extra_files).get("chat_template")
    templates = {x.get("name"): x.get("template") for x in listed if isinstance(x, dict)} if isinstance(listed, list) else {}
    if FILE in extra_files:
        templates[DEFAULT] = extra_files[FILE].decode(errors="replace")
    if not templates and name is None:
        return None
    if name is None:
        name = TOOL_USE if tools and TOOL_USE in templates else DEFAULT
    if not isinstance(templates.get(name), str):
        raise Error(f"the model has no chat template {name!r:.60}; expected one of {', '.join(map(str, templates)) or 'none'}")
    return templates[name]


def special_tokens(extra_files: Mapping[str, bytes], tokenizer: "tokenizers.Tokenizer", config: Any) -> dict[str, str]:
    """Return the special tokens of the tokenizer by the names that templates use.

    A model without ``tokenizer_config.json`` has the bos token and the first eos token of its config.

    Raises:
        Error: ``tokenizer_config.json`` is damaged.
    """
    if CONFIG in extra_files:
        fields = _config(extra_files)
        more = fields.get("extra_special_tokens")
        named = {name: x for name, x in fields.items() if name.endswith("_token")} | (more if isinstance(more, dict) else {})
        return {name: x for name, x in named.items() if isinstance(x, str)}
    ids = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
    return {name: "" if i is None else tokenizer.id_to_token(i) or "" for name, i in ids.items()}


def open_template(
    extra_files: Mapping[str, bytes],
    tokenizer: "tokenizers.Tokenizer",
    config: Any,
    name: str | None = None,
    variables: Mapping[str, Any] = MappingProxyType({}),
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> ChatTemplate | None:
    """Compile a template of a model with its special tokens, which ``variables`` replace where they have the same name.

    Args:
        extra_files, tokenizer, config: those of the model.
        name, tools: as in :func:`find_template`.
        variables: further names in the template.

    Raises:
        Error: as :func:`find_template`, :func:`special_tokens` and :class:`ChatTemplate`.
    """
    source = find_template(extra_files, name, tools is not None)
    if source is None:
        return None
    return ChatTemplate(source, special_tokens(extra_files, tokenizer, config) | check_variables(variables), tools)


def _config(extra_files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        fields = json.loads(extra_files.get(CONFIG, b"{}"))
    except (ValueError, RecursionError) as error:
        raise Error(f"{CONFIG} of the model is not JSON ({error})") from None
    return fields if isinstance(fields, dict) else {}
