"""Hostile input: small real checkpoints of every format, damaged in every way we could think of, and what reading them does.

    python tests/fuzzing/fuzz.py --count 1000 --seed 0 [--format gguf] [--trial 17]

Every trial loads a damaged checkpoint (cell or state, facts, tokenizer), and every other one converts it too. It ends well if
it is refused with one sentence, or if what is read is bit for bit the original, or bit for bit what now stands in the file.
Anything else is a failure: another exception, a dead process, 10 seconds, a gigabyte, a trace left beside the target. Trials
run in a process of their own, many in each, so that even a crash is only an outcome.
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
from fuzzing.trial import Failure, Plan, attempt, trial

SECONDS, BYTES = 10, 1 << 30
OUTCOMES = ("refused", "same", "another", "failed")


class Outcome(NamedTuple):
    format: str
    damage: str
    outcome: str
    said: str


def plan(pristine: Path, names: list[str], seed: int, trial: int) -> Plan:
    random = Random(f"{seed} {trial}")
    name, model = random.choice(names), random.choice(list(fuzzing.checkpoints.MODELS))
    files = sorted(path for path in (pristine / name / model).iterdir())
    choices = [
        (x, kind, damage)
        for x in files
        for kind in fuzzing.corruptions.kinds(x)
        for damage in fuzzing.corruptions.DAMAGES[kind]
    ]
    kind = random.choice(sorted({kind for _, kind, _ in choices}))  # every kind as often, and every damage of it
    damage = random.choice(sorted({damage for _, k, damage in choices if k == kind}))
    file = random.choice([x.name for x, k, d in choices if (k, d) == (kind, damage)])
    return Plan(random, name, model, file, kind, damage)


def work(pristine: Path, names: list[str], seed: int) -> None:
    """Trials by number from standard input, their outcomes as JSON to standard output."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open("/proc/self/statm") as file:
        reserved = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (reserved + 2 * BYTES,) * 2)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        this = plan(pristine, names, seed, int(line))
        Path("/proc/self/clear_refs").write_text("5")  # the most memory held is counted anew
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            (root / "elsewhere").mkdir()
            os.chdir(root / "elsewhere")
            tempfile.tempdir = str(root / "elsewhere")
            shutil.copyfile(pristine / "own" / "llama" / "model.safetensors", root / fuzzing.corruptions.SECRET)
            try:
                outcome, said = trial(pristine, root, this)
                held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
                if (most := int(held.split()[1]) * 1024) > BYTES:
                    raise Failure(f"{most / 1e9:.1f} GB of memory")
            except Failure as failure:
                outcome, said = "failed", str(failure)
            os.chdir("/")
            tempfile.tempdir = None
        print(json.dumps([outcome, said]), file=out, flush=True)


# Outside: many trials.


def write_all(pristine: Path, names: list[str]) -> None:
    for name in {*names, "own"}:
        for model in fuzzing.checkpoints.MODELS:
            (pristine / name / model).mkdir(parents=True)
            fuzzing.checkpoints.FORMATS[name].write(pristine / name / model, model)
            found, sentence = attempt(lambda name=name, model=model: fuzzing.checkpoints.load(name, pristine / name / model))
            assert found is not None, f"{name} of {model} is refused before it is damaged: {sentence}"


class Worker:
    """A process that tries, and what becomes of it."""

    def __init__(self, pristine: Path, names: list[str], seed: int):
        self.command = [sys.executable, __file__, "--worker", str(pristine), "--seed", str(seed), "--format", *names]
        self.process: subprocess.Popen[str] | None = None

    def run(self, trial: int) -> tuple[str, str]:
        """The outcome of one trial, and what was said."""
        if self.process is None:
            self.process = subprocess.Popen(self.command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True)
            assert self.line(120) == "ready\n"
        assert self.process.stdin
        self.process.stdin.write(f"{trial}\n")
        self.process.stdin.flush()
        line = self.line(SECONDS)
        if line is None or not line:
            self.stop()
            return "failed", f"{SECONDS} s" if line is None else "the process died"
        outcome, said = json.loads(line)
        return outcome, said

    def line(self, seconds: float) -> str | None:
        """None where there is none in time, empty where none can come."""
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
    """Each trial's number and outcome."""
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder), names)
        worker = Worker(Path(folder), names, seed)
        try:
            for n in numbers:
                outcome, said = worker.run(n)
                this = plan(Path(folder), names, seed, n)
                yield n, Outcome(this.format, f"{this.damage} of {this.model}'s {this.file}", outcome, said)
        finally:
            worker.stop()


def table(outcomes: list[Outcome]) -> str:
    """Format × damage × outcome, in counts."""
    counts = Counter((x.format, x.damage.split(" ")[0], x.outcome) for x in outcomes)
    lines = [f"{'':34}" + "".join(f"{x:>9}" for x in OUTCOMES)]
    rows = sorted({key[:2] for key in counts} | {(key[0], "") for key in counts})
    for name, damage in rows:
        found = [sum(c for (f, d, o), c in counts.items() if f == name and o == x and damage in ("", d)) for x in OUTCOMES]
        lines.append(f"{name if not damage else '  ' + damage:34}" + "".join(f"{c or '·':>9}" for c in found))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="damage checkpoints and see what reading them does")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", nargs="+", choices=fuzzing.checkpoints.FORMATS, default=list(fuzzing.checkpoints.FORMATS))
    parser.add_argument("--trial", type=int, help="this one alone")
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
            print(f"trial {n}: {outcome.format}, {outcome.damage}: {outcome.outcome} {outcome.said}", flush=True)
    print(table(outcomes))
    return int(any(x.outcome == "failed" for x in outcomes))


if __name__ == "__main__":
    sys.exit(main())
