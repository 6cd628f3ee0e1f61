"""Commands over several processes: the same results as in one process, and the end of all if one ends."""

import json

import pytest
from support.rank_processes import end, torchrun
from support.tiny_tokenizer import chat_cell

from msrnn.cli.main import main

TEXT = "The boat was small, the sea was not; and on the 3rd day the wind rose again. " * 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    chat_cell().save(folder / "tiny")
    (folder / "book.txt").write_text(TEXT)
    return folder


def lm(files, operators, *more):
    text = ["--text", files / "book.txt", "--chunk", 24, "--chunks", 3, "--sizes", 6]
    return [*map(str, ["eval", "lm", files / "tiny", *text, "--operators", *operators, *more])]


def without_seconds(path):
    return [{name: x for name, x in record.items() if name != "seconds"} for record in json.loads(path.read_text())]


def test_an_evaluation_resumes_with_another_number_of_ranks(files, tmp_path, capsys):
    one, several, operators = tmp_path / "one", tmp_path / "several", ["full", "tova", "window"]
    assert main(lm(files, operators, "--out", one)) == 0
    printed = capsys.readouterr().out
    assert main(lm(files, ["tova"], "--out", several)) == 0
    code, out, err = end(torchrun(2, *lm(files, operators, "--out", several)))
    assert (code, out) == (0, printed)
    assert "3 of 9 cells taken" in err
    assert without_seconds(several / "report.json") == without_seconds(one / "report.json")
    assert {path.name for path in (several / "cells").iterdir()} == {path.name for path in (one / "cells").iterdir()}
    next((several / "cells").glob("*window*")).unlink()
    capsys.readouterr()
    assert main(lm(files, operators, "--out", several)) == 0
    assert "8 of 9 cells taken" in capsys.readouterr().err
    assert without_seconds(several / "report.json") == without_seconds(one / "report.json")
