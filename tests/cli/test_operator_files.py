"""Operators of a Python file in every command, with their errors, and results that follow the file's changes."""

import json
import multiprocessing
import pickle
import subprocess
import sys

import pytest
import torch
from support.tables import unpadded
from support.tiny_tokenizer import chat_cell
from support.user_operators import decayed_sum

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.cli.operator_files import load_operator_files, load_operators
from msrnn.cli.parser import COMMANDS, build_parser

SOURCE = decayed_sum("Decayed")
TEXT = "The boat was small, the sea was not; and on the 3rd day the wind rose again. " * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    chat_cell().save(folder / "tiny")
    return folder / "tiny"


@pytest.fixture
def ops(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "ops_of_test.py"
    path.write_text(SOURCE)
    (tmp_path / "text.txt").write_text(TEXT)
    yield path
    sys.modules.pop("ops_of_test", None)


def lm(model, ops, *more):
    text = str(ops.parent / "text.txt")
    arguments = ["eval", "lm", str(model), "--text", text, "--chunk", "24", "--chunks", "2", "--sizes", "6"]
    return main([*arguments, "--operators-from", str(ops), *more])


def test_an_edited_operator_is_measured_again(model, ops, tmp_path, capsys):
    arguments = ["--operators", "tova", "decayed", "decayed:SIZE:0.9", "--out", str(tmp_path / "out")]

    def run():
        assert lm(model, ops, *arguments) == 0
        records = json.loads((tmp_path / "out" / "report.json").read_text())
        return {r["operator"] + r["chunk"]: r["nll"] for r in records}, capsys.readouterr().err

    first, err = run()
    assert "taken" not in err
    assert "called once per token and layer, which is slow: decayed, decayed:SIZE:0.9 (docs/own-operator.md, Flags)" in err
    again, err = run()
    assert again == first
    assert f"6 of 6 entries taken from {tmp_path / 'out'}\n" in err
    assert "slow" not in err
    ops.write_text(SOURCE.replace("observation.weights.mean(2)}", "2 + observation.weights.mean(2)}"))
    edited, err = run()
    assert f"2 of 6 entries taken from {tmp_path / 'out'}, 4 to measure; the folder also has 4 of other code" in err
    assert all((edited[name] == first[name]) == name.startswith("tova") for name in first)
    ops.write_text(SOURCE)
    assert run()[0] == first
    with open(ops.parent / "text.txt", "a") as file:
        file.write("More.")
    assert lm(model, ops, *arguments) == 1
    assert "contains a run with text" in capsys.readouterr().err


def test_a_saved_state_of_an_edited_operator_is_not_continued(model, ops, tmp_path):
    words = ["eval", "extrapolation", str(model), "--text", str(tmp_path / "text.txt"), "--stretch", "16", "--sizes", "6"]
    words += ["--operators", "decayed", "--places", "absolute", "--operators-from", str(ops), "--out"]

    def run(folder, tokens):
        assert main([*words, str(tmp_path / folder), "--tokens", str(tokens)]) == 0
        return [r["nll"] for r in json.loads((tmp_path / folder / "report.json").read_text())]

    first = run("out", 16)
    assert run("out", 32)[:1] == first
    ops.write_text(SOURCE.replace("self.decay +", "0 +"))
    assert run("out", 48) == run("fresh", 48) != run("out", 16)


def test_a_replaced_model_is_refused(ops, tmp_path, capsys):
    arguments = ["--operators", "decayed", "--out", str(tmp_path / "out")]
    cell = chat_cell()
    cell.save(tmp_path / "model")
    assert lm(tmp_path / "model", ops, *arguments) == 0
    middle = cell.layers[0].up.weight if hasattr(cell.layers[0], "up") else cell.layers[0].o.weight
    with torch.no_grad():
        middle[0, 0] += 1
    for file in (tmp_path / "model").iterdir():
        file.unlink()
    (tmp_path / "model").rmdir()
    cell.save(tmp_path / "model")
    capsys.readouterr()
    assert lm(tmp_path / "model", ops, *arguments) == 1
    assert "contains a run with model" in capsys.readouterr().err
    assert lm(tmp_path / "model", ops, *arguments, "--dtype", "bfloat16") == 1
    assert "contains a run with model" in capsys.readouterr().err


def test_the_reference_is_an_operator_that_is_there(model, ops, capsys):
    for operators, reference in (
        (("full", "decayed", "window"), "decayed"),
        (("full", "window", "tova"), "tova"),
        (("full", "decayed"), "full"),
        (("truncated", "full", "tova:5", "window:5"), "tova:5"),
    ):
        assert lm(model, ops, "--operators", *operators) == 0
        assert f"Nats per token relative to {reference}," in capsys.readouterr().out
    assert lm(model, ops, "--operators", "full") == 0
    assert "relative to" not in capsys.readouterr().out  # there is nothing to compare
    assert lm(model, ops, "--operators", "full", "window", "--against", "tova") == 1
    assert "--against is 'tova'; expected one of the operators, full, window" in capsys.readouterr().err


def test_every_command_that_takes_an_operator_has_the_option(capsys):
    for command in COMMANDS.keys() - {"info", "bench", "calibrate", "convert", "variants", "lm-eval"}:
        words = [command, "lm"] if command == "eval" else [command]
        with pytest.raises(SystemExit):
            build_parser().parse_args([*words, "--help"])
        assert "--operators-from FILE" in capsys.readouterr().out, command


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "MODEL", "--prompt", "The sea", "--max-new-tokens", "3", "--reduction", "decayed:5:0.9"],
        ["compare", "MODEL", "--prompt", "The sea", "--max-new-tokens", "3", "--reduction", "decayed:5"],
        ["retention", "MODEL", "--prompt", "The sea was calm", "--out", "OUT/r.png", "--reduction", "decayed:3"],
        ["soak", "MODEL", "--tokens", "20", "--interval", "20", "--out", "OUT/soak", "--reduction", "decayed:5"],
    ],
    ids=lambda words: words[0],
)
def test_commands_run_with_an_operator_of_a_file(words, model, ops, tmp_path, capsys):
    words = [word.replace("MODEL", str(model)).replace("OUT", str(tmp_path)) for word in words]
    assert main([*words, "--operators-from", str(ops)]) == 0
    assert "decayed" in capsys.readouterr().out or words[0] == "generate"


def test_saved_states_and_pickles_name_the_module(model, ops, tmp_path):
    module = load_operators(ops)
    cell = converters.load(model)
    _, state = cell(torch.arange(9)[None], cell.initial_state(1, "decayed:5:0.25"))
    state.save(tmp_path / "state.safetensors")
    assert pickle.loads(pickle.dumps(state[0].reduction)) == module.Decayed(5, 0.25)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(str, [state[0].reduction]) == "decayed:5:0.25"
    code = "import msrnn, ops_of_test; print(msrnn.load_state('state.safetensors')[0].reduction)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "decayed:5:0.25\n", done.stderr
    assert type(msrnn.load_state(tmp_path / "state.safetensors")[0].reduction) is module.Decayed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nclass A(:\n", "bad.py, line 2: SyntaxError: invalid syntax"),
        ("x = 1\n\ny = nothing\n", "bad.py, line 3: NameError: name 'nothing' is not defined"),
        ("import missing_module_of_test\n", "bad.py, line 1: ModuleNotFoundError: No module named"),
        ("x = 1\nimport helper_of_test\n", "bad.py, line 2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "bad.py, line 2: SystemExit: 3"),
        ("raise ValueError('two\\nlines')\n", "bad.py, line 1: ValueError: two\n"),
        ("import msrnn\nclass A(msrnn.TOVA):\n    spec_names = {'tova': {}}\n", "bad.py, line 2: Error: A: spec name 'tova'"),
        ("from msrnn import TOVA\n", "bad.py defines no operator; expected a class that inherits from msrnn.Reduction"),
        (b"\xff\xfe", "bad.py, line 1: SyntaxError: "),
        (b"x = 1\0", "bad.py, line 1: SyntaxError: "),
    ],
)
def test_an_error_of_the_file_is_one_sentence_with_its_line(source, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "bad.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    (tmp_path / "helper_of_test.py").write_text("def f():\n    return 1 / 0\n\n\nf()\n")
    assert main(["generate", "nowhere", "--prompt", "x", "--operators-from", str(path)]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert "bad" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py", "cannot read"),
        ("json.py", "a module called 'json' exists already"),
        ("antigravity.py", "a module called 'antigravity' exists already"),
        ("two words.py", "is not the name of a Python module"),
        ("class.py", "is not the name of a Python module"),
        ("ops.txt", "is not the name of a Python module"),
    ],
)
def test_a_file_that_cannot_be_a_module_is_refused(name, message, tmp_path):
    if name != "missing.py":
        (tmp_path / name).write_text(SOURCE)
    with pytest.raises(msrnn.Error, match=message):
        load_operators(tmp_path / name)


def test_the_option_is_taken_out_of_the_arguments(ops):
    words = ["--model", "msrnn", f"--operators-from={ops}", "--tasks", "x", "--operators", "decayed"]
    assert load_operator_files(words) == ["--model", "msrnn", "--tasks", "x", "--operators", "decayed"]
    assert load_operator_files(["--operators-from"]) == ["--operators-from"]


def test_tables_name_the_operator(model, ops, capsys):
    assert lm(model, ops, "--operators", "decayed:SIZE:0.9", "window") == 0
    assert "| decayed:SIZE:0.9 |" in unpadded(capsys.readouterr().out)


def test_sizes_per_layer_are_rows_of_their_own(model, ops, capsys):
    assert lm(model, ops, "--operators", "tova:5,7", "decayed:SIZE,4:0.9") == 0
    page = unpadded(capsys.readouterr().out)
    assert "\n| tova:5,7 | " in page
    assert "\n| decayed:SIZE,4:0.9 | " in page
