"""Commands over several processes: the same results as in one process, and the end of all if one ends."""

import argparse
import json
import signal
import time
from dataclasses import asdict

import pytest
import torch
from support.rank_processes import end, start_ranks, start_waiting_rank, torchrun
from support.tiny_tokenizer import chat_cell
from support.training import train_config, words

import msrnn
from msrnn.cli import ranks as module
from msrnn.cli.main import main
from msrnn.cli.parser import COMMANDS
from msrnn.distributed.launch import Launch
from msrnn.distributed.liveness import ORPHANED
from msrnn.storage.safetensors_io import read_tensors
from msrnn.storage.staging import PREFIX

TEXT = "The boat was small, the sea was not; and on the 3rd day the wind rose again. " * 3
LIMIT = 60
"""Seconds; on a quiet machine it takes less than 5. The machines of the tests may be busy."""
LOST = "msrnn: rank {} has ended without a message"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    chat_cell().save(folder / "tiny")
    (folder / "book.txt").write_text(TEXT)
    (folder / "long.txt").write_text(TEXT * 300)
    return folder


def lm(files, operators, *more, text="book.txt", chunks=3):
    text = ["--text", files / text, "--chunk", 24, "--chunks", chunks, "--sizes", 6]
    return [*map(str, ["eval", "lm", files / "tiny", *text, "--operators", *operators, *more])]


def without_seconds(path):
    return [{name: x for name, x in record.items() if name != "seconds"} for record in json.loads(path.read_text())]


def test_an_evaluation_resumes_with_another_number_of_ranks(files, tmp_path, capsys):
    one, several, operators = tmp_path / "one", tmp_path / "several", ["full", "tova", "window"]
    assert main(lm(files, operators, "--out", one)) == 0
    printed = capsys.readouterr().out
    assert main(lm(files, ["tova"], "--out", several)) == 0
    first, second = map(end, start_ranks(2, *lm(files, operators, "--out", several)))
    tables = [text.partition("**Seconds per chunk**")[0] for text in (first[1], printed)]
    assert first[0] == 0
    assert tables[0] == tables[1]
    assert "3 of 9 entries taken" in first[2]
    assert second == (0, "", "")
    assert without_seconds(several / "report.json") == without_seconds(one / "report.json")
    assert {path.name for path in (several / "cells").iterdir()} == {path.name for path in (one / "cells").iterdir()}
    next((several / "cells").glob("*window*")).unlink()
    capsys.readouterr()
    assert main(lm(files, operators, "--out", several)) == 0
    assert "8 of 9 entries taken" in capsys.readouterr().err
    assert without_seconds(several / "report.json") == without_seconds(one / "report.json")


def test_ranks_generate_the_text_and_the_state_of_one_process(files, tmp_path, capsys):
    one, several = tmp_path / "one", tmp_path / "several"
    command = ["generate", str(files / "tiny"), "--reduction", "tova:8", "--max-new-tokens", "12", "--ignore-eos"]
    sampling = ["--prompt", "The sea was", "--sample", "--seed", "3"]
    assert main([*command, *sampling, "--state", str(one)]) == 0
    first, second = map(end, start_ranks(2, *command, *sampling, "--state", several))
    assert first[:2] == (0, capsys.readouterr().out)
    assert "on each of 2 ranks" in first[2]
    assert second == (0, "", "")
    assert main([*command[:-1], "--state", str(one)]) == main([*command[:-1], "--state", str(several)]) == 0
    continued = capsys.readouterr().out.splitlines()
    assert continued[: len(continued) // 2] == continued[len(continued) // 2 :]


def test_an_evaluation_ends_when_a_rank_is_killed(files, tmp_path):
    first, second = start_ranks(2, *lm(files, ["tova"], "--out", tmp_path / "out", text="long.txt", chunks=5000))
    while first.poll() is None and not list(tmp_path.glob("out/cells/*.json")):
        time.sleep(0.05)
    second.kill()
    began = time.monotonic()
    code, out, err = end(first)
    assert time.monotonic() - began < LIMIT
    assert code == 1
    assert out == ""
    assert err.splitlines()[-1].startswith(LOST.format(1))
    assert err.count("msrnn:") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "report.json").exists()
    end(second)


def test_a_generation_ends_when_rank_0_is_killed(files):
    first, second = start_ranks(2, "generate", files / "tiny", "--prompt", "a", "--max-new-tokens", 10**6, "--ignore-eos")
    assert first.stdout.read(1)
    first.kill()
    began = time.monotonic()
    code, out, err = end(second)
    assert time.monotonic() - began < LIMIT
    assert code == 1
    assert (out, err.count("msrnn:")) == ("", 1)
    assert err.startswith(LOST.format(0))
    end(first)


def test_a_training_run_that_lost_a_rank_is_resumed_by_one_process(files, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(asdict(train_config(steps=60, eval_every=2))))
    (tmp_path / "words.txt").write_text(words())
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["train", str(tmp_path / "words.txt"), "--config", str(tmp_path / "config.json"), "--out"]
    first, second = start_ranks(2, *command, out)
    while first.poll() is None and not list(out.glob("state-2.*")):
        time.sleep(0.01)
    second.kill()
    code, printed, err = end(first)
    end(second)
    assert code == 1
    assert printed == ""
    assert LOST.format(1) in err
    assert "Traceback" not in err
    assert not [path for path in out.iterdir() if path.name.startswith(PREFIX)]
    msrnn.load(out)
    assert main([*command, str(whole)]) == main([*command, str(out)]) == 0
    expected, found = (dict(read_tensors(folder / "training.safetensors"))["losses"] for folder in (whole, out))
    assert torch.allclose(found, expected, atol=1e-3)  # the first steps are those of two ranks, up to rounding in float32
    assert "60 steps, validation" in capsys.readouterr().out


def test_ranks_fine_tune_and_use_the_adapter(files, tmp_path, capsys):
    options = ["--steps", "4", "--chunk-length", "8", "--reduction", "tova:6", "--target-modules", "all-linear"]
    command = ["finetune", str(files / "tiny"), "--text", str(files / "book.txt"), *options, "-o"]
    assert main([*command, str(tmp_path / "one")]) == 0
    first, second = map(end, start_ranks(2, *command, tmp_path / "two"))
    printed = capsys.readouterr().out.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    assert first[:2] == (0, printed)
    assert second == (0, "", "")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    generate = ["generate", str(files / "tiny"), "--prompt", "a", "--max-new-tokens", "8", "--lora", str(tmp_path / "two")]
    assert main(generate) == 0
    first, second = map(end, start_ranks(2, *generate))
    assert first[:2] == (0, capsys.readouterr().out)
    assert second == (0, "", "")


def test_ctrl_c_at_torchrun_saves_the_state(files, tmp_path, capsys):
    command = ["generate", str(files / "tiny"), "--state", str(tmp_path / "text.state"), "--ignore-eos"]
    launcher = torchrun(2, *command, "--prompt", "a", "--max-new-tokens", 10**6)
    assert launcher.stdout.read(1)
    launcher.send_signal(signal.SIGINT)
    code, _, err = end(launcher)
    assert code != 0
    assert err.count("stopped\n") == 1
    assert "rank 0\n" not in err
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(PREFIX)] == ["text.state"]
    assert main([*command, "--max-new-tokens", "4"]) == 0


def test_a_rank_that_waits_for_the_others_ends_when_torchrun_is_killed():
    launcher = start_waiting_rank("generate", "no model", "--prompt", "a")
    launcher.kill()
    _, err = launcher.communicate(timeout=LIMIT)  # the rank has the same pipes, so this waits for it
    assert err.count(ORPHANED) == 1
    assert "Traceback" not in err


def test_every_command_runs_over_ranks_or_is_refused(monkeypatch):
    assert sorted([*module.SPLIT, *module.DIVIDED, *module.FIRST_ONLY, *module.REFUSED]) == sorted(COMMANDS)
    monkeypatch.setattr(module, "Liveness", lambda ranks: argparse.Namespace(report=None))
    for command in module.REFUSED:
        with pytest.raises(msrnn.Error, match=f"msrnn {command} is started by torchrun with 2 ranks; expected one process"):
            module.RankRun(Launch(0, 2)).start(argparse.Namespace(command=command))
