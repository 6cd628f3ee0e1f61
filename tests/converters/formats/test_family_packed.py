"""Packed weights of every family beyond LLaMA: norms, biases and sinks stay, and the numbers are those of the codes."""

import pytest
import torch
from support.tiny_references import CASES
from support.transformers_reference import save_folder, tiny_reference
from torch.testing import assert_close

import converters
import msrnn
from msrnn.layers.packed.modules import PackedModule
from msrnn.models.packing import kind_of_weights

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")
TOKENS = torch.randint(3, 61, (2, 30), generator=torch.Generator().manual_seed(1))
FITTING = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
"""Sizes in which every matrix of a layer fits int4."""
KINDS = {kind: name for name, (kind, _) in CASES.items()}


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_packed_weights(name, tmp_path):
    kind, fields = CASES[name]
    source = save_folder(tiny_reference(kind, dtype=torch.float32, **{**fields, **FITTING}), tmp_path / "hf")
    plain, errors = converters.load(source), []
    for weights in ("int4", "int8"):
        cell = converters.load(source, weights=weights, dtype=torch.float64)
        assert kind_of_weights(cell) == weights
        packed = {name for name, module in cell.named_modules() if isinstance(module, PackedModule)}
        matrices = {name.removesuffix(".weight") for name, x in plain.named_parameters() if x.ndim == 2}
        assert packed == matrices
        kept = {name: x for name, x in plain.named_parameters() if x.ndim != 2}
        assert {name for name, _ in cell.named_parameters()} == kept.keys()
        assert all(torch.equal(cell.get_parameter(name), x.double()) for name, x in kept.items())
        converters.convert(source, tmp_path / weights, weights=weights, dtype=torch.float32)
        assert_close(msrnn.load(tmp_path / weights, dtype=torch.float64)(TOKENS)[0], cell(TOKENS)[0])
        converters.convert(tmp_path / weights, tmp_path / f"{weights}-hf", to="hf", dtype=torch.float32)
        floats = converters.load(tmp_path / f"{weights}-hf", dtype=torch.float64)
        assert_close(floats(TOKENS)[0], cell(TOKENS)[0], rtol=1e-4, atol=1e-4)
        errors.append((cell(TOKENS)[0] - plain(TOKENS)[0]).norm())
    assert errors[0] > errors[1] > 0  # more bits are nearer
