"""Download the files of a hub id that are needed, by huggingface-hub with its cache and its progress bar."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from msrnn import Error

SMALL_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
SMALL_FILES += ["special_tokens_map.json", "added_tokens.json", "chat_template.json", "additional_chat_templates/*.jinja"]
SMALL_FILES += ["params.json", "adapter_config.json", "tokenizer.model", "tiktoken.model", "tekken.json"]
WEIGHTS = [
    ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"],
    ["consolidated.safetensors", "consolidated.safetensors.index.json", "consolidated-*-of-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"],
    ["consolidated.[0-9][0-9].pth"],
]
"""File patterns by preference. A repository often has the same weights in several formats; only the first is downloaded."""
CONFIGS = ("config.json", "params.json")


def split_id(source: str) -> tuple[str, str | None] | None:
    """Return the hub id in ``source`` and the GGUF file that it names, or None if there is no hub id.

    The forms are ``owner/name``, ``owner/name:Q4_K_M`` (a quantisation type) and ``owner/name/file.gguf``.
    """
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?::(\w[\w.-]*)|/(.+\.gguf))?", source, re.IGNORECASE)
    return (match[1], match[2] or match[3]) if match else None


def fetch(source: str, revision: str | None = None, *, gguf: str | None = None, weights: bool = True) -> Path:
    """Return the folder of a hub id, downloaded if it is not in the cache (``HF_HUB_OFFLINE=1``: from the cache only).

    Args:
        source: the hub id, ``owner/name``.
        revision: branch, tag or commit.
        gguf: a quantisation type or a file name; the result is that GGUF file. None: as a last choice, the only GGUF file.
        weights: download the weights too.

    Raises:
        Error: no such repository, revision or file, several GGUF files, or neither a network nor a cached copy.
    """
    from huggingface_hub import snapshot_download

    try:
        if gguf is None:
            for patterns in WEIGHTS if weights else [[]]:
                folder = Path(snapshot_download(source, revision=revision, allow_patterns=SMALL_FILES + patterns))
                found = patterns or CONFIGS
                if any(path for pattern in found for path in folder.glob(pattern)):
                    return folder
        names = _file_names(source, revision)
        if names is None:
            folder = Path(snapshot_download(source, revision=revision, allow_patterns=["*.gguf"]))
            names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.gguf"))]
        file = choose_gguf(names, gguf, source)
        if file is None:
            return folder
        return Path(snapshot_download(source, revision=revision, allow_patterns=[file])) / file
    except Error:
        raise
    except Exception as error:  # the errors of the HTTP library differ between versions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        failed = f"cannot fetch {source!r}{f' at {revision!r}' if revision else ''} from the hub ({reason:.300})"
        raise Error(f"{failed}{_next_step(error)}") from None


def _next_step(error: Exception) -> str:
    """Return the end of a message: what to try after a download has failed; "" where the reason says it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return "; expected the id of a repository that exists; a private or gated one needs a login (hf auth login)"
    is_local = isinstance(error, OSError) and (error.errno or 0) > 0 and not isinstance(error, ConnectionError | TimeoutError)
    if is_local or isinstance(error, HfHubHTTPError | HFValidationError):  # such as a full disk, or an unknown revision
        return ""
    return ", and no file or folder of this name is here; without a network, give the path of a model folder or a .gguf file"


def choose_gguf(names: Iterable[str], choice: str | None, where: str) -> str | None:
    """Return the GGUF file among ``names`` that is meant, or None if there is no GGUF file and no choice.

    Args:
        names: relative paths of files.
        choice: a file name, or a quantisation type in the names, in any case; None: the only file.
        where: the hub id or folder, for messages.

    Raises:
        Error: no file or several files; the message lists them.
    """
    files = [x for x in sorted(names) if x.lower().endswith(".gguf") and not PurePosixPath(x).name.startswith("mmproj")]
    if choice is None:
        chosen, found = files, "several GGUF files"
    elif choice.lower().endswith(".gguf"):
        chosen, found = [x for x in files if x == choice], f"no file {choice!r}"
    else:
        tag = re.compile(rf"(?:^|[-._/]){re.escape(choice)}(?=[-./])", re.IGNORECASE)
        chosen = [x for x in files if tag.search(x)]
        found = f"{'several files' if chosen else 'no file'} for {choice!r}"
    if len(chosen) == 1:
        return chosen[0]
    if choice is None and not files:
        return None
    listed = ", ".join(files[:12]) + (", …" if len(files) > 12 else "") if files else "no GGUF file"
    raise Error(f"{where} has {found}; expected one of {listed}; choose one: {where}/FILE")


def _file_names(source: str, revision: str | None) -> list[str] | None:
    """Return the files of a repository, or None without a network."""
    from huggingface_hub import list_repo_files

    try:
        return list_repo_files(source, revision=revision)
    except Exception:  # the errors of the HTTP library differ between versions; the cache is tried next and reports its own
        return None
