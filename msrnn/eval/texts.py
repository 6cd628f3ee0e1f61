"""Texts, split into chunks of tokens. Each chunk is read from an empty state."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..argtypes import read_text
from ..errors import Error, counted, missing_package
from ..storage.digest import digest

if TYPE_CHECKING:
    import tokenizers

ENDINGS = (".txt", ".md")


@dataclass(frozen=True, eq=False)
class Chunk:
    """T consecutive tokens of a text.

    Attributes:
        name: name of the text and number of the chunk.
        ids: ``(T,)`` int64. The chunk starts with the bos tokens if the tokenizer adds them to a text.
        text: the whole text.
        spans: for each token its first and last character + 1 in ``text``; empty for a bos token.
        first: index of the first predicted token; the tokens before it have no context.
    """

    name: str
    ids: Tensor
    text: str
    spans: tuple[tuple[int, int], ...]
    first: int

    @property
    def text_name(self) -> str:
        """Name of the text, without the number of the chunk."""
        return self.name.rpartition(" ")[0]

    @property
    def n_bytes(self) -> int:
        """Length of the predicted tokens in UTF-8 bytes."""
        return len(self.text[self.spans[self.first - 1][1] : self.spans[-1][1]].encode())


def read_texts(path: Path) -> dict[str, str]:
    """Return the text of a file, or of every .txt and .md file of a folder, by file name without its ending.

    Raises:
        Error: a file cannot be read or is not UTF-8, or the folder has no such file, or two that differ only by the ending.
    """
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS and p.is_file()) if path.is_dir() else [path]
    if not files:
        raise Error(f"{path} has no text; expected files that end in {' or '.join(ENDINGS)}")
    texts: dict[str, str] = {}
    for file in files:
        if file.stem in texts:
            raise Error(f"{path} has two texts with the name {file.stem}; expected names that differ without the ending")
        texts[file.stem] = read_text(file)
    return texts


def read_dataset(name: str, split: str) -> dict[str, str]:
    """Return the field ``text`` of the records of a data set on the hub, by name and number (PG-19: ``emozilla/pg19``).

    The messages say that there is no such file, because ``name`` can be a misspelt path.

    Raises:
        Error: the package ``datasets``, the data set, the split or the field is missing.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        missing = missing_package("datasets", "harness")
        raise Error(f"{name} is no file or folder, and for a data set of the hub {missing}") from None
    try:
        records = load_dataset(name, split=split)
    except Exception as error:  # of many types: no network, no such name, no such split
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        found = f"{name} is no file or folder, and the hub has no split {split} of a data set of this name"
        raise Error(f"{found} that can be read ({reason:.200})") from None
    if "text" not in records.column_names:
        raise Error(f"split {split} of {name} has {', '.join(records.column_names)}; expected text")
    return {f"{name} {i}": text for i, text in enumerate(records["text"])}


def split_into_chunks(
    texts: dict[str, str], tokenizer: "tokenizers.Tokenizer", length: int, limit: int | None = None
) -> list[Chunk]:
    """Return chunks of ``length`` tokens, at most ``limit`` per text. The remainder of a text is not used.

    Raises:
        Error: every text is shorter than a chunk, or a chunk has no predicted token.
    """
    bos = tokenizer.encode("").ids
    first, step = max(1, len(bos)), length - len(bos)
    if length <= first:
        raise Error(f"--chunk is {length}; expected at least {first + 1}, because the first token is not predicted")
    chunks, longest = [], 0
    for name, text in texts.items():
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids, spans, longest = encoding.ids, encoding.offsets, max(longest, len(encoding.ids))
        for i in range(min(len(ids) // step, limit or len(ids))):
            cut = slice(i * step, (i + 1) * step)
            begin = spans[cut.start][0]
            chunk_spans = (*[(begin, begin)] * len(bos), *spans[cut])
            chunks.append(Chunk(f"{name} {i}", torch.tensor(bos + ids[cut]), text, chunk_spans, first))
    if not chunks:
        raise Error(f"the longest text has {counted(longest, 'token')}; expected at least {step}, the length of a chunk")
    return chunks


def text_digest(chunks: Sequence[Chunk]) -> str:
    """Return a digest of the texts, which does not depend on the number of chunks."""
    return digest("".join(map(digest, dict.fromkeys(chunk.text for chunk in chunks))))
