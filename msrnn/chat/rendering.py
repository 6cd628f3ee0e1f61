"""The ids of a conversation, as the chat template of a model renders it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..cell.cell import Cell
from ..errors import Error
from ..text.chat_template import Message
from ..text.model_templates import open_template

if TYPE_CHECKING:
    import tokenizers

QUESTION, ANSWER = "QUESTION", "ANSWER"
"""Contents of a test conversation that shows how the template ends an answer."""


class Renderer:
    """The chat template of a model with its tokenizer.

    Args:
        cell: the model, with a chat template in its ``extra_files``.
        tokenizer: the result of ``converters.tokenizer``.
        system: the messages before the first question.
        name, variables, tools: ``chat_template``, ``template_variables`` and ``tools`` of :class:`msrnn.Chat`.

    Attributes:
        template: the compiled template.
        end_ids: ids that end a reply: the model's eos ids, and the special token after an answer in the template.

    Raises:
        Error: the model has no such chat template or one that drops messages, or a variable or tool is not of JSON types.
    """

    def __init__(
        self,
        cell: Cell,
        tokenizer: "tokenizers.Tokenizer",
        system: Sequence[Message] = (),
        name: str | None = None,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ):
        template = open_template(cell.extra_files, tokenizer, cell.config, name, variables or {}, tools)
        if template is None:
            raise Error("the model has no chat template (a base model?); `msrnn generate` continues a text")
        self.template, self._tokenizer = template, tokenizer
        self.end_ids = self._find_end_ids(cell, system)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the ids before a reply to ``messages``, of which the last one is the question.

        Raises:
            Error: the template rejects the conversation, or renders no tokens.
        """
        ids = self._encode(self.template(messages, add_generation_prompt=True))
        if not ids:
            raise Error("the rendered conversation is empty: the chat template produced no tokens")
        return ids

    def _find_end_ids(self, cell: Cell, system: Sequence[Message]) -> tuple[int, ...]:
        turn = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER})
        before, found, after = self.template((*system, *turn), add_generation_prompt=False).rpartition(ANSWER)
        if not found or QUESTION not in before:
            raise Error("the chat template drops messages; expected a template that renders the whole conversation")
        special = self._tokenizer.get_added_tokens_decoder()
        end = [i for i in self._encode(after) if i in special and not special[i].content.isspace()][:1]
        return tuple({*cell.config.eos_token_ids, *(i for i in end if i < cell.config.vocab_size)})

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)  # the template contains the special tokens
