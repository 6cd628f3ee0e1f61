"""Chat templates: rendering of a conversation in the text format of a model.

Templates are Jinja programs from untrusted model folders, so they run in Jinja's sandbox. They get the names that
``apply_chat_template`` of transformers 5.23 defines (``utils/chat_template_utils.py``), and no others.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import Error

if TYPE_CHECKING:
    import jinja2

Message = dict[str, str]
"""``role`` (system, user, assistant) and ``content``."""
RESERVED = ("messages", "tools", "add_generation_prompt")
"""Names in a template that are no variables of :class:`ChatTemplate`."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja text.
        variables: values of names in the template, such as ``bos_token`` or ``enable_thinking``; they consist of JSON types.
        tools: JSON schemas of functions that the model may call; None: no tools.

    Raises:
        Error: the text is not a template, or a variable or a tool has another type.
    """

    def __init__(
        self, source: str, variables: Mapping[str, Any] = MappingProxyType({}), tools: Sequence[Mapping[str, Any]] | None = None
    ):
        self._names = {"tools": None, "documents": None, **check_variables(variables)}
        if tools is not None:
            self._names["tools"] = _check_tools(tools)
        try:
            self._compiled = _environment().from_string(source)
        except Exception as error:  # Jinja computes constants of the untrusted program, which can raise any exception
            raise Error(f"the chat template is not valid Jinja ({_sentence(error)})") from None

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Render the conversation.

        Args:
            messages: the conversation.
            add_generation_prompt: end the text where the assistant's answer begins.

        Raises:
            Error: the template rejects the conversation or fails.
        """
        names = {**self._names, "add_generation_prompt": add_generation_prompt}
        try:
            return self._compiled.render(messages=[dict(m) for m in messages], **names)
        except Exception as error:  # an untrusted program can raise any exception
            raise Error(f"the chat template rejects the conversation ({_sentence(error)})") from None


def check_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the variables of a template.

    Raises:
        Error: a name that is no identifier or that the chat sets itself, or a value of another type than JSON's.
    """
    if not isinstance(variables, Mapping):
        raise Error(f"template_variables are {variables!r:.60}; expected a dict of values by name")
    for name in variables:
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
            raise Error(f"template variable is named {name!r:.60}; expected a name, and none of {', '.join(RESERVED)}")
    return {name: _plain(value, f"template variable {name}") for name, value in variables.items()}


def _check_tools(tools: Sequence[Mapping[str, Any]]) -> list[Any]:
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise Error(f"tools are {tools!r:.60}; expected a list of JSON schemas")
    for tool in tools:
        if not isinstance(tool, Mapping):
            hint = "; transformers.utils.get_json_schema makes one from a function" if callable(tool) else ""
            raise Error(f"a tool is {tool!r:.60}; expected a JSON schema, which is a dict{hint}")
    return [_plain(tool, "a tool") for tool in tools]


def _plain(value: Any, where: str) -> Any:
    """Return a copy of ``value`` of JSON's types: the methods of other objects would be open to the untrusted program."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(name, where): _plain(x, where) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x, where) for x in value]
    raise Error(f"{where} contains {value!r:.60}; expected text, numbers, bools, None, lists and dicts")


def _environment() -> "jinja2.Environment":
    from jinja2 import TemplateError, ext, nodes, parser, sandbox

    class Generation(ext.Extension):
        """The ``{% generation %}`` block, which marks the assistant's text for training; it renders as its contents."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's own convention)

        def parse(self, parser: parser.Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(x: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson  # Jinja's own filter escapes HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
