"""A float32 cell computes on a device without float64: no tensor of the device is converted to it."""

import pytest
import torch
from support.cell_strategies import OPERATORS, PeakWeight
from support.no_float64 import device_without_float64
from support.tiny_models import random_tokens, step_loop, tiny_cell, tiny_decoder

import msrnn
from msrnn import Reduction
from msrnn.eval.extrapolation import score_segment
from msrnn.eval.teacher_forcing import teacher_force
from msrnn.train.tasks import accuracy

TEXT = random_tokens(3, 2, 12)
SPECS = ["random:4", "keyformer:4", "cam:8", "keydiff:4", "knorm:4", "last-queries:8:4", "morphkv:8:4", "scissorhands:12"]
SPECS += ["caote:4", "vatp:8", "vase:8:2:1:1", "dropkv:8:4"]


class WholeNumbers(Reduction):
    """A user-defined operator with integer scores."""

    def score(self, observation):
        return observation.positions[:, :1] % 5


def test_float64_is_refused_in_the_emulation():
    x = torch.ones(3)
    with device_without_float64():
        x.cpu().double().sum()
        torch.tensor([1.0, 2.0]).tolist()
        for convert in (lambda: x.double(), lambda: x.new_zeros(2, dtype=torch.float64), lambda: (x * 2).to(torch.float64)):
            with pytest.raises(TypeError, match="MPS"):
                convert()


@pytest.mark.parametrize("places", ["absolute", "inside", "compressed"])
@pytest.mark.parametrize("reduction", [*OPERATORS, PeakWeight(4), WholeNumbers(4), *SPECS], ids=str)
def test_every_path_without_float64_equals_that_with_it(reduction, places):
    cell = tiny_cell(dtype=torch.float32)
    if places != "absolute" and getattr(reduction, "size", 4) == 0:
        return

    def read():
        cell.__dict__.pop("_fingerprint", None)
        state = cell.initial_state(2, reduction, places=places)
        logits, after = cell(TEXT, state)
        scanned, trace = cell.scan(TEXT, state, weights=True)
        stepped, end = step_loop(cell, TEXT, state)
        ragged, _ = cell(TEXT, state, lengths=torch.tensor([12, 5]))
        cell.step_(TEXT[:, 0], end, active=torch.tensor([True, False]))
        return logits, scanned, trace.at(7)[0].keys, stepped, ragged, end[0].values, after[0].positions

    expected = read()
    with device_without_float64():
        found = read()
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(expected, found, strict=True))


def test_decoding_evaluation_and_saved_states(tmp_path):
    cell = tiny_cell(dtype=torch.float32)

    def run(path):
        cell.__dict__.pop("_fingerprint", None)
        new = [msrnn.generate(cell, TEXT, cell.initial_state(2, "tova:6"), max_new_tokens=6).tokens]
        new += [decode(cell, TEXT, max_new_tokens=6).tokens for decode in (msrnn.lookahead, msrnn.jacobi)]
        generator = torch.Generator().manual_seed(0)
        sampled = {"do_sample": True, "top_k": 9, "top_p": 0.9, "temperature": 0.7, "generator": generator}
        new.append(msrnn.generate(cell, TEXT, max_new_tokens=6, **sampled).tokens)
        logits, state = msrnn.prefill(cell, TEXT, "h2o:6")
        state.save(path)
        again = msrnn.load_state(path)
        losses, _ = score_segment(cell, TEXT, cell.initial_state(2, "tova:4"))
        return [*new, logits, cell.step(TEXT[:, 0], again)[0], teacher_force(cell, logits, TEXT, state).nll, losses]

    expected = run(tmp_path / "a")
    with device_without_float64():
        found = run(tmp_path / "b")
    assert all(a.equal(b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("positions", ["alibi", "sinusoidal", "learned"])
def test_decoder_is_trained_and_evaluated(positions):
    cell = tiny_decoder(frozen=False, positions=positions).float()
    with device_without_float64():
        cell(TEXT, cell.initial_state(2, "tova:4"))[0].sum().backward()
        torch.optim.SGD(cell.parameters(), 1e-3).step()
        step_loop(cell, TEXT, cell.initial_state(2, "h2o:4"))
        assert 0 <= accuracy(cell, "copy", 4, "full", batch_size=4) <= 1
