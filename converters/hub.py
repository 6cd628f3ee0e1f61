"""Download the files of a hub id that are needed, by huggingface-hub with its cache and its progress bar."""

import re
from pathlib import Path

from msrnn import Error

SMALL_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
SMALL_FILES += ["params.json", "adapter_config.json", "tokenizer.model"]
WEIGHTS = [
    ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"],
    ["consolidated.safetensors", "consolidated.safetensors.index.json", "consolidated-*-of-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"],
    ["consolidated.[0-9][0-9].pth"],
]
"""File patterns by preference. A repository often has the same weights in several formats; only the first is downloaded."""


def is_id(source: str) -> bool:
    """Return True if ``source`` has the form ``owner/name``."""
    return re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) is not None


def fetch(source: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return the folder of a hub id, downloaded if it is not in the cache (``HF_HUB_OFFLINE=1``: from the cache only).

    Raises:
        Error: no such repository or revision, or neither a network nor a cached copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for patterns in WEIGHTS if weights else [[]]:
            folder = Path(snapshot_download(source, revision=revision, allow_patterns=SMALL_FILES + patterns))
            if any(path for pattern in patterns for path in folder.glob(pattern)):
                break
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Error(f"cannot fetch {source!r}{f' at {revision!r}' if revision else ''} from the hub ({reason})") from None
    return folder
