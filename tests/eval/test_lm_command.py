"""The command ``msrnn eval lm``: reports, resuming, 8-bit rows, and errors before any token is read."""

import json

import pytest
from support.tiny_tokenizer import chat_cell

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.eval import lm
from msrnn.eval.lm import nll
from msrnn.eval.texts import split_into_chunks

TEXT = "The boat was small, the sea was not; and on the third day the wind rose again. " * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    chat_cell().save(folder)
    return folder


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT)
    return tmp_path / "book.txt"


def command(folder, book, *more):
    return ["eval", "lm", str(folder), "--text", str(book), "--chunk", "30", "--sizes", "4", "8", *map(str, more)]


def test_the_command_resumes_and_writes_a_complete_report(folder, book, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "out"
    arguments = command(folder, book, "--out", out, "--operators", "full", "tova", "sinks:SIZE:1", "truncated")
    calls, real = [], lm.score_chunks

    def stopped(cell, chunks, condition, kv_dtype):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((str(condition), [c.name for c in chunks]))
        return real(cell, chunks, condition)

    monkeypatch.setattr(lm, "score_chunks", stopped)
    assert main([*arguments, "--chunks", "2", "--batch", "2"]) == 130
    assert len(list((out / "cells").iterdir())) == 6
    monkeypatch.setattr(lm, "score_chunks", lambda *all: calls.append((str(all[2]), [c.name for c in all[1]])) or real(*all))
    assert main([*arguments, "--chunks", "3", "--batch", "2"]) == 0
    assert calls[:4] == [
        ("full", ["book 0", "book 1"]),
        ("tova:4", ["book 0", "book 1"]),
        ("tova:8", ["book 0", "book 1"]),
        ("full", ["book 2"]),
    ]
    assert len(calls) == len(set(map(str, calls))) == 3 + 3 + 4 * 2
    shown = capsys.readouterr().out
    assert shown == (out / "report.md").read_text()
    records = json.loads((out / "report.json").read_text())
    assert len(records) == 7 * 3
    assert sorted(p.name for p in out.iterdir()) == ["cells", "lm.png", "report.json", "report.md", "settings.json"]
    assert main([*arguments, "--chunks", "3", "--json"]) == 0  # all entries are finished
    assert len(calls) == 14
    assert json.loads(capsys.readouterr().out) == records
    same_entries = command(folder, book, "--out", out, "--operators", "tova", "sinks:8:1", "--chunks", "1")
    assert main(same_entries) == 0  # the same entries under other spec strings
    assert len(calls) == 14
    assert "\n| sinks:8:1 | " in capsys.readouterr().out
    cell, ids = converters.load(folder), split_into_chunks({"book": TEXT}, converters.tokenizer(folder), 30, 1)[0].ids
    one = next(r for r in records if (r["operator"], r["size"], r["chunk"]) == ("sinks:SIZE:1", 8, "book 0"))
    assert one["nll"] == pytest.approx(float(nll(cell, ids[None], "sinks:8:1").sum()), abs=1e-6)
    assert main(["eval", "lm", str(folder), "--text", str(book), "--chunk", "20", "--sizes", "8", "--out", str(out)]) == 1
    assert "with chunk 30; this one has 20" in capsys.readouterr().err


def test_8_bit_rows_of_the_command(folder, book, tmp_path, capsys):
    common = command(folder, book, "--operators", "tova", "truncated", "--chunks", "1", "--out", tmp_path / "out")
    assert main([*common, "--kv-dtype", "int8", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    cell, ids = converters.load(folder), split_into_chunks({"book": TEXT}, converters.tokenizer(folder), 30, 1)[0].ids
    found = next(r["nll"] for r in records if (r["operator"], r["size"]) == ("tova", 8))
    assert found == pytest.approx(float(nll(cell, ids[None], "tova:8", "int8").sum()), abs=1e-6)
    assert abs(found - float(nll(cell, ids[None], "tova:8").sum())) > 1e-4
    truncated = next(r["nll"] for r in records if (r["operator"], r["size"]) == ("truncated", 8))
    assert truncated == pytest.approx(float(lm.truncated_nll(cell, ids[None], 8, "int8").sum()), abs=1e-6)
    assert abs(truncated - float(lm.truncated_nll(cell, ids[None], 8).sum())) > 1e-4
    assert main(common) == 1
    assert "kv_dtype" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text", "/nowhere.txt"], "cannot read /nowhere.txt (No such file"),
        (["--text", "EMPTY"], "has no text; expected files that end in .txt or .md"),
        (["--text", "BINARY"], "cannot read "),
        (["--chunk", "100000"], "the longest text has"),
        (["--chunk", "1"], "--chunk is 1; expected at least 2"),
        (["--operators", "tovaa"], "no operator is called 'tovaa'"),
        (["--operators", "sinks:SIZE:4", "--sizes", "4", "--against", "sinks:SIZE:4"], "Sinks: sinks is 4"),
        (["--operators", "tova:x"], "reduction 'tova:x': expected the form"),
        (["--operators", "tova", "tova:8"], "--operators has tova:8 twice"),
        (["--sizes", "28"], "--sizes: window:28 changes nothing in the part of a chunk before its last token, of 29 tokens"),
        (["--operators", "full", "window", "--against", "tova"], "--against is 'tova'; expected one of the operators"),
        (["--batch", "1000000000000"], "the machine has"),
        (["--out", "BINARY"], "cannot write"),
        (["--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_errors_occur_before_any_token_is_read(more, message, folder, book, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\x00 no text")
    places = {"EMPTY": str(tmp_path / "empty"), "BINARY": str(tmp_path / "noise.txt")}
    monkeypatch.setattr(msrnn.Cell, "forward", lambda *_, **__: pytest.fail("a token was read"))
    assert main(command(folder, book, "--sizes", "8", *(places.get(word, word) for word in more))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_name_that_is_no_path_is_a_data_set_of_the_hub(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    arguments = []
    monkeypatch.setattr("msrnn.eval.inputs.read_dataset", lambda *names: arguments.append(names) or {"one": "too short"})
    assert main(command(folder, "far/away", "--split", "train", "--sizes", "8")) == 1
    assert arguments == [("far/away", "train")]
    assert "the longest text has" in capsys.readouterr().err
    assert main(command(folder, "owner/bok", "--sizes", "8")) == 1
    assert "cannot read owner/bok (No such file or directory)" in capsys.readouterr().err
    assert len(arguments) == 1  # the folder owner exists, so the name is a path
