"""The text of single tokens, as the page shows them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


def token_texts(tokenizer: "tokenizers.Tokenizer", ids: Iterable[int]) -> dict[int, str]:
    """Return the text of each id, with its leading space, and special tokens by their names.

    Decoders remove the space at the start of a text, so each token is decoded after another one. Part of a character is U+FFFD.
    """
    before = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
    start, texts = tokenizer.decode(before, skip_special_tokens=False), dict[int, str]()
    for i in set(ids):
        text = tokenizer.decode([*before, i], skip_special_tokens=False)
        name = tokenizer.id_to_token(i)
        texts[i] = text.removeprefix(start) if text.startswith(start) and text != start else name or f"<{i}>"
    return texts
