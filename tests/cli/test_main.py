"""The command line, on the real weights, as a shell calls it."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from matplotlib.image import imread

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.diagnostics.comparison import continue_prompt

PROMPT = "The sea was calm that morning, and"


def run(*args, **settings):
    return subprocess.run(
        [sys.executable, "-m", "msrnn", *map(str, args)], capture_output=True, text=True, timeout=120, **settings
    )


def test_generate_writes_what_generate_gives(gguf_path, smollm, capfd):
    tokenizer = converters.tokenizer(gguf_path)
    tokens = torch.tensor([tokenizer.encode(PROMPT).ids])
    new, state = msrnn.generate(smollm, tokens, smollm.initial_state(1, "tova:8"), max_new_tokens=12)
    assert main(["generate", str(gguf_path), "--prompt", PROMPT, "--reduction", "tova:8", "--max-new-tokens", "12"]) == 0
    out, err = capfd.readouterr()
    assert out == tokenizer.decode(new[0].tolist()) + "\n"
    assert f"{tokens.shape[1]} prompt tokens read" in err
    assert f"{state.nbytes / 1e6:.2f} MB" in err


@pytest.mark.parametrize("way", ["jacobi", "lookahead"])
def test_another_way_to_decode_writes_the_same(way, gguf_path, capfd):
    """A text that repeats itself: in fewer passes, and told so; greedy and drawn."""
    common = ["generate", str(gguf_path), "--prompt", "one two three one two three one two", "--reduction", "tova:16"]
    for more in ([], ["--sample", "--seed", "3", "--top-k", "2"]):
        command = [*common, "--max-new-tokens", "24", "--ignore-eos", *more]
        assert main(command) == 0
        plain, said = capfd.readouterr()
        assert "tokens per forward pass" not in said
        assert main([*command, "--decode", way]) == 0
        out, err = capfd.readouterr()
        assert out == plain
        assert "24 generated" in err
        assert "tokens per forward pass" in err or more or way == "jacobi"


def test_a_prompt_from_a_file_or_standard_input_is_the_same(gguf_path, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    common = ("generate", gguf_path, "--max-new-tokens", 4, "--sample", "--seed", 1)
    from_file = run(*common, "--prompt-file", tmp_path / "prompt.txt")
    assert from_file.returncode == 0, from_file.stderr
    assert from_file.stdout == run(*common, "--stdin", input=PROMPT).stdout
    assert len(from_file.stdout.strip()) > 3


def test_operators_keep_different_things(gguf_path, smollm, capsys):
    tokenizer = converters.tokenizer(gguf_path)
    prompt = tokenizer.encode(PROMPT).ids
    runs = {r: continue_prompt(smollm, tokenizer, prompt, r, 8) for r in ("full", "tova:6", "sinks:6:2", "window:6")}
    for name, a in runs.items():
        assert a.retained.shape == (len(prompt) + len(a.new),) * 2
        assert a.nbytes < a.full_nbytes or name == "full"
        for other, b in runs.items():
            n = min(len(a.retained), len(b.retained))
            assert name == other or not torch.equal(a.retained[:n, :n], b.retained[:n, :n])
    assert tokenizer.decode(runs["full"].new) in capsys.readouterr().out


def test_retention_draws(gguf_path, tmp_path, capsys):
    picture = tmp_path / "kept.png"
    command = [
        "retention",
        str(gguf_path),
        "--prompt",
        PROMPT,
        "--reduction",
        "tova:4",
        "--reduction",
        "full",
        "--out",
        str(picture),
    ]
    assert main([*command, "--max-tokens", "6", "--layer", "-1"]) == 0
    assert min(imread(picture).shape[:2]) > 200
    assert "holds 100.0% of 6" in capsys.readouterr().out


def test_info_needs_no_weights(hf_folder, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((hf_folder / "config.json").read_bytes())
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for fact in ("134.5 million", "9 query, 3 key/value", "49,152", "tied", "8,192", "46,800"):
        assert fact in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["generate", "/nowhere", "--prompt", "x"], "/nowhere"),
        (["generate", "MODEL", "--prompt", ""], "prompt is empty"),
        (["generate", "MODEL", "--prompt-file", "/nowhere.txt"], "cannot read /nowhere.txt (No such file"),
        (["generate", "MODEL", "--prompt", "x", "--seed", "1"], "--sample"),
        (["generate", "MODEL", "--prompt", "x", "--temperature", "0.5"], "--sample"),
        (["generate", "MODEL", "--prompt", "x", "--sample", "--temperature", "0"], "temperature is 0.0"),
        (["generate", "MODEL", "--prompt", "a\udcffb"], "cannot read the prompt"),
        (["generate", "MODEL", "--prompt", "x", "--device", "meta"], "meta"),
        (["compare", "MODEL", "--prompt", "x", "--reduction", "full", "--reduction", "full"], "given twice"),
        (["compare", "MODEL", "--prompt", "x", "--reduction", "full", "--picture", "x.xyz"], "x.xyz"),
        (["retention", "MODEL", "--prompt", "x", "--reduction", "full", "--out", "x"], "expected a name that ends"),
        (["generate", "MODEL", "--prompt", "x", "--device", "abacus"], "device is 'abacus'"),
        (
            ["retention", "MODEL", "--prompt", "x", "--reduction", "full", "--out", "x.png", "--layer", "30"],
            "a layer from 0 to 29",
        ),
    ],
)
def test_refusals_are_one_sentence(args, said, gguf_path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(gguf_path) if a == "MODEL" else a for a in args]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert said in err
    assert not out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["generate", "m", "--prompt", "x", "--reduction", "tova"], "tova:<size>"),
        (["generate", "m", "--prompt", "x", "--max-new-tokens", "-3"], "-3"),
        (["generate", "m"], "--prompt"),
        ([], "COMMAND"),
    ],
)
def test_a_misspelt_line_is_told(args, said, capsys):
    with pytest.raises(SystemExit) as left:
        main(args)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_help_is_worth_reading():
    shown = run("--help").stdout
    for word in ("generate", "compare", "retention", "info", "examples:", "tova:SIZE"):
        assert word in shown


def test_ctrl_c_ends_cleanly(gguf_path):
    command = [sys.executable, "-m", "msrnn", "generate", str(gguf_path), "--prompt", PROMPT, "--max-new-tokens", "5000"]
    with subprocess.Popen([*command, "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 1)  # the first text has come
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"generated at" in err
    assert err.rstrip().endswith(b"stopped")


def test_a_reader_that_leaves_is_no_fault(gguf_path):
    command = [sys.executable, "-m", "msrnn", "generate", str(gguf_path), "--prompt", PROMPT, "--ignore-eos"]
    with subprocess.Popen([*command, "--max-new-tokens", "5000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(30) == 1
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


def test_a_full_disk_is_told_in_a_sentence(gguf_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "msrnn", "generate", str(gguf_path), "--prompt", PROMPT, "--max-new-tokens", "2"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot write the output" in done.stderr
