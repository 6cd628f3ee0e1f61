"""A text in which the evicted tokens are struck out."""

from collections.abc import Sequence

STRIKE, END = "\x1b[9m", "\x1b[29m"
"""ANSI codes of struck-out text."""


def strike_out(text: str, spans: Sequence[tuple[int, int]], evicted: Sequence[bool], *, ansi: bool) -> str:
    """Return the text of the tokens, with the text of evicted tokens between ``~~``, or struck out by ANSI codes.

    Characters that belong to several tokens, such as the bytes of one emoji, are struck out if all of these tokens are
    evicted. White space at the ends of a struck part is not struck; white space between two struck parts is.

    Args:
        text: the text.
        spans: by token, its first and last character + 1 in ``text``; empty for special tokens.
        evicted: by token, True if it is evicted.
        ansi: True for ANSI codes, for a terminal.
    """
    begin, end = min((a for a, b in spans if a < b), default=0), max((b for _, b in spans), default=0)
    covered, retained = [False] * end, [False] * end
    for (first, last), gone in zip(spans, evicted, strict=True):
        for i in range(first, last):
            covered[i], retained[i] = True, retained[i] or not gone
    struck = [covered[i] and not retained[i] and not text[i].isspace() for i in range(end)]
    before, after = (STRIKE, END) if ansi else ("~~", "~~")
    parts, i = list[str](), begin
    while i < end:
        if not struck[i]:
            parts.append(text[i])
            i += 1
            continue
        stop = i
        for j in range(i, end):
            if struck[j]:
                stop = j + 1
            elif not text[j].isspace() or text[j] == "\n" or (covered[j] and retained[j]):
                break
        parts.append(f"{before}{text[i:stop]}{after}")
        i = stop
    return "".join(parts)
