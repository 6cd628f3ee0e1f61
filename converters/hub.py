"""From a hub id to a folder on this machine, by huggingface-hub: its cache, its progress bar, only the files needed."""

import re
from pathlib import Path

from msrnn import Error

FACTS = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
FACTS += ["params.json", "adapter_config.json", "tokenizer.model"]
WEIGHTS = [
    ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"],
    ["consolidated.safetensors", "consolidated.safetensors.index.json", "consolidated-*-of-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"],
    ["consolidated.[0-9][0-9].pth"],
]
"""The same weights often lie in a repository twice or thrice; the first kind that is there is fetched."""


def is_id(source: str) -> bool:
    """Whether ``source`` looks like ``owner/name``."""
    return re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) is not None


def fetch(source: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a hub id, fetched where it is not in the cache yet (``HF_HUB_OFFLINE=1``: taken from there alone).

    Raises:
        Error: no such repository or revision, no network and nothing in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for kind in WEIGHTS if weights else [[]]:
            folder = Path(snapshot_download(source, revision=revision, allow_patterns=FACTS + kind))
            if any(path for pattern in kind for path in folder.glob(pattern)):
                break
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as wrong:
        reason = str(wrong).strip().splitlines()[0]
        raise Error(f"cannot fetch {source!r}{f' at {revision!r}' if revision else ''} from the hub ({reason})") from None
    return folder
