"""Check that PICTURE has N panels in a row that all differ: ``python tests/support/check_picture.py PICTURE N``."""

import sys
from itertools import combinations

import numpy as np
from matplotlib.image import imread


def panels(picture: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the N square panels. Their upper frame is the first row of pixels with N long black lines."""
    for y, row in enumerate(picture[..., :3].max(-1) < 0.2):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(int), [0]))))
        lines = [(left, right) for left, right in edges.reshape(-1, 2) if right - left > picture.shape[1] // (3 * count)]
        if len(lines) == count:
            width = min(right - left for left, right in lines)
            return [picture[y : y + width, left : left + width, :3] for left, _ in lines]
    return []


def main(path: str, count: int) -> None:
    picture = imread(path)
    assert picture.ndim == 3, picture.shape
    assert min(picture.shape[:2]) > 200, picture.shape
    parts = panels(picture, count)
    assert len(parts) == count, f"{len(parts)} panels found; expected {count}"
    for (i, a), (j, b) in combinations(enumerate(parts), 2):
        differ = (np.abs(a - b).max(-1) > 0.1).mean()
        assert differ > 0.02, f"panels {i} and {j} differ in {differ:.1%} of their pixels only"
    print(f"{path}: {count} panels, each different from the others")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
