"""Chat templates: rendering of a conversation in the text format of a model.

Templates are Jinja programs from untrusted model folders, so they run in Jinja's sandbox. They get the names that
``apply_chat_template`` of transformers 5.23 defines (``utils/chat_template_utils.py``), and no others.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..errors import Error

if TYPE_CHECKING:
    import jinja2
    import tokenizers

Message = dict[str, str]
"""``role`` (system, user, assistant) and ``content``."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja text.
        bos_token, eos_token: values of these names in the template.

    Raises:
        Error: Jinja is not installed, or the text is not a template.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = ""):
        try:
            import jinja2
        except ImportError:
            raise Error("the package jinja2 is not installed; pip install 'msrnn[text]'") from None
        self._special = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._compiled = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise Error(f"the chat template is not valid Jinja ({_sentence(error)})") from None

    @classmethod
    def from_file(
        cls, file: bytes, tokenizer: "tokenizers.Tokenizer", bos_token_id: int | None, eos_token_ids: Sequence[int]
    ) -> "ChatTemplate":
        """Compile the contents of ``chat_template.jinja``, with the text of the bos token and of the first eos token."""
        ids = (bos_token_id, next(iter(eos_token_ids), None))
        special = ("" if i is None else tokenizer.id_to_token(i) or "" for i in ids)
        return cls(file.decode(errors="replace"), *special)

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Render the conversation.

        Args:
            messages: the conversation.
            add_generation_prompt: end the text where the assistant's answer begins.

        Raises:
            Error: the template rejects the conversation or fails.
        """
        names = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt, **self._special}
        try:
            return self._compiled.render(messages=[dict(m) for m in messages], **names)
        except Exception as error:  # an untrusted program can raise any exception
            raise Error(f"the chat template rejects the conversation ({_sentence(error)})") from None


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
