import pytest
from support.tiny_checkpoints import make_checkpoint, to_meta


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Tensors with Meta's names and config.json of a tiny LLaMA."""
    _, state, config = make_checkpoint("gqa", tmp_path_factory.mktemp("hf") / "hf")
    return to_meta(state, config), config
