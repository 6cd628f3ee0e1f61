"""``python tests/look_at_picture.py PICTURE N``: whether PICTURE is one, of N panels in a row that all differ."""

import sys
from itertools import combinations

import numpy as np
from matplotlib.image import imread


def panels(picture: np.ndarray, count: int) -> list[np.ndarray]:
    """The N square panels, found by their black frames: the lowest rows of the picture that are dark all across them."""
    dark = picture[..., :3].max(-1) < 0.2
    columns = np.flatnonzero(dark.mean(0) > 0.3 * dark.mean(0).max())
    runs = np.split(columns, np.flatnonzero(np.diff(columns) > 12) + 1)
    wide = sorted((run for run in runs if len(run) > picture.shape[1] // (3 * count)), key=lambda run: run[0])[:count]
    width = min(len(run) for run in wide)
    return [picture[:, run[0] : run[0] + width, :3] for run in wide]


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
