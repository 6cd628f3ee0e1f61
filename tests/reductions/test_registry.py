"""Spec strings without an operator: the message has the nearest names, all names, and the option that defines others."""

from dataclasses import dataclass

import pytest
from support.refusals import refusing

import msrnn
from msrnn.cli.main import main
from msrnn.reductions import registry


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("tovaa:12", "'tovaa' (did you mean 'tova'"),
        ("TOFA:12", "'TOFA' (did you mean 'tova'"),
        ("windw:8", "'windw' (did you mean 'window'?)"),
        ("all-layers:sink:8", "'sink' (did you mean 'sinks'"),
        ("misspelt-operater:8", "'misspelt-operater' (did you mean 'misspelt-operator'?)"),
        ("qqqq:8", "'qqqq'; expected one of a2sf"),
    ],
)
def test_a_misspelt_operator_names_the_nearest(spec, hint, monkeypatch):
    @dataclass(frozen=True)
    class MisspeltOperator(msrnn.Reduction):
        def score(self, observation):
            return observation.weights.mean(2)

    # Other tests define operators too, and a message with all of them would be shortened.
    names = {name: kind for name, kind in registry.SPEC_NAMES.items() if kind[0].__module__.startswith("msrnn.")}
    monkeypatch.setattr(registry, "SPEC_NAMES", {**names, "misspelt-operator": registry.SPEC_NAMES["misspelt-operator"]})
    with refusing(f"no operator is called {hint}") as found:
        msrnn.parse_reduction(spec)
    own = "or a class of your own after its definition (in a command: --operators-from FILE)"
    assert str(found.value).endswith(own)
    names = str(found.value).removesuffix(f", {own}").partition("expected one of ")[2].split(", ")
    assert names == sorted(names)  # the order of definition depends on imports
    assert {"full", "tova", "misspelt-operator"} <= {*names}


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "MODEL", "--prompt", "x", "--reduction", "h20:8"],
        ["compare", "MODEL", "--prompt", "x", "--reduction", "full", "--reduction", "h20:8"],
        ["eval", "lm", "MODEL", "--text", "x", "--operators", "full", "h20"],
        ["finetune", "MODEL", "--text", "x", "--reduction", "h20:8", "-o", "new"],
    ],
    ids=lambda command: command[0],
)
def test_commands_name_the_nearest_operator(command, capsys):
    """argparse refuses ``--reduction``, the command ``--operators``."""
    if "eval" in command:
        assert main(command) == 1
    else:
        with pytest.raises(SystemExit):
            main(command)
    assert "no operator is called 'h20' (did you mean 'h2o'" in capsys.readouterr().err
