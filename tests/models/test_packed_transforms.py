"""Packed cells under torch.func, autocast, torch.compile and hooks, and the imports that loading needs."""

import copy
import subprocess
import sys

import pytest
import torch
from support.packed_models import dequantised, packed_cell
from support.tiny_models import assert_close, random_tokens

TEXT = random_tokens(6, 2, 9)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp calls it
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_derivatives_equal_those_of_the_float_cell(weights):
    cell = packed_cell(weights)
    plain = dequantised(cell)

    def loss(model):
        def of(norm):
            logits, _ = torch.func.functional_call(model, {"layers.0.attention_norm.weight": norm}, (TEXT,))
            return logits.square().sum()

        return of

    norm, direction = cell.layers[0].attention_norm.weight, torch.linspace(-1, 1, 64, dtype=torch.float64)
    for transform in (
        lambda f: torch.func.grad(f)(norm),
        lambda f: torch.func.jvp(f, (norm,), (direction,))[1],
    ):
        expected = transform(loss(plain))
        torch.testing.assert_close(transform(loss(cell)), expected, rtol=1e-9, atol=1e-9)
        assert expected.abs().sum() > 0


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_autocast_rounds_to_bfloat16(weights):
    cell = packed_cell(weights, torch.float32)
    expected = cell(TEXT)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = cell(TEXT)[0]
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_compiled_step_gives_the_same_logits(dtype):
    cell = packed_cell("int4", dtype)
    _, state = cell(TEXT, cell.initial_state(2, "tova:5"))
    expected, _ = cell.step(TEXT[:, 0], state)
    compiled = torch.compile(cell.step, backend="eager", fullgraph=True)
    assert torch.equal(compiled(TEXT[:, 0], state)[0], expected)


def test_hooks_on_packed_modules_see_and_change_outputs():
    cell = packed_cell("int4")
    expected, seen = cell(TEXT)[0], []
    changed = copy.deepcopy(cell)
    handles = [
        changed.layers[0].k.register_forward_hook(lambda module, args, out: seen.append(out.shape)),
        changed.layers[1].up.register_forward_hook(lambda module, args, out: 2 * out),
        changed.embed.register_forward_hook(lambda module, args, out: seen.append(out.shape)),
    ]
    doubled = changed(TEXT)[0]
    assert sorted(seen) == [(2, 9, 32), (2, 9, 64)]
    plain = dequantised(cell)
    with torch.no_grad():
        plain.layers[1].up.weight.mul_(2)
    assert_close(doubled, plain(TEXT)[0])
    for handle in handles:
        handle.remove()
    assert_close(changed(TEXT)[0], expected)


def test_loading_and_a_step_import_no_compiler(tmp_path):
    packed_cell("int4", None).save(tmp_path / "own")
    code = f"import sys, torch, msrnn; cell = msrnn.load({str(tmp_path / 'own')!r}); cell.step(torch.tensor([3]))\n"
    code += "assert not {'torch._dynamo', 'torch._inductor', 'sympy'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
