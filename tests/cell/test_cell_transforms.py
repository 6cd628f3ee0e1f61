"""Forward-mode and higher derivatives, and vmap: right under every operator by every path, or refused in one sentence."""

import pytest
import torch
from support.cell_strategies import PeakWeight
from support.tiny_models import assert_close, random_tokens, step_loop, tiny_cell
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev, jvp, vmap

import msrnn

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by forward-mode AD itself
TEXT = random_tokens(7, 2, 8)
OPERATORS = [
    *["full", "window:3", "sinks:4:1", "h2o:4", "h2o-layer:4", "tova:3", "tova-head:3", "random:3", "last-queries:4:2"],
    *["morphkv:4:2", "scissorhands:4:1", "keyformer:4", "keydiff:4", "knorm:4", "cam:4:1", "caote:4", PeakWeight(3)],
]
PATHS = {
    "step loop": lambda cell, state: step_loop(cell, TEXT[:, 3:], state)[0],
    "state after the step loop": lambda cell, state: step_loop(cell, TEXT[:, 3:], state)[1][1].keys.sum((1, 2)),
    "call": lambda cell, state: cell(TEXT[:, 3:], state)[0],
    "state after the call": lambda cell, state: cell(TEXT[:, 3:], state)[1][1].keys.sum((1, 2)),
    "scan": lambda cell, state: cell.scan(TEXT[:, 3:], state)[0],
    "state of the scan": lambda cell, state: cell.scan(TEXT[:, 3:], state)[1].at(4)[1].values.sum((1, 2)),
}


def two_steps(cell, H):
    """Return a function of the input of layer 0: its output after two steps, and the rows that are left."""
    layer, other = cell.layers[0], cell.embed(TEXT[:, 0])

    def outputs(x):
        first, after = layer.step(x, H)
        second, after = layer.step(other, after)
        return torch.cat((first, second, after.keys.sum((1, 2)), after.values.sum((1, 2))), dim=-1)

    return outputs


def state_after_three(cell, reduction, places="absolute"):
    return cell(TEXT[:, :3], cell.initial_state(2, reduction, places=places))[1]


def of_added_vector(cell, path, state):
    """Return ``path`` as a function of a vector that is added to the attention output of layer 0."""

    def function(added):
        hook = cell.layers[0].o.register_forward_hook(lambda module, inputs, output: output + added)
        try:
            return path(cell, state)
        finally:
            hook.remove()

    return function


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_forward_derivatives_of_a_layer_equal_those_of_backward(reduction, dtype):
    cell = tiny_cell(seed=4, dtype=dtype)
    function, x = two_steps(cell, state_after_three(cell, reduction)[0]), cell.embed(TEXT[:, 1])
    expected, tolerance = jacrev(function)(x), 1e-9 if dtype == torch.float64 else 2e-3
    assert expected.abs().max() > 0.1
    assert_close(jacfwd(function)(x), expected, tolerance)
    tangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent
    assert_close(found, torch.einsum("abcd,cd->ab", expected, tangent), 10 * tolerance)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_forward_derivatives_of_a_cell_equal_those_of_backward(reduction, path):
    cell = tiny_cell(seed=4)
    function = of_added_vector(cell, path, state_after_three(cell, reduction))
    start, tangent = torch.zeros(24, dtype=torch.float64), torch.linspace(-1, 1, 24, dtype=torch.float64)
    leaf = start.clone().requires_grad_()
    output = function(leaf)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((output * cotangent).sum(), leaf)
    found = jvp(function, (start,), (tangent,))[1]
    assert gradient.abs().max() > 0.01
    assert_close((found * cotangent).sum(), gradient @ tangent, 1e-8)


@pytest.mark.parametrize("path", [PATHS["step loop"], PATHS["call"]], ids=["step loop", "call"])
@pytest.mark.parametrize("reduction", ["full", "tova:3", "window:3"])
def test_forward_derivatives_equal_finite_differences(reduction, path):
    cell = tiny_cell(seed=4)
    function = of_added_vector(cell, path, state_after_three(cell, reduction))
    start, tangent = torch.zeros(24, dtype=torch.float64), torch.linspace(-1, 1, 24, dtype=torch.float64)
    expected = (function(1e-6 * tangent) - function(-1e-6 * tangent)) / 2e-6
    assert_close(jvp(function, (start,), (tangent,))[1], expected, 1e-6)


class Reader(torch.nn.Module):
    """The step loop of a cell as a module."""

    def __init__(self, cell, reduction):
        super().__init__()
        self.cell, self.reduction = cell, reduction

    def forward(self):
        return step_loop(self.cell, TEXT, self.cell.initial_state(2, self.reduction))[0]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("reduction", ["full", "tova:3"])
@pytest.mark.parametrize("name", ["k", "v"])
def test_forward_derivatives_with_respect_to_a_weight(name, reduction, frozen):
    """An unbounded state is written into a buffer, where a tangent of a key or a value could be lost."""
    reader = Reader(tiny_cell(seed=4, frozen=frozen), reduction)
    name = f"cell.layers.0.{name}.weight"
    weight = reader.get_parameter(name).detach()
    tangent = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype).view_as(weight)

    def logits(value):
        return torch.func.functional_call(reader, {name: value}, ())

    expected = (logits(weight + 1e-6 * tangent) - logits(weight - 1e-6 * tangent)) / 2e-6
    assert_close(jvp(logits, (weight,), (tangent,))[1].detach(), expected.detach(), 1e-5)


@pytest.mark.parametrize("places", ["absolute", "inside"])
@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_vmap_over_a_layer_equals_a_loop(reduction, places):
    cell = tiny_cell(seed=4)
    function = two_steps(cell, state_after_three(cell, reduction, places)[0])
    x = torch.randn(4, 2, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(vmap(function)(x), torch.stack([function(one) for one in x]), 1e-9)


def test_vmap_over_a_class_that_needs_the_layout_of_a_ragged_batch_is_refused():
    cell = tiny_cell()
    _, state = cell(TEXT, cell.initial_state(2, PeakWeight(3)), lengths=torch.tensor([8, 1]))
    with pytest.raises(msrnn.Error, match="vmap cannot evaluate"):
        vmap(two_steps(cell, state[0]))(torch.zeros(4, 2, 24, dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["full", "window:3", "h2o:4", "tova:3", "random:3", "cam:4:1"])
def test_vmap_over_the_step_loop_equals_a_loop_and_over_many_tokens_is_refused(reduction):
    cell = tiny_cell(seed=4)
    state = state_after_three(cell, reduction)

    def last_logits(cell, state):
        for token in TEXT[:, 3:].T:
            logits, state = cell.step(token, state)
        return logits

    function = of_added_vector(cell, last_logits, state)
    added = torch.randn(3, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(vmap(function)(added), torch.stack([function(one) for one in added]), 1e-9)
    for path in (PATHS["call"], PATHS["scan"]):
        with pytest.raises(msrnn.Error, match="vmap cannot read many tokens"):
            vmap(of_added_vector(cell, path, state))(added)


def test_vmap_over_token_ids():
    cell, ids = tiny_cell(), random_tokens(3, 4, 2)
    _, state = cell(TEXT, cell.initial_state(2, "tova:3"))
    assert_close(
        vmap(lambda token: cell.step(token, state)[0])(ids), torch.stack([cell.step(token, state)[0] for token in ids])
    )
    with pytest.raises(msrnn.Error, match="tokens have a batch dimension"):
        vmap(lambda tokens: cell(tokens, state)[0])(TEXT.expand(3, -1, -1))


@pytest.mark.parametrize("reduction", ["full", "tova:3"])
def test_steps_in_place_inside_of_forward_mode_keep_tangents(reduction):
    cell = tiny_cell(seed=4)

    def in_place(cell, state):
        state = state.clone()
        for token in TEXT[:, 3:].T:
            logits, state = cell.step_(token, state)
        return logits

    start, tangent = torch.zeros(24, dtype=torch.float64), torch.linspace(-1, 1, 24, dtype=torch.float64)
    state = state_after_three(cell, reduction)
    expected = jvp(of_added_vector(cell, PATHS["step loop"], state), (start,), (tangent,))[1][:, -1]
    assert_close(jvp(of_added_vector(cell, in_place, state), (start,), (tangent,))[1], expected)


@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_derivatives_of_orders_one_to_three_are_those_of_the_step_loop(reduction):
    found = []
    for read in (step_loop, lambda cell, text, state: cell(text, state), lambda cell, text, state: cell.scan(text, state)):
        cell = tiny_cell(seed=4)
        weights = [cell.layers[0].k.weight.requires_grad_(), cell.layers[1].v.weight.requires_grad_()]
        logits, _ = read(cell, TEXT, cell.initial_state(2, reduction))
        first = torch.autograd.grad(logits.tanh().mean(), weights, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), weights, create_graph=True)
        third = torch.autograd.grad(sum(x.square().sum() for x in second), weights)
        found.append([*first, *second, *third])
    assert all(x.abs().max() > 1e-6 for x in found[0])
    for other in found[1:]:
        for x, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-10)
