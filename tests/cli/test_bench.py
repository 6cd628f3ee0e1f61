"""``msrnn bench`` as a command: its files, its refusals, and ctrl-C."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.image import imread
from support.benchmarks import command
from support.command_line import PATIENCE

import converters
import msrnn
from msrnn.bench.report import markdown
from msrnn.bench.result import Result
from msrnn.bench.sections import SECTIONS
from msrnn.cli import bench
from msrnn.cli.main import main


def replace_section(monkeypatch, measure):
    monkeypatch.setitem(SECTIONS, "state-bytes", SECTIONS["state-bytes"]._replace(measure=measure))


def test_tables_json_and_plot_have_the_same_rows(folder, tmp_path, capsys, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    json_file, picture = tmp_path / "b.json", tmp_path / "b.png"
    args = command(folder, "--only", "step,state-bytes", "--threads", 1, "--json", json_file, "--picture", picture)
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert err.startswith(f"measuring {folder / 'own'}; sections: step, state-bytes\n")
    written = json.loads(json_file.read_text())
    assert threads == [1]
    assert written["complete"] is True
    assert "random ids" in out
    tables = {}
    for entry in written["rows"]:
        row = Result(**entry["row"])
        assert asdict(row) == entry["row"]
        assert entry["reached"] is row.reached
        assert row.workload in err
        tables.setdefault(entry["table"], []).append(row)
    assert list(tables) == ["One token", "Memory"]
    assert out.strip() == markdown(written["about"], tables)
    about = written["about"]
    assert about["medians"] == "1 rounds for texts, 5 for steps; implementations interleaved"
    assert about["model"].startswith(
        f"own, {sum(x.numel() for x in converters.load(folder / 'own').parameters()) / 1e6:.1f} million"
    )
    assert about["versions"].startswith(f"torch {torch.__version__}, transformers ")
    assert {point["name"] for point in written["curve"]} == {"tova:8", "full", "transformers"}
    assert imread(picture).shape[0] > 200
    assert imread(picture)[..., :3].std() > 0.05


def test_text_is_read(hf_folder, tmp_path, monkeypatch, capsys):
    read = []
    replace_section(monkeypatch, lambda bench: read.append(bench) or [])
    words = "The sea was calm that morning, and " * 3
    (tmp_path / "text.txt").write_text(words)
    args = [
        "bench",
        str(hf_folder),
        "--size",
        "4",
        "--tokens",
        "16",
        "--only",
        "state-bytes",
        "--text",
        str(tmp_path / "text.txt"),
    ]
    assert main(args) == 1
    assert "Sinks: sinks is 4" in capsys.readouterr().err
    args[3] = "5"
    assert main(args) == 0
    ids = converters.tokenizer(hf_folder).encode(words).ids
    assert read[0].ids.tolist() == ids
    assert read[0].export() == hf_folder  # not converted
    assert f"text.txt, {len(ids)} tokens" in capsys.readouterr().out


def test_converted_folder_is_temporary(folder, monkeypatch):
    made = []
    replace_section(monkeypatch, lambda bench: made.extend([bench.export()] * 2) or [])
    assert main(command(folder, "--only", "state-bytes")) == 0
    assert made[0] is made[1]
    assert made[0] != folder / "own"
    assert not made[0].exists()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--tokens", "8"], "--tokens is 8; expected at least 16"),
        (["--size", "32"], "expected at least 16, and more than --size, 32"),
        (["--size", "4"], "sinks is 4"),
        (["--text", "/nowhere.txt"], "cannot read /nowhere.txt"),
        (["--device", "abacus"], "device is 'abacus'"),
        (["--device", "meta"], "meta"),
        (["--picture", "b.xyz"], "b.xyz"),
        (["--json", "no/such/b.json"], "cannot write no/such/b.json"),
        (["--json", "."], "cannot write ."),
        (["--kvpress-python", "/nowhere/python"], "expected a Python interpreter (No such file"),
        (["--kvpress-python", sys.executable], "expected a Python with kvpress and transformers"),
        (["--llama-cpp-python", "/nowhere/python"], "--llama-cpp-python is /nowhere/python; expected a Python interpreter"),
        (["--llama-cpp-python", sys.executable], "expected a Python with llama-cpp-python installed"),
        (["--gguf", "/nowhere.gguf"], "--gguf is /nowhere.gguf; expected a file"),
    ],
)
def test_refusal_is_one_sentence_before_any_work(args, text, folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(converters, "load", lambda *_, **__: pytest.fail("work began"))
    assert main([*command(folder), *args]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert text in err
    assert not out
    assert not list(tmp_path.iterdir())


def test_a_text_has_more_tokens_than_the_state(folder, tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text("x")
    args = argparse.Namespace(text=tmp_path / "book.txt", size=8)
    for count in (9, 8):
        encoding = SimpleNamespace(ids=list(range(count)))
        monkeypatch.setattr(bench, "load_tokenizer", lambda args, encoding=encoding: SimpleNamespace(encode=lambda _: encoding))
        if count > 8:
            ids, source = bench._ids(args)
            assert (ids.tolist(), source) == (encoding.ids, "book.txt, 9 tokens")
        else:
            with pytest.raises(msrnn.Error, match="--text has 8 tokens; expected more than --size, 8"):
                bench._ids(args)


def test_unknown_section_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        main(command(folder, "--only", "unroll,speed"))
    assert "'speed' is not a section; expected some of unroll, long" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(command(folder, "--only", "unrol"))
    assert "'unrol' is not a section (did you mean 'unroll'" in capsys.readouterr().err


def test_ctrl_c_prints_what_was_measured(folder, tmp_path):
    """SIGINT goes to all processes of the terminal while a worker process measures."""
    args = [sys.executable, "-m", "msrnn", *command(folder, "--only", "state-bytes,peak", "--json", tmp_path / "b.json")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(args, **pipes, start_new_session=True, cwd=Path(__file__).parents[2]) as running:
        assert running.stderr.readline().endswith("own; sections: state-bytes, peak\n")
        for _ in range(3):
            assert "H after 32 tokens" in running.stderr.readline()
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        while not (workers := children.read_text().split()):
            assert running.poll() is None
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert err.strip() == "stopped"
    assert "H after 32 tokens, window:8" in out
    assert "**Memory**" in out
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["complete"] is False
    assert len(written["rows"]) == 3
    end = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # the workers are killed
        assert time.monotonic() < end
        time.sleep(0.1)
