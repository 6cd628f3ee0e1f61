"""Fixtures of the command-line tests."""

import pytest
from support.benchmarks import save_tiny_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("bench"))
