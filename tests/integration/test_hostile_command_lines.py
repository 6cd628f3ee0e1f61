"""Command lines of any words end with a one-line error or with success, and never modify the model."""

import io
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import event, given
from support.hostile_values import MANY

import converters
import converters.__main__
import msrnn
import msrnn.cli.main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the path of a tiny model with a tokenizer."""
    import fuzzing.checkpoints

    folder = tmp_path_factory.mktemp("model") / "tiny"
    fuzzing.checkpoints.FORMATS["own"].write(folder, "llama")
    return str(folder)


VALUES = {
    "--revision": ["main", ""],
    "--dtype": ["float16", "float32", "int8"],
    "--device": ["cpu", "cpu:1", "cuda", "meta", ""],
    "--prompt": ["", "a b", "\udcff", "a\0b", "é\n"],
    "--prompt-file": ["nothing", ".", "", "x" * 5000, "a\0b", "/dev/null"],
    "--reduction": ["full", "window:0", "tova:0", "h2o:2:1", "tova:999999999999999999", "x", "%s"],
    "--max-new-tokens": ["1", "2", "0", "-1", "1e3", "9" * 30],
    "--max-tokens": ["1", "0"],
    "--sample": [],
    "--ignore-eos": [],
    "--stdin": [],
    "--temperature": ["0.5", "nan", "-1", "1e400", "x", "1e-300"],
    "--top-k": ["1", "0", "-1", "99"],
    "--top-p": ["0.5", "0", "1", "nan"],
    "--seed": ["0", "1", "9" * 18, "9" * 19],
    "--layer": ["0", "-1", "7"],
    "--picture": ["x.png", "x.xyz", "", ".", "/nowhere/x.png", "x" * 300 + ".png"],
    "--out": ["x.svg", "", "..", "/nowhere/x.png", "a\0.png"],
    "--json": ["y.json", "", "..", "/nowhere/x.json", "a\0.json"],
    "-o": ["x.html", "x.json", "", "/nowhere/x.html", "a\0.html", "x" * 300 + ".html"],
    "--live": [],
    "--system": ["", "a", "\udcff", "a\0b"],
    "--text": ["nothing", ".", "", "a\0b", "/dev/null"],
    "--tokens": ["1", "0", "30", "x"],
    "--interval": ["1", "0", "7", "9" * 30],
    "--to": ["hf", "msrnn", "gguf"],
    "--help": [],
}
COMMON = ["--revision", "--dtype", "--device", "--help"]
OPTIONS = {  # required and optional words of each command
    "generate": ([], [*COMMON, "--reduction", "--max-new-tokens", "--sample", "--temperature", "--top-k", "--top-p", "--seed"]),
    "compare": (["--reduction", "tova:3"], [*COMMON, "--reduction", "--max-new-tokens", "--picture"]),
    "retention": (["--reduction", "full", "--out", "x.png"], [*COMMON, "--reduction", "--max-tokens", "--layer", "--out"]),
    "watch": (
        ["--reduction", "full", "--max-new-tokens", "1", "--json", "x.json"],
        [*COMMON, "--reduction", "--max-tokens", "--max-new-tokens", "--layer", "--json", "-o", "--live"],
    ),
    "chat": ([], [*COMMON, "--reduction", "--system", "--max-new-tokens", "--sample", "--temperature", "--top-k", "--seed"]),
    "soak": (
        ["--tokens", "20", "--reduction", "tova:3", "--interval", "10", "--out", "run"],
        [*COMMON, "--reduction", "--tokens", "--text", "--seed", "--interval", "--out"],
    ),
    "info": ([], ["--revision"]),
    "convert": ([], ["--to", "--dtype", "--revision", "--help"]),
}
TARGETS = ["new", "new", "MODEL", "", ".", "/nowhere/x", "x" * 300, "a\0b", "\udcff"]
WORD = st.one_of(
    st.text(max_size=5), st.sampled_from(["MODEL", "a/b", "..", "", "/nowhere", "x" * 5000, "a\0b", "\udcff", "--", "-1", "@x"])
)


@st.composite
def command_lines(draw):
    """Draw a command and its words: mostly valid options with values of all kinds, sometimes other words."""

    def option(name):
        return [name, draw(st.sampled_from(VALUES[name]))] if VALUES[name] else [name]

    command = draw(st.sampled_from(sorted(OPTIONS)))
    required, optional = OPTIONS[command]
    model = draw(st.one_of(st.just("MODEL"), st.just("MODEL"), WORD))
    words = [model, draw(st.sampled_from(TARGETS))] if command == "convert" else [command, model, *required]
    if command in ("generate", "compare", "retention", "watch"):
        words += draw(
            st.one_of(st.just(["--prompt", "the"]), st.sampled_from(["--prompt", "--prompt-file", "--stdin"]).map(option))
        )
    words += [word for name in draw(st.lists(st.sampled_from(optional), max_size=3)) for word in option(name)]
    return command, [*words, *draw(st.one_of(st.just([]), st.just([]), st.just([]), st.lists(WORD, max_size=2)))]


@MANY
@given(line=command_lines())
def test_any_command_line_is_refused_in_one_line_or_works(model, line, tmp_path_factory, capfd, monkeypatch):
    command, words = line
    folder, before = tmp_path_factory.mktemp("here"), {path: path.read_bytes() for path in Path(model).iterdir()}
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sys.stdin", io.StringIO("the"))
    main = converters.__main__.main if command == "convert" else msrnn.cli.main.main
    capfd.readouterr()
    try:
        code = main([model if word == "MODEL" else word for word in words])
    except SystemExit as exit:  # argparse raises it
        code = exit.code
    err = capfd.readouterr().err
    event(f"{command} {code}")
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    if code:
        assert "error: " in err or err.startswith("msrnn: ")
        assert len(err.splitlines()) == 1 or code == 2
        assert not [name for name in os.listdir(folder) if "partial" in name]
    assert before == {path: path.read_bytes() for path in before}
