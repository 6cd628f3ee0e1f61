"""Fuzzing of the readers: small checkpoints of every format are damaged in many ways and read.

    python tests/fuzzing/fuzz.py --count 1000 --seed 0 [--format gguf] [--trial 17]

Every trial loads a damaged checkpoint (cell or state, config, tokenizer), and about half of the trials also convert it. A trial
passes if the checkpoint is refused with one sentence, or if the result is bit for bit the original or the current content of
the files. All else is a failure: another exception, a crash, more than 10 seconds, more than a gigabyte, files left behind.
Trials run in a worker process, so that a crash ends only the worker.
"""

import argparse
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)]

import fuzzing.checkpoints
import fuzzing.corruptions
from fuzzing import writers
from fuzzing.trial import Failure, Plan, attempt, trial

MAX_SECONDS, MAX_BYTES = 10, 1 << 30
OUTCOMES = ("refused", "same", "another", "failed")


class Outcome(NamedTuple):
    """The result of one trial."""

    format: str
    damage: str
    outcome: str
    message: str


def plan(pristine: Path, names: list[str], seed: int, trial: int) -> Plan:
    """Choose format, model, file and damage of a trial."""
    random = Random(f"{seed} {trial}")
    name, model = random.choice(names), random.choice(list(writers.MODELS))
    files = sorted((pristine / name / model).iterdir())
    choices = [
        (x, kind, damage)
        for x in files
        for kind in fuzzing.corruptions.kinds(x)
        for damage in fuzzing.corruptions.DAMAGES[kind]
    ]
    kind = random.choice(sorted({kind for _, kind, _ in choices}))  # all kinds equally often, and all damages of a kind
    damage = random.choice(sorted({damage for _, k, damage in choices if k == kind}))
    file = random.choice([x.name for x, k, d in choices if (k, d) == (kind, damage)])
    return Plan(random, name, model, file, kind, damage)


def work(pristine: Path, names: list[str], seed: int) -> None:
    """Run the trials with numbers from standard input; write their outcomes as JSON to standard output."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open("/proc/self/statm") as file:
        reserved = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (reserved + 2 * MAX_BYTES,) * 2)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        this = plan(pristine, names, seed, int(line))
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            (root / "elsewhere").mkdir()
            os.chdir(root / "elsewhere")
            tempfile.tempdir = str(root / "elsewhere")
            shutil.copyfile(pristine / "own" / "llama" / "model.safetensors", root / fuzzing.corruptions.SECRET)
            try:
                outcome, message = trial(pristine, root, this)
                peak_line = next(
                    line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
                )
                if (peak := int(peak_line.split()[1]) * 1024) > MAX_BYTES:
                    raise Failure(f"{peak / 1e9:.1f} GB of memory")
            except Failure as failure:
                outcome, message = "failed", str(failure)
            os.chdir("/")
            tempfile.tempdir = None
        print(json.dumps([outcome, message]), file=out, flush=True)


def write_all(pristine: Path, names: list[str]) -> None:
    """Write all models in all formats; each must be readable."""
    for name in {*names, "own"}:
        for model in writers.MODELS:
            (pristine / name / model).mkdir(parents=True)
            fuzzing.checkpoints.FORMATS[name].write(pristine / name / model, model)
            found, sentence = attempt(lambda name=name, model=model: fuzzing.checkpoints.load(name, pristine / name / model))
            assert found is not None, f"{name} of {model} is refused before it is damaged: {sentence}"


class Worker:
    """A worker process, started again after a crash or a timeout."""

    def __init__(self, pristine: Path, names: list[str], seed: int):
        self.command = [sys.executable, __file__, "--worker", str(pristine), "--seed", str(seed), "--format", *names]
        self.process: subprocess.Popen[str] | None = None

    def run(self, trial: int) -> tuple[str, str]:
        """Return the outcome of one trial and its message."""
        if self.process is None:
            self.process = subprocess.Popen(self.command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True)
            assert self.line(120) == "ready\n"
        assert self.process.stdin
        self.process.stdin.write(f"{trial}\n")
        self.process.stdin.flush()
        line = self.line(MAX_SECONDS)
        if line is None or not line:
            self.stop()
            return "failed", f"{MAX_SECONDS} s" if line is None else "the process died"
        outcome, message = json.loads(line)
        return outcome, message

    def line(self, seconds: float) -> str | None:
        """Return a line of the worker's output, None after a timeout, or an empty text if the worker died."""
        assert self.process
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline() if ready else None

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None


def trials(numbers: range, seed: int, names: list[str]) -> Iterator[tuple[int, Outcome]]:
    """Yield the number and the outcome of each trial."""
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder), names)
        worker = Worker(Path(folder), names, seed)
        try:
            for n in numbers:
                outcome, message = worker.run(n)
                this = plan(Path(folder), names, seed, n)
                yield n, Outcome(this.format, f"{this.damage} of {this.model}'s {this.file}", outcome, message)
        finally:
            worker.stop()


def table(outcomes: list[Outcome]) -> str:
    """Return a table of counts: format and damage × outcome."""
    counts = Counter((x.format, x.damage.split(" ")[0], x.outcome) for x in outcomes)
    lines = [f"{'':34}" + "".join(f"{x:>9}" for x in OUTCOMES)]
    rows = sorted({key[:2] for key in counts} | {(key[0], "") for key in counts})
    for name, damage in rows:
        found = [sum(c for (f, d, o), c in counts.items() if f == name and o == x and damage in ("", d)) for x in OUTCOMES]
        lines.append(f"{name if not damage else '  ' + damage:34}" + "".join(f"{c or '·':>9}" for c in found))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="damage checkpoints and read them")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", nargs="+", choices=fuzzing.checkpoints.FORMATS, default=list(fuzzing.checkpoints.FORMATS))
    parser.add_argument("--trial", type=int, help="run only this trial")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.format, args.seed)
        return 0
    numbers = range(args.count) if args.trial is None else range(args.trial, args.trial + 1)
    outcomes = []
    for n, outcome in trials(numbers, args.seed, args.format):
        outcomes.append(outcome)
        if outcome.outcome == "failed" or args.trial is not None:
            print(f"trial {n}: {outcome.format}, {outcome.damage}: {outcome.outcome} {outcome.message}", flush=True)
    print(table(outcomes))
    return int(any(x.outcome == "failed" for x in outcomes))


if __name__ == "__main__":
    sys.exit(main())
