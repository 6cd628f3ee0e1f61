"""The files that ``msrnn eval --out`` writes."""

import json

import pytest
from support.tiny_tokenizer import chat_cell

import msrnn
from msrnn.cli.main import main
from msrnn.eval.retention import RetentionResult, report

SIGNATURES = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


class OfMode(msrnn.TOVA):
    """A user-defined operator."""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    chat_cell().save(folder / "tiny")
    (folder / "book.txt").write_text("The boat was small, the sea was not; and on the 3rd day the wind rose again. " * 3)
    return [str(folder / "tiny"), "--text", str(folder / "book.txt"), "--chunk", "24", "--chunks", "1", "--sizes", "6"]


@pytest.mark.parametrize("ending", SIGNATURES)
def test_figures_have_the_format_that_was_asked_for(ending, words, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["eval", "lm", *words, "--operators", "tova", "full", "--out", str(out), "--figures", ending]) == 0
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == sorted(
        ["report.json", "report.md", "settings.json", f"lm.{ending}"]
    )
    assert (out / f"lm.{ending}").read_bytes().startswith(SIGNATURES[ending])
    assert (out / "report.md").read_text() == capsys.readouterr().out
    assert [r["operator"] for r in json.loads((out / "report.json").read_text())] == ["tova", "full"]


def test_figures_of_any_operator_name_are_files_of_the_folder(words, tmp_path):
    out = tmp_path / "out"
    operators = ["h2o:SIZE:2", "of-mode:SIZE:per_head=true"]
    assert main(["eval", "retention", *words, "--operators", *operators, "--out", str(out), "--figures", "svg"]) == 0
    names = {path.name for path in out.glob("*.svg")}
    kinds = ("first", "map", "layers")
    figures = {f"{kind}-{name}.svg" for kind in kinds for name in ("h2o-SIZE-2", "of-mode-SIZE-per_head=true")}
    assert names == {*figures, "lifetimes.svg"}


def test_a_name_with_a_slash_is_one_file():
    result = RetentionResult("ops:SIZE:a/b", 4, "text 0", 1.0, [1.0], 0.5, [0], [0.5], {}, 0.0, [[[1, 2, 3]]])
    figures = {f"{kind}-ops-SIZE-a%2Fb.png" for kind in ("first", "map", "layers")}
    assert set(report([result]).figures) == {*figures, "lifetimes.png"}
