"""One trial of the fuzzer: a damaged checkpoint is read in every way there is, and what comes of it is judged.

It is well if all that is read is refused with one sentence, or is bit for bit the original, or bit for bit what now stands in
the file; and if nothing is left behind.
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

import converters
import msrnn


class Plan(NamedTuple):
    """One trial, which its seed and number say completely."""

    random: Random
    format: str
    model: str
    file: str
    kind: str
    damage: str


class Failure(Exception):
    """What may not happen has happened."""


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """What ``call`` gives, or None and the sentence with which it refuses."""
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
    """Damage, read, judge: the outcome and what was said."""
    source = root / "source"
    shutil.copytree(pristine / this.format / this.model, source)
    must_refuse = fuzzing.corruptions.DAMAGES[this.kind][this.damage](this.random, source / this.file)
    before = tree(root)
    found, sentence = attempt(lambda: fuzzing.checkpoints.load(this.format, source))
    if found is not None and must_refuse:
        raise Failure(f"{this.file} was read, which is not a whole checkpoint's")
    outcome = "refused" if found is None else judge(this, pristine, source, found)
    if this.format != "state":
        read_on(this, root, source, found)
    if tree(root) != before:
        raise Failure(f"files changed: {sorted(set(tree(root)) ^ set(before))}")
    return outcome, sentence


def judge(this: Plan, pristine: Path, source: Path, found: Any) -> str:
    """``same`` as before the damage, or ``another`` that stands in the files as they are now; and a step can be taken."""
    original, _ = attempt(lambda: fuzzing.checkpoints.load(this.format, pristine / this.format / this.model))
    token = torch.zeros(len(found.clock) if this.format == "state" else 1, dtype=torch.int64)
    cell, state = (fuzzing.checkpoints.cell(this.model), found) if this.format == "state" else (found, None)
    stepped, refused = attempt(lambda: cell.step(token, state))
    if stepped is None and this.format != "state":
        raise Failure(f"is read, but cannot take a step: {refused}")
    if (facts(found), tensors(found)) == (facts(original), tensors(original)):
        return "same"
    try:
        said, stored = fuzzing.checkpoints.FORMATS[this.format].read(source)
    except Exception as wrong:
        raise Failure(f"read, though a naive reader finds no sense in it ({type(wrong).__name__}: {wrong})") from None
    loaded = facts(found)
    for name, value in said.items():
        value = [value] if name == "eos_token_ids" and not isinstance(value, list) else value
        if name in loaded and repr(value) != repr(loaded[name]) and value != loaded[name] and not close(value, loaded[name]):
            raise Failure(f"{name} was read as {loaded[name]!r:.60}; {value!r:.60} stands there")
    for name, data in tensors(found).items():
        if stored.get(name) != data:
            raise Failure(f"{name} was read as other numbers than stand there")
    return "another"


def close(a: Any, b: Any) -> bool:
    """Equal in float32, in which GGUF has its facts."""
    return isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 1e-6 * abs(a)


def facts(found: Any) -> dict[str, Any]:
    if isinstance(found, msrnn.State):
        operators = [{"operator": type(H.reduction).__name__, **vars(H.reduction)} for H in found]
        mark = found.fingerprint
        return {"operators": operators, "facts": mark.signature, "dtype": mark.dtype, "values": list(mark.values)}
    rope = {f"rope.{name}": value for name, value in vars(found.config.rope).items()}
    return {**vars(found.config), **rope, "eos_token_ids": list(found.config.eos_token_ids)}


def tensors(found: Any) -> dict[str, bytes]:
    if isinstance(found, msrnn.State):
        rows = {f"layers.{i}.{name}": x for i, H in enumerate(found) for name, x in H.rows.items()} | {"clock": found.clock}
    else:
        rows = found.state_dict()
    return {name: fuzzing.checkpoints.raw(x) for name, x in rows.items()}


def read_on(this: Plan, root: Path, source: Path, found: Any) -> None:
    """The other ways to read a model: its facts alone, its tokenizer, a conversion, which is whole or leaves nothing."""
    path = source / fuzzing.checkpoints.FORMATS[this.format].source
    config, _ = attempt(lambda: converters.config(path))
    if found is not None and config != found.config:
        raise Failure("config() gives other facts than load()")
    attempt(lambda: (converters.tokenizer(path) or 0) and converters.tokenizer(path).encode("the hat in 1851").ids)
    if this.random.random() < 0.5:
        return
    target, to = root / "target", this.random.choice(("msrnn", "hf"))
    done, sentence = attempt(lambda: [converters.convert(path, target, to=to)])
    if done is None:
        return  # that nothing is left there, the tree shows
    again, sentence = attempt(lambda: converters.load(target))
    if found is None or again is None or tensors(again) != tensors(found):
        raise Failure(f"converted, but the target is not what was read: {sentence}")
    shutil.rmtree(target)


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below ``root``, no link followed."""
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
