"""States of the base and of adapted cells refuse each other; invalid arguments leave the cell unchanged."""

import pytest
import torch
from support.adapters import TARGETS, adapt
from support.refusals import refusing
from support.tiny_models import random_tokens, tiny_cell

from msrnn import lora

TEXT = random_tokens(3, 2, 14)


def state_of(cell):
    return cell(TEXT, cell.initial_state(2, "tova:5"))[1]


@pytest.mark.parametrize("target", ["v", "layers.1.up", "head"])
def test_a_state_of_the_base_is_refused_by_the_adapted_cell_and_vice_versa(target):
    cell, base = adapt(tiny_cell(), target_modules=(target,)).requires_grad_(False), tiny_cell()
    for one, other in ((cell, base), (base, cell)):
        with refusing("state belongs to another model (other parameters of the same config)"):
            one(TEXT, state_of(other))
    cell(TEXT, state_of(cell))


def test_a_state_is_refused_after_a_change_of_the_adapter():
    cells = [
        adapt(tiny_cell(), r=2, target_modules=("v",)),
        adapt(tiny_cell(), r=2, target_modules=("v",), lora_alpha=3),  # the same A and B
        adapt(tiny_cell(), r=2, target_modules=("v",), seed=1),
    ]
    with torch.no_grad():
        cells[2].adapters["layers.0.v"].lora_B.copy_(cells[0].adapters["layers.0.v"].lora_B)
        cells[2].adapters["layers.1.v"].lora_B.copy_(cells[0].adapters["layers.1.v"].lora_B)
    for cell in cells:
        cell.requires_grad_(False)
    for other in cells[1:]:
        with refusing("state belongs to another model (other parameters of the same config)"):
            other(TEXT, state_of(cells[0]))
    state = state_of(cells[0])
    with torch.no_grad():
        cells[0].adapters["layers.0.v"].lora_B += 1
    with refusing("state belongs to another model (other parameters of the same config)"):
        cells[0](TEXT, state)


def test_a_state_of_the_base_is_refused_after_a_merge():
    for target in ("v", "up"):
        cell = lora.merge(adapt(tiny_cell(), target_modules=(target,)))
        with refusing("state belongs to another model (other parameters of the same config)"):
            cell(TEXT, state_of(tiny_cell()))


def test_a_state_stays_valid_while_adapters_are_trained():
    cell = adapt(tiny_cell())
    state = state_of(cell).detach()
    with torch.no_grad():
        cell.adapters["layers.0.q"].lora_B += 1
    cell(TEXT, state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r is 0; expected an int from 1 to 65536"),
        ({"lora_alpha": 0}, "lora_alpha is 0; expected a number above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; expected a number of at least 0 and at most 0.99"),
        ({"use_rslora": 1}, "use_rslora is 1; expected a bool"),
        ({"generator": 5}, "generator is 5; expected a torch.Generator"),
        ({"target_modules": "q"}, "target_modules is 'q'; expected a list of names, or 'all-linear'"),
        ({"target_modules": ()}, "target_modules is (); expected a list of names"),
        (
            {"target_modules": ("q", "x_proj")},
            "target_modules has 'x_proj'; expected linear maps of this cell: q, k, v, o,",
        ),
        ({"target_modules": ("embed",)}, "target_modules has 'embed'; expected linear maps of this cell"),
        ({"target_modules": ("norm", 3)}, "target_modules has 'norm'; expected linear maps of this cell"),
        ({"target_modules": (3,)}, "target_modules has 3; expected linear maps of this cell"),
    ],
)
def test_refusals_leave_the_cell_unchanged(settings, message):
    cell = tiny_cell()
    with refusing(message):
        lora.add(cell, **settings)
    assert cell.state_dict().keys() == tiny_cell().state_dict().keys()


def test_a_cell_with_or_without_adapters_is_refused_where_it_has_to_be_the_other():
    for function in (lora.merge, lora.remove):
        with refusing("the cell has no LoRA adapters; expected one after msrnn.lora.add or msrnn.lora.load_adapter"):
            function(tiny_cell())
    with refusing("the cell has adapters already; expected a plain cell"):
        lora.add(lora.add(tiny_cell()))
    with refusing("cell is str; expected a Cell"):
        lora.add("cell")
    with refusing("save: the cell has tensor"):
        lora.add(tiny_cell()).save("nowhere")


def test_names_of_hugging_face_select_the_same_linear_maps():
    own = lora.add(tiny_cell(), target_modules=TARGETS)
    names = [f"{name}_proj" for name in TARGETS[:-1]]
    assert list(lora.add(tiny_cell(), target_modules=[*names, "lm_head"]).adapters) == list(own.adapters)
    one = lora.add(tiny_cell(), target_modules=["layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"])
    assert list(one.adapters) == ["layers.0.up", "layers.1.q"]
