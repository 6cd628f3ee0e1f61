import pytest
from support.dynamic_caches import load
from support.transformers_reference import tiny_reference


@pytest.fixture(scope="module")
def llama():
    model = tiny_reference()
    return model, load(model)
