"""One trial of the fuzzer: damage a checkpoint, read it in every way, and classify the result.

A trial passes if the checkpoint is refused with one sentence, or if the result is bit for bit the original or the current
content of the files. No files may be left behind.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import fuzzing.checkpoints
import fuzzing.corruptions
import torch
from fuzzing import naive_readers, writers
from support.packed_models import dequantised

import converters
import msrnn


class Plan(NamedTuple):
    """One trial, which follows from its seed and its number."""

    random: Random
    format: str
    model: str
    file: str
    kind: str
    damage: str


class Failure(Exception):
    """A trial that does not pass."""


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """Return the result of ``call`` and an empty text, or None and the error message.

    Raises:
        Failure: ``call`` raises another exception, or a message that is not one printable sentence.
    """
    try:
        return call(), ""
    except msrnn.Error as refused:
        sentence = str(refused)
        if not sentence.strip() or len(sentence.splitlines()) != 1 or len(sentence) > 1000 or not sentence.isprintable():
            raise Failure(f"no sentence: {sentence[:200]!r}") from None
        return None, sentence
    except BaseException as wrong:
        where = wrong.__traceback__
        while where and where.tb_next:
            where = where.tb_next
        place = where and f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
        raise Failure(f"{type(wrong).__name__} in {place}: {str(wrong)[:200]}") from None


def trial(pristine: Path, root: Path, this: Plan) -> tuple[str, str]:
    """Damage a checkpoint, read it and classify the result; return the outcome and the error message."""
    source = root / "source"
    shutil.copytree(pristine / this.format / this.model, source)
    must_refuse = fuzzing.corruptions.DAMAGES[this.kind][this.damage](this.random, source / this.file)
    before = tree(root)
    found, sentence = attempt(lambda: fuzzing.checkpoints.load(this.format, source))
    if found is not None and must_refuse:
        raise Failure(f"{this.file} was read, although the checkpoint is incomplete")
    outcome = "refused" if found is None else classify(this, pristine, source, found)
    if this.format != "state":
        read_in_other_ways(this, root, source, found)
    if tree(root) != before:
        raise Failure(f"files changed: {sorted(set(tree(root)) ^ set(before))}")
    return outcome, sentence


def classify(this: Plan, pristine: Path, source: Path, found: Any) -> str:
    """Return ``same`` for the content before the damage or ``another`` for the current content; take a step with it."""
    original, _ = attempt(lambda: fuzzing.checkpoints.load(this.format, pristine / this.format / this.model))
    token = torch.zeros(len(found.clock) if this.format == "state" else 1, dtype=torch.int64)
    cell, state = (writers.cell(this.model), found) if this.format == "state" else (found, None)
    stepped, refused = attempt(lambda: cell.step(token, state))
    if stepped is None and this.format != "state":
        raise Failure(f"is read, but cannot take a step: {refused}")
    if (fields(found), tensors(found)) == (fields(original), tensors(original)):
        return "same"
    try:
        stored_fields, stored = fuzzing.checkpoints.FORMATS[this.format].read(source)
    except Exception as wrong:
        raise Failure(f"read, but a naive reader raises ({type(wrong).__name__}: {wrong})") from None
    loaded = fields(found)
    for name, value in stored_fields.items():
        value = [value] if name == "eos_token_ids" and not isinstance(value, list) else value
        if name in loaded and repr(value) != repr(loaded[name]) and value != loaded[name] and not close(value, loaded[name]):
            raise Failure(f"{name} was read as {loaded[name]!r:.60}; the file has {value!r:.60}")
    for name, data in tensors(found).items():
        if stored.get(name) != data:
            raise Failure(f"{name} differs from the numbers in the file")
    return "another"


def close(a: Any, b: Any) -> bool:
    """Return True for numbers that are equal in float32, GGUF's type for floats."""
    return isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 1e-6 * abs(a)


def fields(found: Any) -> dict[str, Any]:
    """Return the config fields of a cell, or operators and fingerprint of a state."""
    if isinstance(found, msrnn.State):
        operators = [{"class": type(H.reduction).__name__, "settings": vars(H.reduction)} for H in found]
        model = found.fingerprint
        return {"operators": operators, "signature": model.signature, "dtype": model.dtype, "values": list(model.values)}
    rope = {f"rope.{name}": value for name, value in vars(found.config.rope).items()}
    return {**vars(found.config), **rope, "eos_token_ids": list(found.config.eos_token_ids)}


def tensors(found: Any) -> dict[str, bytes]:
    """Return the bytes of all tensors of a cell or a state."""
    if isinstance(found, msrnn.State):
        rows = {f"layers.{i}.{name}": x for i, H in enumerate(found) for name, x in H.rows.items()} | {"clock": found.clock}
    else:
        rows = found.state_dict()
    return {name: naive_readers.raw(x) for name, x in rows.items()}


def read_in_other_ways(this: Plan, root: Path, source: Path, found: Any) -> None:
    """Read config and tokenizer and convert the checkpoint; the converted folder must be complete or absent."""
    path = source / fuzzing.checkpoints.FORMATS[this.format].source
    config, _ = attempt(lambda: converters.config(path))
    if found is not None and config != found.config:
        raise Failure("config() and load() return different configs")
    attempt(lambda: (converters.tokenizer(path) or 0) and converters.tokenizer(path).encode("the hat in 1851").ids)
    if this.random.random() < 0.5:
        return
    target, to = root / "target", this.random.choice(("msrnn", "hf"))
    done, sentence = attempt(lambda: [converters.convert(path, target, to=to)])
    if done is None:
        return  # the caller checks that no files are left
    again, sentence = attempt(lambda: converters.load(target))
    if found is not None and this.format == "own-packed" and to == "hf":
        found = dequantised(found, torch.float32)
    if found is None or again is None or tensors(again) != tensors(found):
        raise Failure(f"the converted folder differs from the loaded model: {sentence}")
    shutil.rmtree(target)


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return mode, size and time of everything below ``root``; links are not followed."""
    found = {}
    for folder, inner, files in os.walk(root):
        for name in (*inner, *files):
            stat = (Path(folder) / name).lstat()
            found[str(Path(folder, name).relative_to(root))] = (
                stat.st_mode,
                stat.st_size,
                stat.st_mtime_ns if name in files else 0,
            )
    return found
