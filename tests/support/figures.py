"""Access to the matplotlib figures that a test draws."""

from matplotlib.figure import Figure


def record_figures(monkeypatch) -> list[Figure]:
    """Return a list to which every figure is appended when it is saved."""
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: figures.append(self) or savefig(self, *args, **more))
    return figures
