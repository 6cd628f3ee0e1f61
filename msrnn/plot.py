"""Pictures. matplotlib (the extra ``plot``) is imported when one is asked for, and nothing imports this file but the
command line."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .error import Error
from .files import new_file


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
    check_picture(path)
    from matplotlib.figure import Figure

    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.3 * columns + 0.8, 3.2 * rows + 0.5), layout="constrained")
    image = None
    for i, (name, kept) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        image = axes.imshow(kept.cpu().numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
        axes.set_title(name, fontfamily="monospace")
        axes.set_xlabel("position")
        axes.tick_params(labelsize=8)
        if i % columns == 0:
            axes.set_ylabel("step")
        if 0 < prompt < kept.shape[0]:
            axes.axhline(prompt - 0.5, color="tab:red", linewidth=1)
            axes.text(kept.shape[1] - 1, prompt - 2, "prompt read", color="tab:red", fontsize=8, ha="right", va="bottom")
    if image is not None:
        figure.colorbar(image, ax=figure.axes, label="share of layers and heads that hold it", shrink=0.8)
    figure.suptitle(title)
    with new_file(path) as beside:
        figure.savefig(beside, dpi=130)
