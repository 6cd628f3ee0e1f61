"""Read Mistral's ``tekken.json`` (github.com/mistralai/mistral-common, ``tokens/tokenizers/tekken.py``).

The special tokens have the first ids, and the others follow in the order of their ranks.
"""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn import Error
from msrnn.storage.files import parse_json

from ..fields import Fields
from . import byte_ranks

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tekken.json"
FIRST_VERSION = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""Special tokens of files that do not list them."""
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def parse_tokenizer(data: bytes, path: Path) -> tuple["Tokenizer", dict[str, str]]:
    """Return the tokenizer of the file, and its special tokens by transformers' names.

    Raises:
        Error: the file is damaged.
    """
    fields = parse_json(data, path)
    config, vocab, listed = fields.get("config"), fields.get("vocab"), fields.get("special_tokens")
    if not isinstance(config, dict) or not isinstance(config.get("pattern"), str) or not isinstance(vocab, list):
        raise Error(f"{path} has no vocab or no config.pattern; expected both, as in a file of mistral-common")
    texts = list(FIRST_VERSION) if listed is None else _special(listed, path)
    numbers = Fields(config, path)
    n_special = numbers.get_int("default_num_special_tokens", len(texts), at_least=len(texts))
    size = numbers.get_int("default_vocab_size", n_special + len(vocab), at_least=n_special)
    if size - n_special > len(vocab) or size > 2 * (len(vocab) + len(texts)) + 1000:
        raise Error(f"{path} has {len(vocab)} tokens; expected {size - n_special} and {n_special} special ones")
    texts += [f"<SPECIAL_{n}>" for n in range(len(texts), n_special)]
    try:
        ranks = [base64.b64decode(token["token_bytes"], validate=True) for token in vocab[: size - n_special]]
    except (TypeError, KeyError, ValueError):
        raise Error(f"{path}: a token has no token_bytes in base64; expected them for each token") from None
    special = {text: n for n, text in enumerate(texts)}
    result = byte_ranks.build_tokenizer(ranks, n_special, special, config["pattern"], path)
    return result, {name: text for name, text in NAMES.items() if text in special}


def _special(listed: Any, path: Path) -> list[str]:
    """Return the listed special tokens in the order of their ranks."""
    try:
        ranks = {token["rank"]: str(token["token_str"]) for token in listed}
    except (TypeError, KeyError):
        raise Error(f"{path}: special_tokens are malformed; expected tokens with a rank and a token_str") from None
    if len({*ranks.values()}) != len(listed) or ranks.keys() != set(range(len(listed))):
        raise Error(f"{path}: special_tokens have the ranks {sorted(map(str, ranks))!s:.60}; expected each from 0 on once")
    return [ranks[n] for n in range(len(ranks))]
