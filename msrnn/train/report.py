"""Results of the variants (tables and figures with the spread over seeds), and the loss curves of a training run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..reporting.figures import new_figure, save_figure
from ..reporting.line_styles import BLUE, ORANGE
from ..reporting.report import Dots, Report, Table
from ..reporting.statistics import mean_and_deviation
from ..reporting.sweep import Sweep
from .tasks import SYMBOLS, TASKS
from .variants import (
    BASE,
    BOUNDED,
    EPISODE_LENGTH,
    EVAL_REDUCTIONS,
    LEARNED_ROWS,
    MEMORIES,
    NORMS,
    SEEDS,
    TASK,
    TEXT,
    TRAIN_REDUCTIONS,
    VARIANTS,
    run_key,
)

WARMUPS = ("warm-up", "no warm-up")
CAPTIONS = {
    "norms.png": "Validation bits per byte of four norms, with warm-up and without",
    "learned.png": "Validation bits per byte with persistent rows or memory tokens, read without eviction and under TOVA",
    "trained.png": "Validation bits per byte by the operator in training, and by the operator under which the model is read",
    "tasks.png": "Correct symbols when copying and reversing, by what is carried into the second chunk",
}
"""Texts of the figures on a page, by file name."""
BITS = "validation bits per byte, mean and standard deviation over seeds"


def report(sweep: Sweep) -> Report:
    """Return the tables and figures of finished runs."""
    runs = {name: [sweep[run_key(name, seed, variant)] for seed in SEEDS] for name, variant in VARIANTS.items()}

    def result(name: str, key: str) -> str:
        return spread([run["results"].get(key) for run in runs[name]], 100 if key in TASKS else 1)

    def parameters(name: str) -> str:
        return f"{runs[name][0]['parameters']:,}"

    def dots(title: str, series: Mapping[str, tuple[str, Mapping[str, str]]], x_label: str = BITS, factor: float = 1) -> Dots:
        """Return a figure from the result key and the run of each line, by series."""
        return Dots(
            title,
            x_label,
            {s: {line: value(name, key, factor) for line, name in lines.items()} for s, (key, lines) in series.items()},
        )

    def value(name: str, key: str, factor: float) -> tuple[float, float]:
        return mean_and_deviation([factor * run["results"][key] for run in runs[name] if key in run["results"]] or [math.nan])

    norms = [
        [name, parameters(f"{name}, warm-up"), *(result(f"{name}, {w}", spec) for w in WARMUPS for spec in ("full", BOUNDED))]
        for name in NORMS
    ]
    learned_lines = {"plain": BASE, **{name: name for name in LEARNED_ROWS}}
    learned = [[label, parameters(name), result(name, "full"), result(name, BOUNDED)] for label, name in learned_lines.items()]
    trained_lines = {"full": BASE, **{spec: f"trained {spec}" for spec in TRAIN_REDUCTIONS}}
    trained = [[f"trained {spec}", *(result(name, key) for key in EVAL_REDUCTIONS)] for spec, name in trained_lines.items()]
    tasks = [[name, parameters(f"copy, {name}"), *(result(f"{task}, {name}", task) for task in TASKS)] for name in MEMORIES]
    tables = [
        Table(
            "Norms and placements",
            ["", "parameters", "warm-up, full", f"warm-up, {BOUNDED}", "none, full", f"none, {BOUNDED}"],
            norms,
            f"Validation bits per byte under each operator; {TEXT.steps} steps, {TEXT.warmup_steps} of them warm-up, or none.",
        ),
        Table("Learned rows", ["", "parameters", "full", BOUNDED], learned, "Validation bits per byte."),
        Table(
            "Trained under one operator, read under another",
            ["", *EVAL_REDUCTIONS],
            trained,
            f"Validation bits per byte; H is carried over {TEXT.chunks_per_state} chunks of {TEXT.chunk_length} bytes.",
        ),
        Table(
            "Copy and reverse",
            ["carried into the second chunk", "parameters", *TASKS],
            tasks,
            f"Correct symbols of {EPISODE_LENGTH}, in %; a random guess gives {100 / SYMBOLS:.0f}. "
            f"{TASK.steps} steps of {TASK.batch_size} episodes.",
        ),
    ]
    trained_names = {f"trained {spec}": name for spec, name in trained_lines.items()}
    figures = {
        "norms.png": dots(
            "four norms, with warm-up and without", {w: ("full", {name: f"{name}, {w}" for name in NORMS}) for w in WARMUPS}
        ),
        "learned.png": dots(
            "learned rows, read under two operators (colours)", {spec: (spec, learned_lines) for spec in ("full", BOUNDED)}
        ),
        "trained.png": dots(
            "trained under one operator (lines), read under another (colours)",
            {spec: (spec, trained_names) for spec in EVAL_REDUCTIONS},
        ),
        "tasks.png": dots(
            "what is carried into the second chunk",
            {task: (task, {name: f"{task}, {name}" for name in MEMORIES}) for task in TASKS},
            f"correct symbols of {EPISODE_LENGTH}, %",
            100,
        ),
    }
    return Report(tables, [{"run": name, **run} for name, group in runs.items() for run in group], figures)


def spread(values: Sequence[float | None], factor: float = 1) -> str:
    """Return mean ± standard deviation of ``factor`` times the values; None stands for a run that diverged."""
    finished = [factor * value for value in values if value is not None]
    diverged = f"{len(values) - len(finished)} of {len(values)} diverged" if len(finished) < len(values) else ""
    result = f"{mean_and_deviation(finished):.{3 if factor == 1 else 1}f}" if finished else ""
    return ", ".join(filter(None, (result, diverged)))


def draw_training(
    losses: Sequence[float],
    validation: Mapping[int, float],
    path: str | Path,
    *,
    title: str = "",
    validation_label: str = "validation, bits per byte",
) -> None:
    """Draw two panels against the step: the training loss, raw and smoothed, and the loss of the validation split.

    Args:
        losses: nats per token of each step, at least one.
        validation: loss of the validation split, by number of steps.
        path: output file; its ending selects the format (png, svg, pdf).
        title: title of the figure.
        validation_label: label of the axis of ``validation``.

    Raises:
        Error: as :func:`~msrnn.reporting.figures.check_figure_file`.
    """
    figure = new_figure(path, 10, 4)
    left, right = figure.subplots(1, 2, sharex=True)
    smoothed = [losses[0]]
    for loss in losses[1:]:
        smoothed.append(0.95 * smoothed[-1] + 0.05 * loss)
    steps = range(1, len(losses) + 1)
    left.plot(steps, losses, color=BLUE, alpha=0.3, label="each step")
    left.plot(steps, smoothed, color=BLUE, label="smoothed")
    left.set_ylabel("training loss, nats per token")
    left.legend()
    right.plot([*validation], [*validation.values()], color=ORANGE, marker="o", markersize=4)
    right.set_ylabel(validation_label)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    save_figure(figure, path, title)
