"""A model's own chat template: how a conversation becomes the text that the model was trained to read.

Templates are programs in Jinja that come with a model from anywhere, so they run in Jinja's sandbox, with the names that
transformers gives them (``apply_chat_template``, transformers 5.23, ``utils/chat_template_utils.py``) and no others.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..errors import Error

if TYPE_CHECKING:
    import jinja2

Message = dict[str, str]
"""``role`` (system, user, assistant) and ``content``."""


class Template:
    """A chat template, compiled.

    Args:
        source: its Jinja text.
        bos_token, eos_token: what the template may write by these names.

    Raises:
        Error: Jinja is not installed, or the text is no template.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = ""):
        try:
            import jinja2
        except ImportError:
            raise Error("the package jinja2 is not installed; pip install 'msrnn[text]'") from None
        self._special = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._compiled = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as wrong:
            raise Error(f"the chat template cannot be read ({_sentence(wrong)})") from None

    def __call__(self, messages: Sequence[Message], *, ask: bool) -> str:
        """The conversation as text; with ``ask`` it ends where the assistant's answer begins.

        Raises:
            Error: the template refuses this conversation, or fails in whatever way a program can.
        """
        names = {"tools": None, "documents": None, "add_generation_prompt": ask, **self._special}
        try:
            return self._compiled.render(messages=[dict(m) for m in messages], **names)
        except Exception as wrong:  # a foreign program: any
            raise Error(f"the chat template refuses the conversation ({_sentence(wrong)})") from None


def _environment() -> "jinja2.Environment":
    from jinja2 import TemplateError, ext, nodes, parser, sandbox

    class Generation(ext.Extension):
        """``{% generation %}`` marks what an assistant wrote, for training; as text it is what it holds."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's own convention)

        def parse(self, parser: parser.Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(x: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson  # Jinja's own writes for HTML
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _sentence(wrong: BaseException) -> str:
    return " ".join(str(wrong).split())[:200] or type(wrong).__name__
