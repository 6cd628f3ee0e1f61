"""Training a small cell, or adapters of a pretrained one, also with a bounded KV cache; a killed run can be resumed."""

from .config import PRESETS, TrainConfig, read_train_config
from .finetune import FinetuneConfig, finetune
from .loop import train

__all__ = ["PRESETS", "FinetuneConfig", "TrainConfig", "finetune", "read_train_config", "train"]
