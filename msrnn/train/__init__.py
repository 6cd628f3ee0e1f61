"""Training a cell on a text, through a bounded state too, in a run that may be killed at any moment."""

from .config import PRESETS, Recipe, read_recipe
from .loop import train

__all__ = ["PRESETS", "Recipe", "read_recipe", "train"]
