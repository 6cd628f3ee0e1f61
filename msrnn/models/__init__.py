"""The families: one cell, :class:`Llama`, and the named configs of LLaMA, Mistral and Yi."""

from .llama import Config, Llama

__all__ = ["Config", "Llama"]
