"""Progress bars."""

from typing import Any

from tqdm import tqdm


def progress_bar(
    total: int, unit: str, *, initial: int = 0, label: str | None = None, enabled: bool = True, **more: Any
) -> tqdm:
    """Return a ``tqdm`` bar. It is shown only if ``enabled`` is true and standard error is a terminal.

    Args:
        total, unit: number of steps and the name of one step.
        initial: number of steps that an earlier run has finished.
        label: text before the bar.
        enabled: False to show no bar.
        **more: further options of ``tqdm``.
    """
    return tqdm(total=total, initial=initial, desc=label, unit=unit, disable=None if enabled else True, **more)
