"""``msrnn eval recovery`` on a tiny model: its losses are those of the adapters it trains, and it resumes."""

import json
from dataclasses import replace

import pytest
import torch
from support.tiny_models import step_loop
from support.tiny_tokenizer import chat_cell, tiny_tokenizer
from support.training import words
from torch.nn.functional import cross_entropy

import msrnn
from msrnn.cli.main import main
from msrnn.eval import recovery
from msrnn.train.finetune import prepare, split_text

TEXT = "".join(x for x in words() if x.isascii())
CONFIG = replace(recovery.SETTINGS, steps=4, chunk_length=10, lr=0.02, warmup_steps=1)


def encode(text):
    return tiny_tokenizer().encode(text).ids


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "SETTINGS", CONFIG)
    chat_cell(seed=4).save(tmp_path / "model")
    (tmp_path / "words.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text("a sea of whales and the far morning " * 20)
    return tmp_path / "model"


def command(model, *more):
    folder = model.parent
    text = ["--text", str(folder / "words.txt"), "--other", str(folder / "other.txt"), "--out", str(folder / "out")]
    sizes = ["--reduction", "tova:5", "--steps", "4", "--chunk", "30", "--chunks", "2", "--seeds", "0", "1"]
    return ["eval", "recovery", str(model), *text, *sizes, *more]


def test_losses_are_those_of_the_trained_adapters(model, tmp_path, capsys):
    assert main(command(model)) == 0
    tables = capsys.readouterr().out
    records = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(x["trained"], x["seed"]) for x in records] == [("", 0), ("full", 0), ("tova:5", 0), ("full", 1), ("tova:5", 1)]
    found = next(x for x in records if (x["trained"], x["seed"]) == ("tova:5", 1))
    cell, one = msrnn.load(model), replace(CONFIG, reduction="tova:5", seed=1)
    batches, _ = split_text(TEXT, encode, one, cell.device)
    trainer = prepare(cell, one)
    assert found["curve"] == pytest.approx([trainer.train_step(batches[i]) for i in range(4)], abs=1e-9)
    cell.eval().requires_grad_(False)
    end = encode(TEXT[len(TEXT) - len(TEXT) // 10 :])[1:]
    for chunk, first in enumerate((0, len(end) - 29)):
        ids = torch.tensor([[encode("")[0], *end[first : first + 29]]])
        for operator in ("full", "tova:5"):
            logits, _ = step_loop(cell, ids, cell.initial_state(1, operator))
            loss = cross_entropy(logits[0, :-1], ids[0, 1:])
            assert found["losses"]["words"][operator][chunk] == pytest.approx(float(loss), abs=1e-9)
    by_run = {(x["trained"], x["seed"]): x["losses"]["other"]["tova:5"] for x in records}
    chunks = [sum(by_run["tova:5", s][i] - by_run["full", s][i] for s in (0, 1)) / 2 for i in (0, 1)]
    value, error = sum(chunks) / 2, abs(chunks[0] - chunks[1]) / 2  # the standard error of two values
    assert f"{value:+.4f} ± {error:.4f} |\n| read under full: trained through tova:5 − through full" in tables


def test_a_finished_run_trains_nothing_and_a_new_seed_is_added(model, capsys, monkeypatch):
    assert main(command(model)) == 0
    first, trained = capsys.readouterr().out, []
    monkeypatch.setattr(recovery, "prepare", lambda cell, config: trained.append(config.seed) or prepare(cell, config))
    assert main(command(model)) == 0
    assert capsys.readouterr().out == first
    assert main(command(model, "--seeds", "1", "2")) == 0
    assert trained == [2, 2]
    monkeypatch.setattr(recovery, "code_digest", lambda operator: f"another {operator}")
    assert main(command(model, "--seeds", "1")) == 0
    assert trained == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--reduction", "full"], "--reduction is 'full'; expected a bounded operator"),
        (["--reduction", "all-layers:full"], "--reduction is 'all-layers:full'; expected a bounded operator"),
        (["--chunk", "9000"], "the held-out part of words has"),
        (["--reduction", "tofa:3"], "no operator is called 'tofa'"),
        (["--lora", "adapter"], "--lora is given, but the experiment trains its own adapters; expected MODEL without one"),
        (["--other", "words.txt"], "--text and --other are both called words; expected two texts with different names"),
    ],
)
def test_refusals_come_before_work(more, message, model, capsys, monkeypatch):
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr(recovery, "measure", None)
    msrnn.lora.save_adapter(msrnn.lora.add(chat_cell(seed=4)), model.parent / "adapter")
    assert main(command(model, *more)) == 1
    assert message in capsys.readouterr().err
