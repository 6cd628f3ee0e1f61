"""Every family beyond LLaMA against transformers in float64: the published model, ragged batches, and its windows."""

import pytest
import torch
from support.tiny_references import CASES
from support.transformers_reference import float64_reference, save_folder, tiny_reference

import converters

TOKENS = torch.randint(3, 61, (3, 40), generator=torch.Generator().manual_seed(1))
LENGTHS = (40, 23, 9)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """The name of a case, the cell that is loaded from its folder, and the logits of the reference for each row."""
    kind, fields = CASES[request.param]
    model = tiny_reference(kind, **fields)
    cell = converters.load(save_folder(model, tmp_path_factory.mktemp("hf")))
    with float64_reference(model), torch.no_grad():
        expected = [model(row[None, :length]).logits[0] for row, length in zip(TOKENS, LENGTHS, strict=True)]
    assert all(x.dtype == torch.float64 for x in expected)
    return request.param, cell, expected


def differences(cell, expected, reduction=None):
    logits, _ = cell(TOKENS, cell.initial_state(len(TOKENS), reduction), lengths=torch.tensor(LENGTHS))
    return [(row[: len(x)] - x).abs().max().item() for row, x in zip(logits, expected, strict=True)]


@pytest.mark.filterwarnings("ignore:the model has no tokenizer")
def test_the_published_model_equals_transformers(case, figure):
    name, cell, expected = case
    worst = max(differences(cell, expected))
    figure(f"{worst:.1e} from transformers in float64: {name}")
    assert worst <= 1e-9
    assert max(x.abs().max() for x in expected) > 0.5


def test_without_the_windows_of_the_published_model_the_logits_differ(case):
    name, cell, expected = case
    bounded = CASES[name][1].get("sliding_window") is not None
    assert (differences(cell, expected, "all-layers:full")[0] > 1e-3) == bounded
