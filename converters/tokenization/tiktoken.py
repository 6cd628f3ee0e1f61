"""Read tiktoken's rank file, the ``tokenizer.model`` of Llama 3: lines of a token in base64 and its rank.

The file has no special tokens. They are those of the folder's settings. A folder of Meta has no settings. There they are those
of Meta's code (github.com/meta-llama/llama3 ``llama/tokenizer.py``), from 3.1 on with the names of the Hugging Face folders.
"""

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING

from msrnn import Error
from msrnn.storage.files import read_json

from . import byte_ranks
from .settings import Settings
from .word_splitting import LLAMA3

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tiktoken.model"
N_SPECIAL = 256
LLAMA30 = ["<|begin_of_text|>", "<|end_of_text|>", "{0}", "{1}", "{2}", "{3}", "<|start_header_id|>", "<|end_header_id|>"]
LLAMA30 += ["{4}", "<|eot_id|>"]
LLAMA31 = ["<|begin_of_text|>", "<|end_of_text|>", "{0}", "{1}", "<|finetune_right_pad_id|>", "{2}"]
LLAMA31 += ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
"""The first special tokens; numbers in braces are reserved tokens, which also follow."""


def matches(data: bytes) -> bool:
    """Return True if ``data`` begins like a rank file, which SentencePiece's file of the same name does not."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", data) is not None


def parse_tokenizer(data: bytes, path: Path, settings: Settings) -> tuple["Tokenizer", dict[str, str]]:
    """Return the tokenizer of the file and, for a folder of Meta, its special tokens by transformers' names.

    Raises:
        Error: the file is damaged.
    """
    try:
        lines = [line.split() for line in data.splitlines() if line.strip()]
        ranks = {int(rank): base64.b64decode(token, validate=True) for token, rank in lines}
    except ValueError:
        raise Error(f"{path} is not a file of tiktoken, or is damaged; expected lines of base64 and a rank") from None
    if sorted(ranks) != list(range(len(lines))):
        raise Error(f"{path} has {len(lines)} lines; expected the ranks from 0 to {len(lines) - 1}, each once")
    start = len(ranks)
    if settings.added or settings.special:
        added = {n: token["content"] for n, token in settings.added.items() if n >= start}
        texts = [added.get(n, f"<|reserved_token_{n}|>") for n in range(start, max(added, default=start - 1) + 1)]
        special: dict[str, str] = {}
    else:
        texts = _llama3(path.parent)
        special = {"bos_token": texts[0], "eos_token": texts[1]}
    ids = {text: start + n for n, text in enumerate(texts)}
    return byte_ranks.build_tokenizer([ranks[n] for n in range(start)], 0, ids, LLAMA3, path), special


def _llama3(folder: Path) -> list[str]:
    """Return the special tokens of Llama 3, in a folder with ``use_scaled_rope`` those of 3.1 and later."""
    params = folder / "params.json"
    first = LLAMA31 if params.is_file() and read_json(params).get("use_scaled_rope") else LLAMA30
    used, reserved = sum(text.startswith("{") for text in first), "<|reserved_special_token_{}|>"
    texts = [reserved.format(text[1:-1]) if text.startswith("{") else text for text in first]
    return texts + [reserved.format(used + n) for n in range(N_SPECIAL - len(first))]
