"""Texts as chunks of tokens: each is read on its own, from an empty state."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..argtypes import read_text
from ..errors import Error
from ..storage.digest import digest

if TYPE_CHECKING:
    import tokenizers

ENDINGS = (".txt", ".md")


@dataclass(frozen=True, eq=False)
class Chunk:
    """T tokens of a text.

    Attributes:
        name: of the text, and how many chunks of it come before.
        ids: ``(T,)`` int64; where the tokenizer begins every text with a mark (LLaMA's), the chunk begins with it.
        text: the whole text that the chunk is part of.
        spans: for each token where it begins and ends in ``text``, in characters; an empty one for a mark.
        first: the first token to be predicted; before it there is nothing to predict from.
    """

    name: str
    ids: Tensor
    text: str
    spans: tuple[tuple[int, int], ...]
    first: int

    @property
    def n_bytes(self) -> int:
        """How long the predicted tokens are together, in UTF-8."""
        return len(self.text[self.spans[self.first - 1][1] : self.spans[-1][1]].encode())


def read_texts(path: Path) -> dict[str, str]:
    """By name, the text of one file, or of every .txt and .md file of a folder.

    Raises:
        Error: no such place, a folder without text, bytes that are no UTF-8.
    """
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS and p.is_file()) if path.is_dir() else [path]
    if not files:
        raise Error(f"{path} has no text; expected files that end in {' or '.join(ENDINGS)}")
    return {file.stem: read_text(file) for file in files}


def read_dataset(name: str, split: str) -> dict[str, str]:
    """By number, the texts of a split of a data set on the hub: its records' ``text`` (PG-19: ``emozilla/pg19``, ``test``).

    Raises:
        Error: no package ``datasets``, no such data set or split, records without text.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise Error("the package datasets is not installed; pip install 'msrnn[harness]'") from None
    try:
        records = load_dataset(name, split=split)
    except Exception as wrong:  # of many kinds: no network, no such name, no such split
        reason = str(wrong).strip().splitlines()[0] if str(wrong).strip() else type(wrong).__name__
        raise Error(f"cannot read split {split} of {name} ({reason:.200})") from None
    if "text" not in records.column_names:
        raise Error(f"split {split} of {name} has {', '.join(records.column_names)}; expected text")
    return {f"{name} {i}": text for i, text in enumerate(records["text"])}


def chunks(texts: dict[str, str], tokenizer: "tokenizers.Tokenizer", length: int, most: int | None = None) -> list[Chunk]:
    """Texts cut into chunks of ``length`` tokens, the first ``most`` of each; what is left over at the end is not read.

    Raises:
        Error: no text is as long as a chunk, or a chunk leaves nothing to predict.
    """
    marks = tokenizer.encode("").ids
    first, step = max(1, len(marks)), length - len(marks)
    if length <= first:
        raise Error(f"a chunk has {length} tokens; expected at least {first + 1}, so that one is predicted")
    found, longest = [], 0
    for name, text in texts.items():
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids, spans, longest = encoding.ids, encoding.offsets, max(longest, len(encoding.ids))
        for i in range(min(len(ids) // step, most or len(ids))):
            cut = slice(i * step, (i + 1) * step)
            begin = spans[cut.start][0]
            chunk = torch.tensor(marks + ids[cut])
            found.append(Chunk(f"{name} {i}", chunk, text, (*[(begin, begin)] * len(marks), *spans[cut]), first))
    if not found:
        raise Error(f"the longest text has {longest} tokens; expected at least {step}, a chunk")
    return found


def text_digest(chunks: Sequence[Chunk]) -> str:
    """A few letters that tell these texts from others, however many chunks of them are read."""
    return digest("".join(map(digest, dict.fromkeys(chunk.text for chunk in chunks))))
