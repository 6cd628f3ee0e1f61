"""The files that a module depends on are found by its import statements, without importing anything."""

import importlib
import sys

import pytest

from msrnn.eval.source_files import source_files

TREE = {
    "start_of_files.py": "import math, torch\nfrom pack_of_files import one\n\ndef f():\n    import pack_of_files.sub.two\n",
    "pack_of_files/__init__.py": "raise RuntimeError('imported')\n",
    "pack_of_files/one.py": "from . import constants\nfrom .... import beyond\n",
    "pack_of_files/constants.py": "X = 1.0\n",
    "pack_of_files/sub/__init__.py": "",
    "pack_of_files/sub/two.py": "from ..three import Y\nfrom space_of_files.inner import Z\nimport absent_of_files\n",
    "pack_of_files/three.py": "Y = 2.0\nimport start_of_files\n",
    "space_of_files/inner.py": "this is no Python",
}
OTHERS = {"pack_of_files/four.py": "", "beyond.py": "", "space_of_files/other.py": ""}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in {**TREE, **OTHERS}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "start_of_files.py").write_text(TREE["start_of_files.py"].replace("from pack", "if 0: from pack"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("start_of_files", None)


def test_every_file_of_an_import_statement_is_found(folder):
    module = importlib.import_module("start_of_files")
    before = set(sys.modules)
    assert {str(path.relative_to(folder)) for path in source_files(module)} == set(TREE)
    assert set(sys.modules) == before


def test_modules_of_installed_packages_are_not_followed():
    module = sys.modules[__name__]
    names = {path.name for path in source_files(module)}
    assert "test_source_files.py" in names
    assert not names & {"pytest.py", "__init__.py", "source_files.py", "digests.py"}
