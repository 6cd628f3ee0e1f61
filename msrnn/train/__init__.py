"""Training a cell on a text, through a bounded state too, in a run that may be killed at any moment."""

from .loop import train
from .recipe import PRESETS, Recipe, read_recipe

__all__ = ["PRESETS", "Recipe", "read_recipe", "train"]
