"""The tokenizer of a folder: ``tokenizer.json`` or SentencePiece's ``tokenizer.model``."""

from pathlib import Path
from typing import TYPE_CHECKING

from msrnn import Error
from msrnn.storage.files import read_bytes

from . import sentencepiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_tokenizer(folder: Path) -> "Tokenizer":
    """Return the tokenizer of a folder.

    Raises:
        Error: the package tokenizers is missing, or the folder has no tokenizer that can be read.
    """
    try:
        import tokenizers
    except ImportError:
        raise Error("the package tokenizers is not installed; pip install 'msrnn[text]'") from None
    path = folder / "tokenizer.json"
    if not path.is_file():
        if not (folder / sentencepiece.FILE).is_file():
            raise Error(f"{folder} has neither tokenizer.json nor {sentencepiece.FILE}")
        return sentencepiece.read_tokenizer(folder / sentencepiece.FILE)
    text = read_bytes(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(text)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # tokenizers raises no narrower class, and its panics are not even an Exception
        raise Error(f"{path} is not a tokenizer ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
