"""Tests of the rule that decides which operator bounds which layer, and of specs for all layers in evaluations."""

from dataclasses import dataclass

import pytest
import torch
from support.tables import unpadded
from support.tiny_families import CONFIGS, tiny_family
from support.tiny_models import assert_close, random_tokens, tiny_cell
from support.tiny_tokenizer import TEMPLATES, chat_cell, tiny_tokenizer

import msrnn
from msrnn import TOVA, AllLayers, Full, Window, parse_reduction
from msrnn.cli.info import bounded_layers
from msrnn.cli.main import main
from msrnn.diagnostics.state_memory import format_layers, full_nbytes, layer_token_bytes, memory_summary
from msrnn.eval.conditions import condition_name, parse_conditions
from msrnn.eval.digests import code_digest
from msrnn.eval.inputs import EvalInputs
from msrnn.eval.retention import measure_retention
from msrnn.eval.texts import split_into_chunks
from msrnn.reductions.contract import SAFE_FLAGS
from msrnn.reductions.per_layer import format_operators, per_layer, replaced_layers

PUBLISHED = (Window(3), Full(), Window(3))


def names(reduction, published=PUBLISHED):
    return list(map(str, per_layer(reduction, 3, published)))


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        (None, ["window:3", "full", "window:3"]),
        ("tova:5", ["window:3", "tova:5", "window:3"]),
        ("full", ["window:3", "full", "window:3"]),
        (TOVA((4, 5, 6)), ["window:3", "tova:5", "window:3"]),
        ("all-layers:tova:5", ["tova:5"] * 3),
        (AllLayers(TOVA((4, 5, 6))), ["tova:4", "tova:5", "tova:6"]),
        ("all-layers:full", ["full"] * 3),
        (["tova:4", "full", Window(7)], ["tova:4", "full", "window:7"]),
        (["tova:4", "all-layers:h2o:6", TOVA((1, 2, 3))], ["tova:4", "h2o:6", "tova:3"]),
    ],
)
def test_an_operator_bounds_the_layers_without_a_window(reduction, expected):
    assert names(reduction) == expected
    if reduction is not None:
        replaced = [new != str(own) or own.size is None for new, own in zip(expected, PUBLISHED, strict=True)]
        assert replaced_layers(reduction, 3, PUBLISHED) == replaced


def test_an_operator_replaces_windows_in_a_model_with_no_other_layers():
    assert names("tova:5", Window(3)) == names("all-layers:tova:5", (Window(3),) * 3) == ["tova:5"] * 3
    assert names("full", Window(3)) == ["full"] * 3
    assert names(None, Window(3)) == ["window:3"] * 3


@pytest.mark.parametrize("reduction", [["tova:4", "full"], TOVA((4, 5)), AllLayers(TOVA((4, 5)))])
def test_another_number_of_operators_or_sizes_than_layers_is_refused(reduction):
    with pytest.raises(msrnn.Error, match=r"2 (reductions|sizes) for a cell of 3 layers; expected one per layer"):
        names(reduction)


@pytest.mark.parametrize(
    "spec", ["all-layers:tova:512", "all-layers:sinks:64:2", "all-layers:full", "all-layers:tova-head:4,5"]
)
def test_spec_strings_for_all_layers_are_read_and_written(spec):
    operator = parse_reduction(spec)
    assert str(operator) == spec
    assert parse_reduction(f" {operator} ") == operator
    assert operator != operator.operator
    assert operator.size == operator.operator.size


@pytest.mark.parametrize("spec", ["tova:4", "h2o:4", "window:4", "keydiff:4", "cam:64"])
def test_an_operator_for_all_layers_has_the_flags_of_the_operator(spec):
    operator = parse_reduction(spec)
    for name in (*SAFE_FLAGS, "needs_keys", "merges_values", "stat_names", "tie_tolerance"):
        assert getattr(AllLayers(operator), name) == getattr(operator, name), name


@pytest.mark.parametrize("wrong", ["all-layers:", "all-layers:tova", "all-layers:all-layers:tova:4", "all-layers:nothing:3"])
def test_wrong_specs_are_refused(wrong):
    with pytest.raises(msrnn.Error):
        parse_reduction(wrong)


def test_operators_as_text():
    assert format_operators(Full()) == "full"
    assert format_operators(PUBLISHED) == "window:3 in 2 layers, full in 1"
    assert format_operators([msrnn.Random(4).for_layer(l) for l in range(3)]) == "random:4"


def test_check_operator_accepts_an_operator_for_all_layers():
    msrnn.check_operator("all-layers:tova:4")


def test_conditions_with_sizes():
    found = parse_conditions(
        ["tova", "all-layers:tova", "all-layers:sinks:SIZE:1", "all-layers:full", "all-layers:h2o:7"], [4, 8]
    )
    specs = ["tova:4", "tova:8", "all-layers:tova:4", "all-layers:tova:8", "all-layers:sinks:4:1", "all-layers:sinks:8:1"]
    assert [str(c) for c in found] == [*specs, "all-layers:full", "all-layers:h2o:7"]
    expected = ["tova:4", "tova:8", "all-layers:tova:4", "all-layers:tova:8", *specs[4:], "all-layers:full", "all-layers:h2o:7"]
    assert [condition_name(c.operator, c.size) for c in found] == expected


@dataclass(frozen=True)
class Newest(msrnn.Reduction):
    """A user-defined operator."""

    def score(self, observation):
        return observation.positions.double()


def test_the_code_of_a_user_defined_operator_counts_also_for_all_layers():
    assert code_digest(AllLayers(Newest(4))) == code_digest(Newest(4)) != code_digest(AllLayers(TOVA(4)))


CELL = tiny_family("gemma2")  # windows of 4 in layers 0 and 2
ROW = layer_token_bytes(CELL.initial_state(1)[0])


@pytest.mark.parametrize(
    ("operators", "rows"),
    [(["full"], 3 + 20 + 3), (["tova:5"], 3 + 5 + 3), (["all-layers:tova:5", "tova:8"], 15), (["all-layers:full"], 60)],
)
def test_memory_of_an_evaluation_is_counted_per_layer(operators, rows, monkeypatch):
    inputs = EvalInputs(lambda: None, lambda: CELL)
    monkeypatch.setattr("msrnn.eval.inputs.total_memory", lambda device: 2 * rows * ROW)
    inputs.check_memory(2, operators, 20)
    monkeypatch.setattr("msrnn.eval.inputs.total_memory", lambda device: 2 * rows * ROW - 1)
    with pytest.raises(msrnn.Error, match=r"2 states of .* rows need"):
        inputs.check_memory(2, operators, 20)


def test_memory_is_compared_with_that_of_the_published_model():
    text = random_tokens(1, 2, 20)
    _, published = CELL(text)
    _, bounded = CELL(text, CELL.initial_state(2, "tova:5"))
    assert full_nbytes(bounded, CELL) == published.clone().nbytes == 16 + 2 * 26 * ROW
    assert full_nbytes(bounded) == 16 + 2 * 60 * ROW
    assert f"; H of the published model would hold {full_nbytes(bounded, CELL) / 1e6:.2f} MB" in memory_summary(bounded, CELL)
    assert "published" not in memory_summary(CELL(text, CELL.initial_state(2, "all-layers:full"))[1], CELL)


def test_memory_summary_names_the_layers_that_an_operator_bounds():
    end = "; tova:5 bounds layer 1, the others keep the window of the published model"
    assert memory_summary(CELL.initial_state(1, "tova:5"), CELL).endswith(end)
    for reduction in (None, "all-layers:tova:5", "full"):
        assert "bounds" not in memory_summary(CELL.initial_state(1, reduction), CELL)
    assert "bounds" not in memory_summary(tiny_cell().initial_state(1, "tova:5"), tiny_cell())


def test_indices_of_layers_are_ranges():
    assert [format_layers(x) for x in ([], [3], [0, 1, 2], [0, 2, 3, 7])] == ["", "3", "0…2", "0, 2…3, 7"]


def test_info_of_layers_with_windows():
    row = layer_token_bytes(CELL.initial_state(1)[0], itemsize=2)
    windows = f"at most {6 * row / 1e6:,.1f} MB in 16 bits in 2 layers with a window (0, 2)"
    assert bounded_layers(CELL) == {"bounded": f"{windows}; {row:,} bytes per token in 1 layers without (1)"}
    assert bounded_layers(tiny_cell()) == {}
    assert "without" not in bounded_layers(tiny_family("phi3"))["bounded"]


def test_retention_is_measured_in_the_layers_that_the_operator_bounds():
    cell = tiny_family("gemma2", vocab_size=tiny_tokenizer().get_vocab_size())
    (chunk,) = split_into_chunks({"t": "the end of the other end is the end of it all " * 3}, tiny_tokenizer(), 24, 1)
    one, every = (
        measure_retention(cell, chunk, parse_conditions([x], [5])[0], keep_steps=True) for x in ("tova", "all-layers:tova")
    )
    assert (one.layers, every.layers) == ([1], [0, 1, 2])
    assert len(one.recent) == len(one.steps) == 1
    assert one.mean == every.mean  # the mean lifetime depends on the size only
    assert 0 < one.recent[0] < 1


COMMANDS = {
    "compare MODEL --prompt end --reduction tova:4 --reduction all-layers:tova:4 --max-new-tokens 3": "all-layers:tova:4",
    "retention MODEL --prompt end --words --reduction all-layers:tova:4": "all-layers:tova:4",
    "generate MODEL --prompt end --reduction all-layers:h2o:4 --max-new-tokens 3": "",
    "eval generation MODEL --text TEXT --chunk 24 --chunks 1 --operators all-layers:full --max-new-tokens 3": "| full |",
    "eval passkey MODEL --operators all-layers:tova --sizes 4 --lengths 200 --depths 0.5 --keys 1": "all-layers:tova",
    "eval throughput MODEL --operators all-layers:tova --sizes 4 --length 20 --steps 2": "all-layers:tova",
    "eval prefill-cost MODEL --text TEXT --chunk 24 --prompt 12 --chunks 1 --operators all-layers:tova --sizes 4": "all-layers",
    "soak MODEL --reduction tova:4 --tokens 40 --interval 20 --out OUT": "window:3 in 2 layers, tova:4 in 1",
}
"""Commands and a part of what they print."""


@pytest.fixture
def model(tmp_path):
    tokenizer = tiny_tokenizer()
    cell = tiny_family("gemma3", dtype=torch.float32, vocab_size=tokenizer.get_vocab_size(), context_length=4096)
    cell.extra_files = chat_cell(TEMPLATES["ChatML"]).extra_files
    cell.save(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the end of the other end is the end of it all and more " * 8)
    return tmp_path


def test_commands_accept_specs_for_all_layers_and_resume(model, capsys):
    path, text, out = str(model / "model"), str(model / "text.txt"), model / "out"
    command = ["eval", "lm", path, "--text", text, "--chunk", "24", "--chunks", "2", "--out", str(out)]
    command += ["--operators", "full", "tova", "all-layers:tova", "--sizes", "6"]
    assert main(command) == 0
    first = capsys.readouterr()
    assert "all-layers:tova" in first.out
    assert main(command) == 0
    assert capsys.readouterr().out == first.out
    for command, shown in COMMANDS.items():
        places = {"MODEL": path, "TEXT": text, "OUT": str(model / command.split()[0])}
        assert main([places.get(word, word) for word in command.split()]) == 0, command
        assert shown in unpadded(capsys.readouterr().out), command
    assert main(["soak", path, "--reduction", "full", "--tokens", "40", "--out", str(model / "soak 3")]) == 1
    assert "expected an operator that bounds H" in capsys.readouterr().err


def test_a_size_that_no_window_exceeds_equals_the_window():
    """``all-layers:window:3`` on a model with windows of 4 differs from the published model only in the other layers."""
    text = random_tokens(2, 1, 20)
    _, state = CELL(text, CELL.initial_state(1, "all-layers:window:3"))
    _, same = CELL(text, CELL.initial_state(1, ["window:3"] * 3))
    assert [str(H.reduction) for H in state] == ["window:3"] * 3
    for H, G in zip(state, same, strict=True):
        assert_close(H.keys, G.keys, 0)
    assert CONFIGS["gemma2"].windows == (4, None, 4)
