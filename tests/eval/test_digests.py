"""A digest changes with everything that a result depends on, and with nothing else."""

import importlib
import sys
from dataclasses import replace

import pytest
import torch
from support.adapters import adapt
from support.tiny_models import tiny_cell
from support.tiny_tokenizer import tiny_tokenizer

import msrnn
from msrnn.eval import digests
from msrnn.eval.digests import code_digest, model_digest, tokenizer_digest

OPERATOR = """import math
from dataclasses import dataclass
import helpers_of_digests as helpers
from constants_of_digests import Constants
import msrnn


@dataclass(frozen=True)
class Base(msrnn.Reduction):
    def score(self, observation):
        return observation.weights.mean(2) * Constants.gain


@dataclass(frozen=True)
class Digested(Base):
    decay: float = 0.5
"""
FILES = {
    "operators_of_digests": OPERATOR,
    "helpers_of_digests": "from far_of_digests import far\n\ndef near():\n    return far()\n",
    "far_of_digests": "def far():\n    return 1\n",
    "constants_of_digests": "class Constants:\n    gain = 1.0\n",
    "other_of_digests": "x = 1\n",
}
UPDATE = """

def update():
    from {} import DECAY

    return DECAY
"""


@pytest.fixture
def digest_of_files(tmp_path, monkeypatch):
    """A function that imports the operator again, with changed files, and returns its digest."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def digest(**changed):
        for name, text in {**FILES, **changed}.items():
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return code_digest(importlib.import_module("operators_of_digests").Digested(4))

    yield digest
    for name in FILES:
        sys.modules.pop(name, None)


def test_digest_of_an_operator_changes_with_every_file_that_it_uses(digest_of_files):
    first = digest_of_files()
    assert digest_of_files() == first
    assert digest_of_files(other_of_digests="x = 2\n") == first
    used = [name for name in FILES if name != "other_of_digests"]
    found = {digest_of_files(**{name: FILES[name] + "\ny = 2\n"}) for name in used}
    assert len(found | {first}) == 1 + len(used)


@pytest.mark.parametrize("place", ["from {} import DECAY\n", "from {} import *\n", UPDATE, "import {}\ndel {}\n"])
@pytest.mark.parametrize("loaded", [True, False])
def test_digest_changes_with_a_constant_of_an_imported_file(digest_of_files, place, loaded, monkeypatch):
    """A float does not say which module it is from."""
    name = "decay_of_digests"
    monkeypatch.setitem(FILES, name, "DECAY = 0.9\n")
    changed = {"helpers_of_digests": FILES["helpers_of_digests"] + place.replace("{}", name)}

    def digest(text):
        found = digest_of_files(**changed, **{name: text})
        if loaded or "def" in place:
            return found
        sys.modules.pop(name)  # the file is found also if its module is not loaded
        return code_digest(sys.modules["operators_of_digests"].Digested(4))

    assert digest("DECAY = 0.9\n") == digest("DECAY = 0.9\n") != digest("DECAY = 0.1\n")


def test_settings_do_not_change_the_digest(digest_of_files):
    first = digest_of_files()
    kind = sys.modules["operators_of_digests"].Digested
    assert code_digest(kind(9, 0.25)) == code_digest(sys.modules["operators_of_digests"].Base(3)) == first


def test_digest_of_a_library_operator_changes_with_the_library(monkeypatch, tmp_path):
    first = code_digest(msrnn.TOVA(4))
    assert first == code_digest(msrnn.CaM(8))
    for change in ("version", "file"):
        digests._library_digest.cache_clear()
        with monkeypatch.context() as patch:
            if change == "version":
                patch.setattr(digests.importlib.metadata, "version", lambda name: "99")
            else:
                (tmp_path / "reductions").mkdir()
                (tmp_path / "reductions" / "tova_paper.py").write_text("changed")
                patch.setattr(digests, "LIBRARY", tmp_path)
            assert code_digest(msrnn.TOVA(4)) != first
    digests._library_digest.cache_clear()
    assert code_digest(msrnn.TOVA(4)) == first


def test_an_operator_without_a_file_has_a_new_digest_each_time():
    names: dict = {}
    exec("import msrnn\nclass NoFile(msrnn.TOVA): pass", names)
    operator = names["NoFile"](4)
    assert code_digest(operator) != code_digest(operator)


def test_digest_of_a_model_changes_with_each_parameter_and_the_config():
    first = model_digest(tiny_cell(0))
    assert model_digest(tiny_cell(0)) == first
    found = {first, model_digest(tiny_cell(0).float())}
    cell = tiny_cell(0)
    cell.config = replace(cell.config, eos_token_ids=(7,))
    found.add(model_digest(cell))
    for name, _ in tiny_cell(0).named_parameters():
        cell = tiny_cell(0)
        with torch.no_grad():
            cell.get_parameter(name).view(-1)[-1] += 1e-3
        found.add(model_digest(cell))
    assert len(found) == 3 + len(list(cell.named_parameters()))


def test_digest_of_an_adapted_model_changes_with_the_scale():
    cells = [adapt(tiny_cell(0)), adapt(tiny_cell(0)), adapt(tiny_cell(0), lora_alpha=3)]  # the same A and B
    one, same, other = map(model_digest, cells)
    assert one == same != other


def test_digest_of_a_tokenizer_changes_with_its_settings():
    one, other = tiny_tokenizer(), tiny_tokenizer()
    assert tokenizer_digest(one) == tokenizer_digest(other)
    other.add_tokens(["boat boat"])
    assert tokenizer_digest(one) != tokenizer_digest(other)
