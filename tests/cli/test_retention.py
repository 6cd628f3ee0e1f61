"""``msrnn retention`` and ``msrnn compare`` on a tiny model: what is printed and what is plotted."""

import pytest
import torch
from support.tables import unpadded
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

import msrnn
from msrnn.cli import compare, retention
from msrnn.cli.main import main
from msrnn.diagnostics.retention import retention as retained_positions

PROMPT = "the boat was small and the sea was not"
CELL, TOKENIZER = chat_cell(), tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    CELL.save(folder)
    return folder


@pytest.fixture
def plots(monkeypatch):
    """Return a list to which every plot is appended instead of drawn: panels, path and the other arguments."""
    drawn = []
    for module in (compare, retention):
        monkeypatch.setattr(module, "draw_retention", lambda panels, path, **more: drawn.append((panels, path, more)))
    return drawn


@pytest.mark.parametrize(("layer", "suffix"), [(None, ""), (-1, ", layer 1"), (0, ", layer 0")])
def test_panels_are_the_mean_over_layers_or_one_layer(model, plots, layer, suffix, tmp_path, capsys):
    options = ["--reduction", "tova:6", "--reduction", "full", "--max-tokens", "20", "--out", str(tmp_path / "kept.png")]
    options += [] if layer is None else ["--layer", str(layer)]
    assert main(["retention", str(model), "--prompt", PROMPT, *options]) == 0
    ((panels, path, more),) = plots
    assert list(panels) == ["tova:6", "full"]
    assert path == tmp_path / "kept.png"
    assert more["title"] == f"positions in H after each step{suffix}"
    assert not more.get("prompt")
    assert more["label"] == ("share of layers that hold the position" if layer is None else "1: in H, 0: not in H")
    tokens = torch.tensor([TOKENIZER.encode(PROMPT).ids[:20]])
    for name, panel in panels.items():
        whole = retained_positions(CELL, tokens, name)[0]
        assert not whole[0].equal(whole[1]) or name == "full"
        assert torch.equal(panel, whole.mean(0) if layer is None else whole[layer])
    printed = unpadded(capsys.readouterr().out).splitlines()
    assert printed[:2] == ["tova:6 holds 30.0% of 20 positions at the end", "full holds 100.0% of 20 positions at the end"]


@pytest.mark.parametrize("layer", [None, 1])
def test_words_are_struck_out_if_most_heads_have_evicted_them(model, layer, capsys):
    options = ["--reduction", "tova-head:4", "--reduction", "full", "--words", "--max-tokens", "20"]
    options += [] if layer is None else ["--layer", str(layer)]
    assert main(["retention", str(model), "--prompt", PROMPT, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    encoding = TOKENIZER.encode(PROMPT)
    end = encoding.offsets[19][1]
    assert lines[4] == PROMPT[:end]
    retained = retained_positions(CELL, torch.tensor([encoding.ids[:20]]), "tova-head:4")[0, :, -1]
    retained = retained.mean(0) if layer is None else retained[layer]
    struck, characters = False, []
    for part in lines[1].split("~~"):
        characters += [(c, struck) for c in part]
        struck = not struck
    assert "".join(c for c, _ in characters) == PROMPT[:end]
    for (first, last), share in zip(encoding.offsets[:20], retained.tolist(), strict=True):
        assert all(gone == (share < 0.5) for c, gone in characters[first:last] if c != " ")
    assert lines[1].count("~~") > 0


def test_words_are_ansi_codes_on_a_terminal(model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["retention", str(model), "--prompt", PROMPT, "--reduction", "tova:4", "--words"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[9m" in out
    assert "~~" not in out


def test_an_output_is_required(model, capsys):
    assert main(["retention", str(model), "--prompt", PROMPT, "--reduction", "full"]) == 1
    assert "neither --out nor --words is given; expected at least one of them" in capsys.readouterr().err


@pytest.mark.parametrize("layer", [-3, 2])
def test_a_layer_that_the_model_lacks_is_refused(model, layer, tmp_path, capsys):
    options = ["--reduction", "full", "--layer", str(layer), "--out", str(tmp_path / "kept.png")]
    assert main(["retention", str(model), "--prompt", PROMPT, *options]) == 1
    assert f"--layer is {layer}; expected a layer from 0 to 1, or from -2 to -1" in capsys.readouterr().err


def test_compare_plots_and_prints_every_operator(model, plots, tmp_path, capsys):
    operators, n = ("full", "tova:6"), len(TOKENIZER.encode(PROMPT).ids)
    options = [word for operator in operators for word in ("--reduction", operator)]
    options += ["--max-new-tokens", "5", "--picture", str(tmp_path / "kept.png")]
    assert main(["compare", str(model), "--prompt", PROMPT, *options]) == 0
    out = capsys.readouterr().out
    ((panels, _, more),) = plots
    assert more["prompt"] == n
    assert more["label"] == "share of layers that hold the position"
    assert f"{n} prompt tokens, up to 5 new" in out
    tokens = torch.tensor([TOKENIZER.encode(PROMPT).ids])
    for operator in operators:
        new, _ = msrnn.generate(
            CELL, tokens, CELL.initial_state(1, operator), max_new_tokens=5, eos_token_id=CELL.config.eos_token_ids
        )[:2]
        text = out.partition(f"── {operator} ─")[2].partition("\n")[2]
        assert text.startswith(TOKENIZER.decode(new[0].tolist()))
        assert panels[operator].shape == (n + new.shape[1],) * 2


@pytest.mark.parametrize("command", [["compare"], ["retention", "--words"]])
def test_an_operator_that_does_not_fit_is_refused_before_another_runs(model, command, capsys):
    options = ["--prompt", "the sea", "--reduction", "tova:4", "--reduction", "tova-head:2/3/4"]
    assert main([command[0], str(model), *command[1:], *options]) == 1
    found = capsys.readouterr()
    assert "3 sizes for a layer of 2 key/value heads" in found.err
    assert not found.out
