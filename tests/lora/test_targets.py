"""Which modules the file of an adapter says it adapts: the selection of PEFT."""

import pytest

from msrnn.lora.targets import Targets

Q, UP = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1, 12)], [f"model.layers.{i}.mlp.up_proj" for i in (0, 1, 12)]
OTHERS = ["lm_head", "layers.1.up", "model.h.1.c_proj.q_proj"]
NAMES = [*Q, *UP, *OTHERS]
CASES = [
    ({"target_modules": ["q_proj", "up"]}, [*Q, *OTHERS[1:]]),
    ({"target_modules": [Q[1], "up_proj", "proj"]}, [Q[1], *UP]),
    ({"target_modules": r".*\.layers\.1\..*_proj"}, [Q[1], UP[1]]),
    ({"target_modules": "q_proj"}, []),
    ({"target_modules": ["q_proj", "up"], "layers_to_transform": 1}, [Q[1], OTHERS[2]]),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0, 12], "layers_pattern": "layers"}, [Q[0], Q[2]]),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "blocks"]}, [OTHERS[2]]),
    ({"target_modules": [Q[0], "up_proj"], "layers_to_transform": [1]}, [Q[0], UP[1]]),
    ({"target_modules": ["lm_head", "q_proj"], "exclude_modules": [Q[0], "c_proj.q_proj"]}, [*Q[1:], "lm_head"]),
    ({"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*up_proj"}, [*Q, OTHERS[2]]),
]


@pytest.mark.parametrize(("fields", "expected"), CASES, ids=str)
def test_modules_are_selected(fields, expected):
    targets = Targets.of(fields)
    assert [name for name in NAMES if targets.contain(name)] == expected


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("fields", "expected"), CASES, ids=str)
def test_peft_selects_the_same_modules(fields, expected):
    peft = pytest.importorskip("peft", reason="the package peft is not installed (pip install peft)")
    from peft.tuners.tuners_utils import check_target_module_exists

    config = peft.LoraConfig(**fields)
    assert [name for name in NAMES if check_target_module_exists(config, name)] == expected


def test_a_file_without_target_modules_has_no_targets():
    assert not any(Targets.of({}).contain(name) for name in NAMES)
    assert [name for name in NAMES if not Targets.of({"target_modules": "all-linear"}).contain(name)] == ["lm_head"]
