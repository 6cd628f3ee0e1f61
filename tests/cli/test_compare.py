"""``msrnn compare`` and ``msrnn retention`` with the real weights."""

import torch
from matplotlib.image import imread
from support.command_line import PROMPT

import converters
from msrnn.cli.main import main
from msrnn.diagnostics.comparison import continue_prompt
from msrnn.diagnostics.state_memory import full_nbytes


def test_operators_retain_different_positions(gguf_path, smollm, capsys):
    tokenizer = converters.tokenizer(gguf_path)
    prompt = tokenizer.encode(PROMPT).ids
    runs = {r: continue_prompt(smollm, tokenizer, prompt, r, 8) for r in ("full", "tova:6", "sinks:6:2", "window:6")}
    for name, a in runs.items():
        assert a.retained.shape == (len(prompt) + len(a.new),) * 2
        assert a.state.nbytes < full_nbytes(a.state) or name == "full"
        for other, b in runs.items():
            n = min(len(a.retained), len(b.retained))
            assert name == other or not torch.equal(a.retained[:n, :n], b.retained[:n, :n])
    assert tokenizer.decode(runs["full"].new) in capsys.readouterr().out


def test_compare_prints_every_operator_and_plots(gguf_path, tmp_path, capsys):
    plot, operators = tmp_path / "retained.png", ["full", "tova:6"]
    options = [word for operator in operators for word in ("--reduction", operator)]
    assert main(["compare", str(gguf_path), "--prompt", PROMPT, *options, "--max-new-tokens", "4", "--picture", str(plot)]) == 0
    out = capsys.readouterr().out
    assert all(f"── {operator} ──" in out for operator in operators)
    assert out.count("tokens/s; H holds") == 2
    assert out.count("an unbounded H would hold") == 1
    assert min(imread(plot).shape[:2]) > 200


def test_retention_plots_one_layer(gguf_path, tmp_path, capsys):
    plot = tmp_path / "retained.png"
    options = ["--reduction", "tova:4", "--reduction", "full", "--max-tokens", "6", "--layer", "-1", "--out", str(plot)]
    assert main(["retention", str(gguf_path), "--prompt", PROMPT, *options]) == 0
    assert min(imread(plot).shape[:2]) > 200
    assert "holds 100.0% of 6" in capsys.readouterr().out
