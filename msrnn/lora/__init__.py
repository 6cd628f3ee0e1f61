"""LoRA adapters of a cell (arXiv:2106.09685): add, train, merge, and read or write them as PEFT does."""

from .adapters import adapter_parameters, add, merge, remove
from .folder import load_adapter, save_adapter

__all__ = ["adapter_parameters", "add", "load_adapter", "merge", "remove", "save_adapter"]
