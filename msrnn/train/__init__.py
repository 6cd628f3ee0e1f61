"""Training a small cell on a text, also with a bounded KV cache; a killed run can be resumed."""

from .config import PRESETS, TrainConfig, read_train_config
from .loop import train

__all__ = ["PRESETS", "TrainConfig", "read_train_config", "train"]
