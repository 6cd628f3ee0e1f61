"""The folder of a small adapter."""

import pytest
from support.adapters import adapt
from support.tiny_models import tiny_cell

from msrnn import lora


@pytest.fixture
def folder(tmp_path):
    """The folder of an adapter of q and down with rank 3."""
    lora.save_adapter(adapt(tiny_cell(), r=3, lora_alpha=5, target_modules=("q", "down")), tmp_path / "adapter")
    return tmp_path / "adapter"
