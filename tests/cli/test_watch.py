"""``msrnn watch`` on a tiny model: files, what is printed, and refusals before the model is loaded."""

import json

import pytest
import torch
from support.tiny_tokenizer import chat_cell, tiny_tokenizer
from support.user_operators import decayed_sum

from msrnn.cli import watch
from msrnn.cli.main import main
from msrnn.watch.read import read_document

PROMPT = "the boat was small and the sea was not"
N = len(tiny_tokenizer().encode(PROMPT).ids)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    chat_cell().save(folder)
    return folder


def test_the_page_and_its_data_are_written(model, tmp_path, capsys):
    page, data = tmp_path / "page.html", tmp_path / "page.json"
    options = ["--reduction", "full", "--reduction", "window:2", "--max-new-tokens", "9", "-o", str(page), "--json", str(data)]
    assert main(["watch", str(model), "--prompt", PROMPT, *options]) == 0
    document, (full, window) = read_document(data)
    assert document["model"] == "tiny"  # not the path
    assert (full.operator, window.operator) == ("full", "window:2")
    assert len(full.ids) <= N + 9
    text = page.read_text()
    assert json.loads(text.partition('type="application/json">')[2].partition("</script>")[0]) == document
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{page} ({len(text.encode()) / 1e6:.2f} MB)"
    assert lines[1].startswith(f"{data} (")
    first, texts = document["predictions_differ"][0][1], document["texts_differ"][0][1]
    assert lines[2] == f"full and window:2: predictions differ first after token {first}, texts from token {texts}"


OPERATOR = decayed_sum("Watched")


def test_an_operator_of_a_file(model, tmp_path):
    data, operators = tmp_path / "page.json", tmp_path / "operators.py"
    operators.write_text(OPERATOR)
    options = [
        "--operators-from",
        str(operators),
        "--reduction",
        "watched:5:0.25",
        "--max-new-tokens",
        "0",
        "--json",
        str(data),
    ]
    assert main(["watch", str(model), "--prompt", PROMPT, *options]) == 0
    _, (run,) = read_document(data)
    assert run.operator == "watched:5:0.25"
    cell = chat_cell()
    state = cell.initial_state(1, "watched:5:0.25")
    for token in run.ids:
        _, state = cell.step(torch.tensor([token]), state)
    for planes, H in zip(run.planes, state, strict=True):
        assert len(planes) == 2  # it decides for each head
        for plane, positions in zip(planes, H.positions[0], strict=True):
            held = [p for p in plane.visible[-1].nonzero()[0] if p != plane.evicted[-1]]
            assert held == sorted(positions.tolist())


def test_the_prompt_can_be_shortened_and_nothing_generated(model, tmp_path, capsys):
    data = tmp_path / "page.json"
    options = [
        "--reduction",
        "tova:4",
        "--reduction",
        "tova:99",
        "--max-tokens",
        "3",
        "--max-new-tokens",
        "0",
        "--json",
        str(data),
    ]
    assert main(["watch", str(model), "--prompt", PROMPT, *options]) == 0
    assert read_document(data)[1][0].ids == tiny_tokenizer().encode(PROMPT).ids[:3]
    assert "tova:4 and tova:99: the same predictions, the same text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "none of --out, --json and --live is given; expected at least one of them"),
        (["-o", "page.png"], "cannot write page.png; expected a name that ends in .html"),
        (["-o", "a.html", "--json", "./a.html"], "--out and --json are both a.html; expected two files"),
        (["-o", "missing/a.html"], "missing"),
        (["--json", "missing/a.json"], "missing"),
        (["-o", "a.html", "--reduction", "full"], "--reduction full is given twice; expected distinct operators"),
    ],
)
def test_refusals_before_the_model_is_loaded(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", "no-such-model", "--prompt", "x", "--reduction", "full", *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_no_file_and_keeps_the_old_one(model, tmp_path, monkeypatch, capsys):
    page, data = tmp_path / "page.html", tmp_path / "page.json"
    page.write_text("old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "observe_run", interrupt)
    options = ["--reduction", "full", "-o", str(page), "--json", str(data)]
    assert main(["watch", str(model), "--prompt", PROMPT, *options]) == 130
    assert page.read_text() == "old"
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("layer", ["0", "-1"])
def test_live_prints_every_step_of_every_operator(model, layer, capsys):
    options = ["--reduction", "tova:4", "--reduction", "window:4", "--max-new-tokens", "2", "--live", "--layer", layer]
    assert main(["watch", str(model), "--prompt", PROMPT, *options]) == 0
    out = capsys.readouterr().out
    tova, window = out.partition("── tova:4 ─")[2].split("── window:4 ─")
    for part in (tova, window):
        assert [line.split()[1] for line in part.splitlines() if line.startswith("step ")] == [str(N - 1 + i) for i in range(3)]
        assert f"layer {int(layer) % 2} evicts" in part


def test_a_layer_that_the_model_lacks_is_refused(model, capsys):
    assert main(["watch", str(model), "--prompt", PROMPT, "--reduction", "full", "--live", "--layer", "2"]) == 1
    assert "--layer is 2; expected a layer from 0 to 1, or from -2 to -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tova-head:2/3/4", "3 sizes for a layer of 2 key/value heads"),
        ("shared:h2o:4", "shared:h2o:4 evicts several rows of a head at one token"),
    ],
)
def test_an_operator_that_cannot_be_shown_is_refused_before_another_runs(model, spec, message, monkeypatch, capsys):
    monkeypatch.setattr(watch, "observe_run", None)
    assert main(["watch", str(model), "--prompt", PROMPT, "--reduction", "tova:4", "--reduction", spec, "--live"]) == 1
    assert message in capsys.readouterr().err
