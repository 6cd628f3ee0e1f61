"""``msrnn soak`` as a command: killed and resumed, its refusals, its table and its plot."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from support.command_line import PATIENCE
from support.tables import unpadded
from support.tiny_models import assert_same, tiny_cell

import msrnn
from msrnn.cli.main import main
from msrnn.diagnostics.soak import RECORD, STATE, Interval, draw_soak


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_cell(dtype=torch.float32).save(path)
    return path


def command(model, out, *more, n_tokens=1200):
    arguments = [str(model), "--reduction", "tova:9", "--tokens", str(n_tokens), "--interval", "40", "--out", str(out)]
    return ["soak", *arguments, *map(str, more)]


def final_state(folder):
    return msrnn.load_state(folder / STATE)


def start(model, out, clock):
    """Start a run in a new process and return it when it has saved a state later than ``clock``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "msrnn", *command(model, out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(100 * PATIENCE):
        if process.poll() is not None or ((out / STATE).exists() and int(final_state(out).clock) > clock):
            return process
        time.sleep(0.01)
    raise AssertionError("the run saves nothing")


def test_run_killed_at_random_moments_equals_an_uninterrupted_run(model, tmp_path):
    rng, out, clocks = random.Random(0), tmp_path / "killed", [0]
    for _ in range(3):
        with start(model, out, clocks[-1]) as process:
            time.sleep(0.06 * rng.random())  # an interval takes about as long
            process.kill()
        assert process.returncode == -signal.SIGKILL, process.communicate()
        clocks.append(int(final_state(out).clock))
    assert clocks == sorted(set(clocks))
    assert clocks[-1] < 1200
    assert main(command(model, out)) == 0
    assert main(command(model, tmp_path / "whole")) == 0
    assert_same(final_state(out), final_state(tmp_path / "whole"))
    records = [json.loads((path / RECORD).read_text())["intervals"] for path in (out, tmp_path / "whole")]
    fields = ("read", "difference", "near_ties", "nbytes")
    one, other = ([[row[field] for field in fields] for row in rows] for rows in records)
    assert one == other
    assert sorted(os.listdir(out)) == [RECORD, "soak.png", STATE]


def test_ctrl_c_states_how_to_resume(model, tmp_path):
    with start(model, tmp_path, 0) as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"the same command resumes from the last saved state in {tmp_path}" in err
    assert sorted(os.listdir(tmp_path)) == [RECORD, STATE]


def test_refusals_leave_a_run_unchanged(model, tmp_path, capsys):
    tiny_cell(1, torch.float32).save(tmp_path / "other model")
    tiny_cell(dtype=torch.float64).save(tmp_path / "float64")
    out = tmp_path / "run"
    assert main(command(model, out, n_tokens=80)) == 0
    before = {path: (out / path).read_bytes() for path in os.listdir(out)}
    capsys.readouterr()
    for arguments, message in (
        (command(tmp_path / "other model", out), "another run: state belongs to another model"),
        (command(tmp_path / "float64", out), "another run: state is torch.float32"),
        (command(model, out, "--reduction", "tova:8"), "contains a run under tova:9; this one is under tova:8"),
        (command(model, out, "--seed", 2), "contains a run with seed 1; this one has 2"),
        (command(model, out, "--interval", 41), "contains a run with interval 40; this one has 41"),
    ):
        assert main(arguments) == 1
        err = capsys.readouterr().err
        assert err.startswith("msrnn: ")
        assert err.count("\n") == 1
        assert message in err
    assert before == {path: (out / path).read_bytes() for path in os.listdir(out)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--reduction", "full"], "reduction is full; expected an operator that bounds H"),
        (["--text", "/nowhere.txt"], "cannot read /nowhere.txt (No such file"),
        (["--text", os.devnull], "is empty"),
        (["--device", "meta"], "meta"),
        (["--text", __file__], "tokenizer.json"),
        (["--out", os.devnull], os.devnull),
    ],
)
def test_refusals_leave_no_files(more, message, model, tmp_path, capsys):
    assert main(command(model, tmp_path / "new", *more)) == 1
    err = capsys.readouterr().err
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_table_and_plot(model, tmp_path, capsys):
    assert main(command(model, tmp_path / "out", n_tokens=120)) == 0
    out = capsys.readouterr().out
    assert "120 tokens read (random ids)" in out
    assert "3 intervals" in out
    assert "unroll and step loop compared 3 times" in out
    assert re.search(r"H, MB +\| +0\.00 \| +0\.00 \| +1\.000", out)
    assert main(command(model, tmp_path / "out", n_tokens=120)) == 0  # a finished run prints the same again
    assert capsys.readouterr().out == out
    check_plot(tmp_path / "out" / "soak.png")


def test_ratios_are_last_by_first_and_differences_are_maxima(model, tmp_path, capsys, monkeypatch):
    rows = [Interval(50, 2.0, 8.0, 1e-9, 1, 2_000_000, 10**8), Interval(100, 3.0, 4.0, 5e-9, 2, 2_000_000, 2 * 10**8)]
    rows.append(Interval(150, 3.0, 2.0, 2e-9, 0, 3_000_000, 5 * 10**8))
    monkeypatch.setattr("msrnn.cli.soak.soak", lambda *_, **__: (tmp_path / "out").mkdir() or rows)
    assert main(command(model, tmp_path / "out", n_tokens=150)) == 0
    out = unpadded(capsys.readouterr().out)
    for line in (
        "| of 3 intervals | first | last | ratio |",
        "| unroll, ms/token | 2.00 | 3.00 | 1.500 |",
        "| step, ms/token | 8.00 | 2.00 | 0.250 |",
        "| H, MB | 2.00 | 3.00 | 1.500 |",
        "| process, MB | 100.00 | 500.00 | 5.000 |",
        "unroll and step loop compared 3 times: logits differ by 5.0e-09 at most, 3 near-ties",
    ):
        assert line in out, line


def test_plot_has_four_curves_in_two_panels(tmp_path):
    for n in (1, 100):
        rows = [Interval(2048 * (i + 1), 3 + i % 3, 30 + i % 7, 1e-5, 0, 6_000_000, 10**9 + 10**7 * (i % 5)) for i in range(n)]
        draw_soak(rows, tmp_path / "soak.png", title="tiny")
        check_plot(tmp_path / "soak.png", 50 if n == 1 else 700)


def check_plot(path, pixels=500):
    """Check for two panels: unroll and step in the upper one, process and H in the lower one."""
    picture = imread(path)[..., :3]
    dark = (picture.max(-1) < 0.2).mean(1) > 0.6
    lines = np.flatnonzero(dark & ~np.roll(dark, 1))
    assert len(lines) == 4
    upper, lower = picture[lines[0] : lines[1]], picture[lines[2] : lines[3]]
    colours = {"step": (213, 94, 0), "unroll": (0, 114, 178), "process": (0, 158, 115), "H": (204, 121, 167)}
    for name, colour in colours.items():
        found = [int((np.abs(panel - np.array(colour) / 255).max(-1) < 0.03).sum()) for panel in (upper, lower)]
        own, other = found if name in ("step", "unroll") else found[::-1]
        assert own > pixels, name
        assert other == 0, name


def test_text_of_the_real_model(gguf_path, tmp_path, capsys):
    book = tmp_path / "book.txt"
    book.write_text("The sea was calm that morning, and the men were mending their nets. " * 2)
    arguments = ["soak", str(gguf_path), "--text", str(book), "--reduction", "tova:16", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--tokens", "80", "--interval", "40"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"80 tokens read \(.*book.txt, \d+ tokens, 2\.\d+ times\)", out)
    assert "0 near-ties" in out
