import pytest
import torch
from support.gguf_files import METADATA, to_gguf, write
from support.tiny_models import tiny_cell


@pytest.fixture(scope="module")
def cell():
    return tiny_cell(dtype=torch.float32)


@pytest.fixture
def write_tiny(tmp_path, cell):
    """Returns a function that writes the tiny cell with changes; a value None removes a key or a tensor."""

    def make(metadata=None, tensors=None, types=None):
        metadata, tensors = {**METADATA, **(metadata or {})}, {**to_gguf(cell), **(tensors or {})}
        present = [{key: value for key, value in x.items() if value is not None} for x in (metadata, tensors)]
        return write(tmp_path / "tiny.gguf", *present, types)

    return make
