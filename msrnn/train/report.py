"""What came out of the variants: tables with the spread over seeds, and curves."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..reporting.figures import new_figure, save_figure
from ..reporting.report import Curves, Report, Table
from ..reporting.statistics import mean_and_deviation
from ..reporting.sweep import Sweep
from .tasks import SYMBOLS, TASKS
from .variants import BASE, BOUNDED, LEARNED, LENGTH, NORMS, READ, SEEDS, TASK, TEXT, TRAINED, VARIANTS, WAYS, key_of

HOW = ("warm-up", "no warm-up")


def report(sweep: Sweep) -> Report:
    """The tables and curves of runs that are all finished."""
    runs = {name: [sweep[key_of(name, seed, v)] for seed in SEEDS] for name, v in VARIANTS.items()}

    def ends(name: str, what: str) -> str:
        return spread([run["end"].get(what) for run in runs[name]], 100 if what in TASKS else 1)

    def parameters(name: str) -> str:
        return f"{runs[name][0]['parameters']:,}"

    def curves(title: str, lines: Mapping[str, str], up: str = "loss, nats per byte") -> Curves:
        return Curves(title, "step", up, {label: list(_curve(runs[name])) for label, name in lines.items()}, log_x=False)

    norms = [
        [
            name,
            parameters(f"{name}, warm-up"),
            *(ends(f"{name}, {how}", way) for how in HOW for way in ("full", BOUNDED)),
        ]
        for name in NORMS
    ]
    columns = ["", "parameters", "warm-up, full", f"warm-up, {BOUNDED}", "none, full", f"none, {BOUNDED}"]
    note = f"Held-out bits per byte, read under each reduction; {TEXT.steps} steps, {TEXT.warmup} of them warm-up or none."
    tables = [Table("Norms and placements", columns, norms, note)]
    rows = {"plain": BASE, **{name: name for name in LEARNED}}
    learned = [[label, parameters(name), ends(name, "full"), ends(name, BOUNDED)] for label, name in rows.items()]
    tables.append(Table("Learned rows", ["", "parameters", "full", BOUNDED], learned, "Held-out bits per byte."))
    through = {"full": BASE, **{way: f"trained {way}" for way in TRAINED}}
    trained = [[f"trained {way}", *(ends(name, read) for read in READ)] for way, name in through.items()]
    note = f"Held-out bits per byte; H is carried over {TEXT.carry} chunks of {TEXT.chunk} bytes in training and reading."
    tables.append(Table("Trained through one state, read through another", ["", *READ], trained, note))
    tasks = [[name, parameters(f"copy, {name}"), *(ends(f"{task}, {name}", task) for task in TASKS)] for name in WAYS]
    note = (
        f"Of {LENGTH} symbols, % answered rightly; {100 / SYMBOLS:.0f} by chance. {TASK.steps} steps of {TASK.batch} episodes."
    )
    tables.append(Table("Copy and reverse", ["carried into the second chunk", "parameters", *TASKS], tasks, note))
    pictures = {
        "norms.png": curves(
            "norms, with warm-up and without",
            {f"{n}, {how}": f"{n}, {how}" for n in NORMS for how in HOW},
        ),
        "learned.png": curves("learned rows", rows),
        "trained.png": curves("trained through", through),
        **{f"{task}.png": curves(task, {name: f"{task}, {name}" for name in WAYS}, "loss, nats per symbol") for task in TASKS},
    }
    return Report(tables, [{"run": name, **run} for name, some in runs.items() for run in some], pictures)


def spread(values: Sequence[float | None], factor: float = 1) -> str:
    """Return mean ± standard deviation of ``factor`` times the values; None stands for a run that diverged."""
    finished = [factor * value for value in values if value is not None]
    diverged = f"{len(values) - len(finished)} of {len(values)} diverged" if len(finished) < len(values) else ""
    result = f"{mean_and_deviation(finished):.{3 if factor == 1 else 1}f}" if finished else ""
    return ", ".join(filter(None, (result, diverged)))


def _curve(runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, float, float]]:
    for points in zip(*(run["curve"] for run in runs), strict=False):
        yield (points[0][0], *mean_and_deviation([loss for _, loss in points]))


def draw_training(losses: Sequence[float], validation: Mapping[int, float], path: str | Path, *, title: str = "") -> None:
    """Draw two panels against the step: the training loss, raw and smoothed, and bits per byte of the validation split.

    Args:
        losses: nats per token of each step, at least one.
        validation: bits per byte, by number of steps.
        path: output file; its ending selects the format (png, svg, pdf).
        title: title of the figure.

    Raises:
        Error: as :func:`~msrnn.reporting.figures.check_output_path`.
    """
    figure = new_figure(path, 10, 4)
    left, right = figure.subplots(1, 2, sharex=True)
    smoothed = [losses[0]]
    for loss in losses[1:]:
        smoothed.append(0.95 * smoothed[-1] + 0.05 * loss)
    steps = range(1, len(losses) + 1)
    left.plot(steps, losses, color="tab:blue", alpha=0.3, label="each step")
    left.plot(steps, smoothed, color="tab:blue", label="smoothed")
    left.set_ylabel("training loss, nats per token")
    left.legend()
    right.plot([*validation], [*validation.values()], color="tab:red", marker="o", markersize=4)
    right.set_ylabel("validation, bits per byte")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    save_figure(figure, path, title)
