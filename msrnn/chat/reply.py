"""What a reply of a chat consists of: chunks of text, and counts."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReplyStats:
    """Counts of one reply.

    Attributes:
        prompt_tokens: tokens read before the reply.
        reread_tokens: tokens of earlier turns among them, read again because the template rendered them differently.
        completion_tokens: tokens generated.
        forward_passes: forward passes that generated them.
        finished: True if an end token or a stop string ended the reply; False after an interrupt or ``max_new_tokens``.
        seconds: time of generation.
    """

    prompt_tokens: int
    reread_tokens: int
    completion_tokens: int
    forward_passes: int
    finished: bool
    seconds: float = field(compare=False)


class TextChunk(str):
    """Text of one forward pass, which generated ``n_tokens`` tokens; with 0 the text that was held back until the end."""

    n_tokens: int

    def __new__(cls, text: str, n_tokens: int) -> "TextChunk":
        chunk = super().__new__(cls, text)
        chunk.n_tokens = n_tokens
        return chunk
