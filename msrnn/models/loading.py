"""A model on disk: the library's own folder. Safetensors and JSON; nothing is unpickled.

A folder is ``config.json``, ``model.safetensors`` under the parameters' own names, and small extra files
(``tokenizer.json``, ``chat_template.jinja``).
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch

from ..cell.cell import Cell
from ..errors import Error, can_compute, check_device, check_dtype
from ..layers.rotary import KINDS, Rope
from ..storage.files import atomic_dir, read_bytes, read_json, write_json
from ..storage.lazy_tensors import LazyTensor
from ..storage.safetensors_io import open_tensors, write_tensors
from .config import Config
from .decoder import Decoder
from .decoder_config import DecoderConfig
from .encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from .llama import Llama
from .network import Network

FORMAT, VERSION = "msrnn", 1
Facts = Config | DecoderConfig | EncoderDecoderConfig
EXTRA_FILES = ("tokenizer.json", "chat_template.jinja")
"""Names of the small files that are stored with a model."""


def save(cell: Cell, folder: str | Path) -> None:
    """Write ``cell`` as the library's own folder, with its extra files.

    Args:
        cell: of any family.
        folder: a path that does not exist yet, or an empty folder.

    Raises:
        Error: the target exists and is not empty.
    """
    with atomic_dir(folder) as target:
        write(cell.config, {name: LazyTensor.of(x) for name, x in cell.state_dict().items()}, cell.extra_files, target)


def write(config: Facts, tensors: Mapping[str, LazyTensor], extra_files: Mapping[str, bytes], target: Path) -> None:
    """:func:`save` into a folder that is there and empty, the tensors one by one; ``config.json`` comes last."""
    write_tensors(target / "model.safetensors", tensors, {"format": "pt"})
    write_extra_files(extra_files, target)
    write_json(target / "config.json", {"format": FORMAT, "version": VERSION, **config_to_dict(config)})


def write_extra_files(extra_files: Mapping[str, bytes], target: Path) -> None:
    """Write the small files of a model into the folder ``target``.

    Raises:
        Error: a name that leads out of the folder, or to a file of the model's own.
    """
    for name, content in extra_files.items():
        if Path(name).name != name or (target / name).exists() or name == "config.json":
            raise Error(f"a file called {name!r:.60} cannot go along; expected one such as {', '.join(EXTRA_FILES)}")
        (target / name).write_bytes(content)


def load(folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Network:
    """Read a folder that :func:`save` wrote: a cell in eval mode with frozen parameters.

    Args:
        folder: its path.
        dtype: of the parameters; None keeps the file's.
        device: where to; None is the CPU.

    Raises:
        Error: no such folder, a file that is missing or corrupt, a config or tensors that do not fit together.
    """
    folder = Path(folder)
    cell = build(read_config(folder), open_tensors(folder / "model.safetensors"), dtype=dtype, device=device)
    cell.extra_files = read_extra_files(folder)
    return cell


def read_config(folder: Path) -> Facts:
    """The facts of a folder of the library's own.

    Raises:
        Error: another kind of folder, another version, a damaged file.
    """
    facts = read_json(folder / "config.json")
    if facts.pop("format", None) != FORMAT:
        raise Error(
            f"{folder} is not a folder of this library (config.json: no format 'msrnn'); converters.load reads other kinds"
        )
    if (version := facts.pop("version", None)) != VERSION:
        raise Error(f"{folder}/config.json: version is {version!r}; expected {VERSION}")
    return config_from_dict(facts)


def read_extra_files(folder: Path) -> dict[str, bytes]:
    """Return the files of ``EXTRA_FILES`` in ``folder`` by name, without empty ones."""
    paths = [folder / name for name in EXTRA_FILES]
    return {path.name: read_bytes(path) for path in paths if path.is_file() and path.stat().st_size}


def check(config: Facts, tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None = None) -> torch.dtype:
    """Whether ``tensors`` are the parameters of ``config``, before any is read; the one type they are to have.

    Raises:
        Error: a missing, extra, misshapen or wrongly typed tensor; several dtypes where ``dtype`` is None.
    """
    check_dtype(dtype)
    if config.n_layers > len(tensors):  # before a damaged number makes a giant
        raise Error(f"the config says {config.n_layers} layers, but there are only {len(tensors)} tensors")
    wanted = {name: tuple(x.shape) for name, x in on_meta(config).named_parameters()}
    for name, x in tensors.items():
        if name not in wanted:
            raise Error(f"tensor {name!r} is not part of this model")
        if x.shape != wanted[name]:
            raise Error(f"tensor {name!r} has shape {x.shape}; expected {wanted[name]}")
        if not can_compute(x.dtype):
            raise Error(f"tensor {name!r} is {x.dtype}; expected floating-point numbers")
    if missing := sorted(wanted.keys() - tensors.keys()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Error(f"tensor {missing[0]!r}{more} missing")
    types = {x.dtype for x in tensors.values()}
    if dtype is None and len(types) > 1:
        raise Error(f"the tensors are of several types, {', '.join(sorted(map(str, types)))}; say which one with dtype=")
    return types.pop() if dtype is None else dtype


def build(
    config: Facts,
    tensors: Mapping[str, LazyTensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Network:
    """A frozen cell from its facts and its parameters, which are copied one by one.

    Raises:
        Error: as :func:`check`, before any is read; whatever reading one raises.
    """
    kind = check(config, tensors, dtype)
    check_device(device)
    place = "cpu" if device is None else device
    cell = on_meta(config).eval().requires_grad_(False)
    cell._apply(lambda x: torch.empty(x.shape, dtype=kind, device=place))
    for name in sorted(tensors, key=lambda name: -math.prod(tensors[name].shape)):  # largest first: then little else is held
        cell.get_parameter(name).copy_(tensors[name].read())
    return cell


def new(config: Facts) -> Network:
    """A cell of this form, random and trainable."""
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config)
    return Decoder(config) if isinstance(config, DecoderConfig) else Llama(config)


def on_meta(config: Facts) -> Network:
    """A cell of this form, without numbers."""
    with torch.device("meta"):
        return new(config)


def config_to_dict(config: Facts) -> dict[str, Any]:
    """``config`` in JSON's terms; a rope is told by its ``kind`` and its numbers."""
    facts = {"family": config.family, **asdict(config)}
    for f in fields(config):
        if isinstance(rope := getattr(config, f.name), Rope):
            facts[f.name] = {"kind": next(name for name, kind in KINDS.items() if type(rope) is kind), **asdict(rope)}
    return facts


def config_from_dict(facts: Mapping[str, Any]) -> Facts:
    """The inverse of :func:`config_to_dict`.

    Raises:
        Error: an unknown, missing or ill-typed field.
    """
    facts = dict(facts)
    if facts.get("family") == EncoderDecoderConfig.family:
        del facts["family"]
        return _record(EncoderDecoderConfig, facts, "config")
    eos = facts.get("eos_token_ids", [])
    if not isinstance(eos, list | tuple):
        raise Error(f"config: eos_token_ids is {eos!r}; expected a list of token ids")
    facts["eos_token_ids"] = tuple(eos)
    if facts.get("family") != DecoderConfig.family:
        return _record(Config, {**facts, "rope": _rope(facts.get("rope"), "rope")}, "config")
    del facts["family"]
    if isinstance(facts.get("positions"), dict):
        facts["positions"] = _rope(facts["positions"], "positions")
    return _record(DecoderConfig, facts, "config")


def _rope(facts: Any, field: str) -> Rope:
    if not isinstance(facts, dict) or not isinstance(facts.get("kind"), str) or facts["kind"] not in KINDS:
        raise Error(f"config: {field} is {facts!r:.60}; expected a kind among {', '.join(KINDS)} and its numbers")
    return _record(KINDS[facts["kind"]], {k: v for k, v in facts.items() if k != "kind"}, f"config: {field}")


def _record(kind: type, facts: Mapping[str, Any], where: str) -> Any:
    """``kind(**facts)``, every field named and none unknown."""
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(facts.keys() - known.keys()):
        raise Error(f"{where}: field {unknown[0]!r} is not known; expected {', '.join(known)}")
    required = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - facts.keys()):
        raise Error(f"{where}: field {missing[0]!r} is missing")
    return kind(**facts)
