"""The tokens that a tokenizer adds before and after every text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def add_bos_and_eos(tokenizer: "Tokenizer", bos: str | None, eos: str | None) -> None:
    """Let ``tokenizer`` add ``bos`` before and ``eos`` after every text; None: no such token."""
    from tokenizers.processors import TemplateProcessing

    first, last = [bos] if bos is not None else [], [eos] if eos is not None else []
    names = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(first + last)]
    pair = [*first, "$A:0", *last, *(f"{x}:1" for x in first), "$B:1", *(f"{x}:1" for x in last)]
    tokenizer.post_processor = TemplateProcessing(single=[*first, "$A", *last], pair=pair, special_tokens=names)
