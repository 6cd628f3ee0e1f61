"""The steps of a text in the terminal, while it is generated."""

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from torch import Tensor

from ..text.evicted_words import strike_out
from .observe import ObservedLayer
from .texts import token_texts

if TYPE_CHECKING:
    import tokenizers

PREDICTIONS = 3
"""Number of most probable next tokens that are shown."""


class LiveSteps:
    """A printer of steps: the token, the eviction in one layer and why, and the most probable next tokens.

    A terminal also shows the text with the evicted tokens struck out, and each step replaces the one before it.

    Args:
        tokenizer: of the model.
        layer: index of the layer that is shown.
        out: the output; None is standard output.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer", layer: int = 0, out: TextIO | None = None):
        self._tokenizer, self._layer = tokenizer, layer
        self._out = sys.stdout if out is None else out
        self._n_lines = 0
        self._is_terminal = self._out.isatty() and os.environ.get("TERM") != "dumb"

    def __call__(self, ids: Sequence[int], logits: Tensor, layers: Sequence[ObservedLayer]) -> None:
        """Print the step of the last of ``ids``, given the logits ``(V,)`` after it and the layers that have read it."""
        layer = layers[self._layer]
        lines = [describe_step(self._tokenizer, ids, layer, self._layer), self._next_tokens(logits)]
        if self._is_terminal:
            lines += self._text(ids, layer)
            if self._n_lines:
                self._out.write(f"\x1b[{self._n_lines}A\x1b[J")  # up, and clear to the end of the screen
            width = shutil.get_terminal_size().columns
            self._n_lines = sum(max(1, -(-len(line) // width)) for line in lines[:2]) + len(lines[2:])
        print("\n".join(lines), file=self._out, flush=True)

    def end(self) -> None:
        """Start the next step below the last one."""
        self._n_lines = 0

    def _next_tokens(self, logits: Tensor) -> str:
        top = logits.float().softmax(-1).topk(min(PREDICTIONS, len(logits)))
        texts = token_texts(self._tokenizer, top.indices.tolist())
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return "  next token: " + ", ".join(f"{texts[i]!r} {p:.1%}" for i, p in pairs)

    def _text(self, ids: Sequence[int], layer: ObservedLayer) -> list[str]:
        """Return the last lines of the text, as many as fit, with the tokens struck out that head 0 does not hold."""
        size, texts = shutil.get_terminal_size(), token_texts(self._tokenizer, ids)
        held = set(layer.positions[0, layer.visible[0, -1]].tolist()) - {int(layer.evicted[0, -1])}
        lines, tokens, used = list[list[int]](), list[int](), 0
        for p, i in enumerate(ids):
            if used and used + len(texts[i]) >= size.columns:
                lines, tokens, used = [*lines, tokens], [], 0
            tokens, used = [*tokens, p], used + len(texts[i])
        shown = []
        for line in [*lines, tokens][-max(1, size.lines - 6) :]:
            words, spans = "", list[tuple[int, int]]()
            for p in line:
                word = texts[ids[p]].replace("\n", "⏎").replace("\r", " ").replace("\t", " ").replace("\x1b", " ")
                spans.append((len(words), len(words) + len(word)))
                words += word
            shown.append(strike_out(words, spans, [p not in held for p in line], ansi=True))
        return shown


def describe_step(tokenizer: "tokenizers.Tokenizer", ids: Sequence[int], layer: ObservedLayer, index: int) -> str:
    """Return what layer ``index`` does at the last of ``ids``, in one line; of several heads, head 0."""
    p, (own, others, tied) = int(layer.evicted[0, -1]), (float(x[0, -1]) for x in layer.decisions())
    texts = token_texts(tokenizer, [ids[-1], *([ids[p]] if p >= 0 else [])])
    n, name = int(layer.visible[0, -1].sum()), f"layer {index}{', head 0' if len(layer.weights) > 1 else ''}"
    start = f"step {len(ids) - 1} reads {texts[ids[-1]]!r}; {name}"
    if p < 0:
        return f"{start} holds {n} tokens and evicts none ({layer.operator})"
    what = "this token" if p == len(ids) - 1 else f"{texts[ids[p]]!r} (token {p})"
    why = "the oldest of the lowest scores" if tied else f"the next lowest is {others:.3g}"
    return f"{start} evicts {what}: score {own:.3g}, the lowest of {n}; {why}"
