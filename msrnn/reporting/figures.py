"""Pictures. matplotlib (the extra ``plot``) is imported when one is asked for, and nothing imports this file but the
command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import Error
from ..storage.files import atomic_file

if TYPE_CHECKING:
    from ..bench.curve import Point
    from ..diagnostics.soak import Interval


def check_picture(path: str | Path) -> None:
    """Refuse, before any work, a picture that could not be drawn in the end; makes the folder it goes to.

    Raises:
        Error: no matplotlib, an ending it does not know, a place that cannot be written to.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise Error("the package matplotlib is not installed; pip install 'msrnn[plot]'") from None
    path, kinds = Path(path), FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise Error(f"cannot draw {path}; expected a name that ends in one of {', '.join('.' + kind for kind in kinds)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as wrong:
        raise Error(f"cannot write {path} ({wrong.strerror})") from None


def draw_retention(panels: Mapping[str, Tensor], path: str | Path, *, prompt: int = 0, title: str = "") -> None:
    """One panel per operator: time down, position across, dark where the position is held.

    Args:
        panels: by operator, ``(T, T)`` numbers from 0 to 1, row t what is held after step t.
        path: the picture to write; its ending says the kind (png, svg, pdf).
        prompt: how many of the steps read the prompt; a line marks where the answer begins.
        title: what stands above.

    Raises:
        Error: as :func:`check_picture`.
    """
    _draw_tables(panels, path, title, ("step", "position", "share of layers and heads that hold it"), prompt)


def draw_attention(panels: Mapping[str, Tensor], path: str | Path, *, title: str = "") -> None:
    """One panel per head, layer or mask: queries down, the rows that they see across, dark where much is read.

    Args:
        panels: by name, ``(T, S)`` weights, or a mask's booleans.
        path: the picture to write; its ending says the kind (png, svg, pdf).
        title: what stands above.

    Raises:
        Error: as :func:`check_picture`.
    """
    _draw_tables(panels, path, title, ("query", "row", "weight"))


def _draw_tables(
    panels: Mapping[str, Tensor], path: str | Path, title: str, labels: tuple[str, str, str], prompt: int = 0
) -> None:
    """A panel for each table of numbers from 0 to 1; ``labels`` of what goes down, what goes across, and what is dark."""
    check_picture(path)
    from matplotlib.figure import Figure

    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.3 * columns + 0.8, 3.2 * rows + 0.5), layout="constrained")
    image = None
    for i, (name, table) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        numbers = table.detach().float().cpu().numpy()
        image = axes.imshow(numbers, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
        axes.set_title(name, fontfamily="monospace")
        axes.set_xlabel(labels[1])
        axes.tick_params(labelsize=8)
        if i % columns == 0:
            axes.set_ylabel(labels[0])
        if 0 < prompt < table.shape[0]:
            axes.axhline(prompt - 0.5, color="tab:red", linewidth=1)
            axes.text(table.shape[1] - 1, prompt - 2, "prompt read", color="tab:red", fontsize=8, ha="right", va="bottom")
    if image is not None:
        figure.colorbar(image, ax=figure.axes, label=labels[2], shrink=0.8)
    figure.suptitle(title)
    with atomic_file(path) as beside:
        figure.savefig(beside, dpi=130)


def draw_soak(rows: Sequence["Interval"], path: str | Path, *, title: str = "") -> None:
    """Two panels over the tokens read: milliseconds a token, by the fold and by the step; bytes of H and of the process.

    Args:
        rows: one per interval, at least one.
        path: the picture to write; its ending says the kind (png, svg, pdf).
        title: what stands above.

    Raises:
        Error: as :func:`check_picture`.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    read = [row.read / 1000 for row in rows]
    figure = Figure(figsize=(8, 6), layout="constrained")
    time, process = figure.subplots(2, 1, sharex=True)
    state = process.twinx()  # a state is a hundredth of the process: it has a scale of its own
    curves = [
        (time, "step", [row.step_ms for row in rows], "tab:orange", 1.3),
        (time, "fold", [row.fold_ms for row in rows], "tab:blue", 1.3),
        (process, "process, resident (left)", [row.resident / 1e6 for row in rows], "tab:green", 1.3),
        (state, "H (right)", [row.nbytes / 1e6 for row in rows], "tab:red", 2.2),  # lower, so that the two never cover
    ]
    for axes, name, values, colour, headroom in curves:
        axes.plot(read, values, color=colour, label=name, marker="." if len(rows) < 40 else "")
        axes.set_ylim(0, headroom * max(max(line.get_ydata()) for line in axes.lines))
    time.set_ylabel("ms per token")
    time.legend(loc="upper right", ncols=2)
    process.set_ylabel("process, MB", color="tab:green")
    state.set_ylabel("H, MB", color="tab:red")
    process.legend(handles=[*process.lines, *state.lines], loc="upper right", ncols=2)
    process.set_xlabel("thousand tokens read")
    process.set_xlim(0, 1.01 * read[-1])
    for axes in (time, process):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    with atomic_file(path) as beside:
        figure.savefig(beside, dpi=130)


def draw_bench(points: Sequence["Point"], path: str | Path, *, title: str = "") -> None:
    """Two panels over the position: milliseconds of a step, and megabytes of state; one line per way.

    Args:
        points: at least one, of each way in order of position.
        path: the picture to write; its ending says the kind (png, svg, pdf).
        title: what stands above.

    Raises:
        Error: as :func:`check_picture`.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    time, held = figure.subplots(1, 2)
    markers = iter("os^Dv")
    for way in dict.fromkeys(point.name for point in points):
        its, marker = [point for point in points if point.name == way], next(markers)
        positions = [point.position for point in its]
        time.plot(positions, [point.ms for point in its], label=way, marker=marker, markersize=5)
        held.plot(positions, [point.nbytes / 1e6 for point in its], label=way, marker=marker, markersize=5)
    for axes, name in ((time, "ms per token"), (held, "MB of state")):
        axes.set_title(name)
        axes.set_xlabel("position")
        axes.set_xlim(0)
        axes.set_ylim(0, 1.1 * max(max(line.get_ydata()) for line in axes.lines))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    with atomic_file(path) as beside:
        figure.savefig(beside, dpi=130)


def draw_training(losses: Sequence[float], validation: Mapping[int, float], path: str | Path, *, title: str = "") -> None:
    """Two panels over the steps: the loss of each, and smoothed; bits a byte of the held-out text.

    Args:
        losses: nats a token, at least one.
        validation: bits a byte, by how many steps were made.
        path: the picture to write; its ending says the kind (png, svg, pdf).
        title: what stands above.

    Raises:
        Error: as :func:`check_picture`.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    learnt, held = figure.subplots(1, 2, sharex=True)
    smooth = [losses[0]]
    for loss in losses[1:]:
        smooth.append(0.95 * smooth[-1] + 0.05 * loss)
    steps = range(1, len(losses) + 1)
    learnt.plot(steps, losses, color="tab:blue", alpha=0.3, label="each step")
    learnt.plot(steps, smooth, color="tab:blue", label="smoothed")
    learnt.set_ylabel("loss, nats per token")
    learnt.legend()
    held.plot([*validation], [*validation.values()], color="tab:red", marker="o", markersize=4)
    held.set_ylabel("held out, bits per byte")
    for axes in (learnt, held):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    with atomic_file(path) as beside:
        figure.savefig(beside, dpi=130)
