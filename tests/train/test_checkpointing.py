"""Resumed runs end with the same bits, also after a kill; the folder of another run is refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from matplotlib.image import imread
from support.command_line import PATIENCE
from support.figures import record_figures
from support.interrupted_writes import interrupted_at_write
from support.training import DECODER, MODEL, train_config, words

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.train import train
from msrnn.train.config import PRESETS, read_train_config
from msrnn.train.report import draw_training

ENCODER_DECODER = {"family": "encoder-decoder", "width": 16, "n_layers": 1, "n_heads": 2, "ffn_width": 24}
NAMES = ["config.json", "model.safetensors", "state-12.safetensors", "tokenizer.json", "training.safetensors"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}


def test_a_run_stopped_before_any_file_write_ends_with_the_same_bytes(tmp_path):
    """Compares every byte of every file: carried state, row statistics, optimizer, random state."""
    text, wholes, stopped = words(), {}, 0
    settings = [
        train_config(reduction="tova:6"),
        train_config(reduction="h2o:6"),
        train_config(model=DECODER, reduction="full"),
    ]
    for kind in settings:
        train(kind, text, tmp_path / kind.reduction)
        wholes[kind.reduction] = contents(tmp_path / kind.reduction)
        assert sorted(wholes[kind.reduction]) == NAMES
    for n in range(11):  # the folder, then state, training and model three times, then no stop
        kind = settings[n % 3]
        try:
            with interrupted_at_write(n):
                train(kind, text, tmp_path / str(n))
        except KeyboardInterrupt:
            stopped += 1
        train(kind, text, tmp_path / str(n))
        assert contents(tmp_path / str(n)) == wholes[kind.reduction]
    assert stopped == 10


def test_a_parameter_without_a_gradient_is_restored(tmp_path):
    """With one chunk per state the write tokens are never used, so they have no optimizer state."""
    settings = train_config(model={**DECODER, "memory_tokens": 2, "recurrent": True}, chunks_per_state=1)
    done = train(settings, words(), tmp_path)
    assert train(settings, words(), tmp_path).losses == done.losses


def test_the_carried_state_changes_the_losses(tmp_path):
    """Otherwise the tests of resuming would not detect a lost state."""
    whole = train(train_config(), words(), tmp_path / "carried")
    alone = train(train_config(chunks_per_state=1), words(), tmp_path / "alone")
    assert whole.losses[0] == alone.losses[0]
    assert whole.losses[1] != alone.losses[1]


def test_the_random_state_of_the_caller_is_unchanged(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = train(train_config(), words(), tmp_path / "one")
    assert torch.equal(torch.rand(3), expected)
    other = train(train_config(seed=1), words(), tmp_path / "other")
    assert one.losses[0] != other.losses[0]


def test_parameters_depend_on_the_seed_of_the_run_and_not_on_the_random_state_of_the_caller(tmp_path):
    losses = []
    for state in (1, 2):
        torch.manual_seed(state)
        losses.append(train(train_config(model=DECODER), words(), tmp_path / str(state)).losses)
    assert losses[0] == losses[1]


def test_the_last_step_is_validated_and_saved(tmp_path):
    done = train(train_config(steps=10), words(), tmp_path)
    assert [*done.validation] == [4, 8, 10]
    assert (tmp_path / "state-10.safetensors").is_file()
    assert msrnn.load(tmp_path).embed.weight.equal(done.cell.embed.weight)


def test_a_state_of_another_batch_size_is_refused(tmp_path):
    done = train(train_config(), words(), tmp_path)
    done.state.select([0, 1]).save(tmp_path / "state-12.safetensors")
    with pytest.raises(msrnn.Error, match="state has batch size 2"):
        train(train_config(), words(), tmp_path)


def test_a_finished_run_is_returned_unchanged(tmp_path):
    done = train(train_config(), words(), tmp_path)
    before = contents(tmp_path)
    again = train(train_config(), words(), tmp_path)
    assert (again.losses, again.validation) == (done.losses, done.validation)
    assert [*done.validation] == [4, 8, 12]
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.5}, "contains a run with lr 0.003; this one has 0.5"),
        ({"reduction": "tova:7"}, "contains a run with reduction 'tova:6'; this one has 'tova:7'"),
        ({"model": {**MODEL, "width": 32}}, "contains a run with model {"),
        ({"tokenizer": "bpe:300"}, "contains a run with tokenizer 'bytes'; this one has 'bpe:300'"),
    ],
)
def test_another_run_is_refused(fields, message, tmp_path):
    train(train_config(), words(), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(msrnn.Error) as refused:
        train(train_config(**fields), words(), tmp_path)
    assert message in str(refused.value)
    with pytest.raises(msrnn.Error, match="contains a run with text"):
        train(train_config(), words() + "!", tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_without_a_run_is_refused_and_unchanged(tmp_path):
    (tmp_path / "letter.txt").write_text("x")
    with pytest.raises(msrnn.Error, match=r"has no training\.safetensors; expected the folder of a training run, or a new one"):
        train(train_config(), words(), tmp_path)
    assert os.listdir(tmp_path) == ["letter.txt"]


def damaged(folder, name, change):
    tensors = dict(msrnn.storage.safetensors_io.read_tensors(folder / name))
    about = msrnn.storage.safetensors_io.read_metadata(folder / name)
    change(tensors, about)
    from safetensors.torch import save_file

    save_file(tensors, folder / name, about)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "training.safetensors").write_bytes(b"no"), "safetensors"),
        (lambda out: (out / "state-12.safetensors").unlink(), "cannot read"),
        (lambda out: (out / "state-12.safetensors").write_bytes(b"no"), "safetensors"),
        (lambda out: damaged(out, "training.safetensors", lambda x, _: x.pop("adam.norm.weight.step")), "is not part"),
        (lambda out: damaged(out, "training.safetensors", lambda x, _: x.update(more=torch.zeros(1))), "'more' is not part"),
        (lambda out: damaged(out, "training.safetensors", lambda x, _: x.pop("losses")), "incomplete"),
        (lambda out: damaged(out, "training.safetensors", lambda x, _: x.update(random=torch.zeros(1))), "incomplete"),
        (lambda out: damaged(out, "training.safetensors", lambda x, _: x.update({"model.norm.weight": torch.zeros(12)})), "16"),
        (lambda out: damaged(out, "training.safetensors", lambda _, a: a.update(config="{")), "damaged"),
        (
            lambda out: damaged(out, "training.safetensors", lambda _, a: a.update(version="1")),
            "version '1'; expected '2'",
        ),
        (lambda out: (out / "tokenizer.json").write_text("[]"), "tokenizer.json"),
    ],
)
def test_a_damaged_run_is_refused(change, message, tmp_path):
    train(train_config(), words(), tmp_path)
    change(tmp_path)
    with pytest.raises(msrnn.Error) as refused:
        train(train_config(), words(), tmp_path)
    assert message in str(refused.value)


# The command.


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(words(), "utf-8")
    return path


def config(path, **fields):
    path.write_text(json.dumps(asdict(train_config(**fields))))
    return path


def command(text, config, out):
    return ["train", str(text), "--config", str(config), "--out", str(out)]


def test_other_commands_read_the_folder(text, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(text, config(tmp_path / "c.json", tokenizer="bpe:280"), out)) == 0
    assert "12 steps, validation" in capsys.readouterr().out
    check_colours(out / "loss.png")
    tokenizer, cell = converters.tokenizer(out), msrnn.load(out)
    assert cell.config.vocab_size == tokenizer.get_vocab_size() == 280
    for more in (
        ["generate", str(out), "--prompt", "the sea", "--max-new-tokens", "5", "--decode", "lookahead"],
        ["eval", "lm", str(out), "--text", str(text), "--chunk", "32", "--chunks", "2", "--operators", "tova", "--sizes", "8"],
        ["bench", str(out), "--only", "step", "--tokens", "20", "--size", "8", "--rounds", "1"],
        ["info", str(out)],
    ):
        assert main(more) == 0, more
        assert capsys.readouterr().out
    done = train(train_config(tokenizer="bpe:280"), text.read_text("utf-8"), out)
    for name, x in done.cell.named_parameters():
        assert torch.equal(x, cell.get_parameter(name))


def test_the_command_plots_and_prints_the_results_of_the_run(text, tmp_path, capsys, monkeypatch):
    plots, out = [], tmp_path / "out"
    monkeypatch.setattr("msrnn.cli.train.draw_training", lambda *args, **more: plots.append((*args, more["title"])))
    assert main(command(text, config(tmp_path / "c.json"), out)) == 0
    done = train(train_config(), text.read_text("utf-8"), out)
    assert plots == [(done.losses, done.validation, out / "loss.png", "words.txt, under tova:6")]
    size = sum(x.numel() for x in done.cell.parameters())
    expected = f"{out}: {size / 1e6:.2f} million parameters, 12 steps, validation {done.validation[12]:.4f} bits/byte"
    assert capsys.readouterr().out.splitlines()[-2:] == [expected, str(out / "loss.png")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk_length": 5000}, "the text has"),
        ({"stepz": 3}, "field 'stepz' is not known (did you mean 'steps'?); expected steps, batch_size"),
        ({"preset": "tony"}, "preset is 'tony' (did you mean 'tiny'?); expected one of tiny, "),
        ({"model": {**MODEL, "widht": 3}}, "field 'widht' is not known (did you mean 'width'?)"),
        ({"model": {**MODEL, "family": "lama"}}, "family is 'lama' (did you mean 'llama'"),
        ({"model": {**MODEL, "vocab_size": 3}}, "vocab_size is given"),
        ({"model": 3}, "model is 3"),
        ({"model": {k: v for k, v in MODEL.items() if k != "width"}}, "field 'width' is missing"),
        ({"steps": 0}, "steps is 0; expected an int from 1 to"),
        ({"steps": True}, "steps is True"),
        ({"lr": "fast"}, "lr is 'fast'; expected a number above 0 and at most 1"),
        ({"max_grad_norm": 0}, "max_grad_norm is 0; expected a number above 0 and at most 1e+09"),
        ({"carry": 16}, "field 'carry' has a new name; expected 'chunks_per_state'"),
        ({"weight_decay": False}, "weight_decay is False; expected a number of at least 0 and at most 1"),
        ({"weight_decay": -1}, "weight_decay is -1; expected a number of at least 0 and at most 1"),
        ({"reduction": "tofa:8"}, "no operator is called 'tofa'"),
        ({"model": {**DECODER, "positions": "learned", "context_length": 29}}, "exceeds the 29 learned positions"),
        ({"model": ENCODER_DECODER}, "model.family is 'encoder-decoder'; `msrnn train` trains decoder-only models"),
        ({"model": {**DECODER, "positions": "alibi"}, "reduction": "keydiff:8"}, "alibi"),
        ({"tokenizer": "words"}, "tokenizer is 'words'; expected bytes, or bpe with a size, such as bpe:4096"),
        ({"tokenizer": "bpe:256"}, "tokenizer is 'bpe:256'"),
    ],
)  # fmt: skip
def test_refusals_leave_nothing(fields, message, text, tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps({**asdict(train_config()), **fields}))
    before = sorted(os.listdir(tmp_path))
    assert main(command(text, tmp_path / "c.json", tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(os.listdir(tmp_path)) == before


def test_an_empty_text_is_refused(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    assert main(command(tmp_path / "empty.txt", config(tmp_path / "c.json"), tmp_path / "out")) == 1
    assert "the text has 0 tokens for training" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fields_are_checked_against_the_tokenizer_and_the_memory():
    """Special tokens are checked against the vocabulary, learned positions against the tokens that one state reads."""
    assert train_config(tokenizer="bpe:400", model={**MODEL, "eos_token_ids": [300]}).model_config(400).eos_token_ids == (300,)
    with pytest.raises(msrnn.Error, match="special token id is 300; expected an id of the vocabulary of 256"):
        train_config(model={**MODEL, "eos_token_ids": [300]})
    learned = {**DECODER, "positions": "learned", "context_length": 10, "memory_tokens": 2, "recurrent": True}
    assert train_config(model=MappingProxyType(learned)).model == learned


@torch.no_grad()
def test_training_works_inside_no_grad(text, tmp_path):
    assert len(train(train_config(steps=1), words(), tmp_path / "run").losses) == 1


def test_a_folder_that_cannot_be_written_is_refused(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path / "words.txt" / "out", tmp_path / "words.txt", Path(".")):
        assert main(command(text, config(tmp_path / "c.json"), out)) == 1
        err = capsys.readouterr().err
        assert (
            err.startswith("msrnn: cannot write") or "exists already" in err or "expected the folder of a training run" in err
        )
        assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["c.json", "words.txt"]


def test_a_config_is_a_preset_or_a_file(tmp_path):
    assert read_train_config("tiny") == PRESETS["tiny"]
    (tmp_path / "c.json").write_text(json.dumps({"preset": "tiny-bounded", "steps": 7, "model": {"n_layers": 3}}))
    expected = PRESETS["tiny-bounded"]
    assert read_train_config(str(tmp_path / "c.json")) == replace(expected, steps=7, model={**expected.model, "n_layers": 3})
    with pytest.raises(msrnn.Error, match=r"--config is 'huge'; expected one of tiny, .*, or a \.json file"):
        read_train_config("huge")


def started(arguments, out, before):
    """Start a run in a new process and return it after more than ``before`` steps."""
    process = subprocess.Popen([sys.executable, "-m", "msrnn", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(100 * PATIENCE):
        if process.poll() is not None or steps(out) > before:
            return process
        time.sleep(0.01)
    raise AssertionError("the run has not started")


def steps(out):
    try:
        return len(dict(msrnn.storage.safetensors_io.read_tensors(out / "training.safetensors"))["losses"])
    except msrnn.Error:
        return -1


def test_a_run_killed_and_interrupted_at_random_times_ends_with_the_same_bytes(text, tmp_path):
    rng, out = random.Random(0), tmp_path / "killed"
    arguments, reached = command(text, config(tmp_path / "c.json", steps=100, eval_every=5), out), [0]
    for last in (signal.SIGKILL, signal.SIGINT):
        with started(arguments, out, reached[-1]) as process:
            time.sleep(0.1 * rng.random())  # about the time of one interval
            process.send_signal(last)
            _, err = process.communicate()
        reached.append(steps(out))
    assert process.returncode == 130, err
    assert b"the same command resumes" in err
    assert reached == sorted(set(reached))
    assert reached[-1] < 100
    msrnn.load(out)  # complete at any time
    assert main(arguments) == 0
    assert main(command(text, tmp_path / "c.json", tmp_path / "whole")) == 0
    assert contents(out) == contents(tmp_path / "whole")


def check_colours(path):
    """Check that the left panel contains only blue curves and the right panel only orange ones."""
    picture = imread(path)[..., :3]
    half = picture.shape[1] // 2
    for panel, colour, other in (
        (picture[:, :half], (0, 114, 178), (213, 94, 0)),
        (picture[:, half:], (213, 94, 0), (0, 114, 178)),
    ):
        own, foreign = (int((abs(panel - [c / 255 for c in rgb]).max(-1) < 0.03).sum()) for rgb in (colour, other))
        assert own > 100
        assert foreign == 0


def test_figure_contains_losses_and_validations(tmp_path, monkeypatch):
    figures = record_figures(monkeypatch)
    losses = [5 / (i + 1) for i in range(100)]
    draw_training([1.0], {1: 2.0}, tmp_path / "one.svg")
    draw_training(losses, {i: 2.0 / i for i in range(10, 100, 10)}, tmp_path / "many.png", title="x")
    check_colours(tmp_path / "many.png")
    left, right = figures[-1].axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("step", "training loss, nats per token")
    assert (right.get_xlabel(), right.get_ylabel()) == ("step", "validation, bits per byte")
    assert [line.get_label() for line in left.lines] == ["each step", "smoothed"]
    assert list(left.lines[0].get_ydata()) == losses
    assert list(left.lines[0].get_xdata())[:2] == [1, 2]
    assert list(left.lines[1].get_ydata())[:2] == pytest.approx([5.0, 0.95 * 5.0 + 0.05 * 2.5])
    assert list(right.lines[0].get_xdata()) == [*range(10, 100, 10)]
    assert figures[-1].get_suptitle() == "x"
