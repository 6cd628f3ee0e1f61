"""Continuations are those of msrnn.generate; the unbounded model scores them."""

import json

import pytest
import torch
from support.tables import unpadded
from support.tiny_models import step_loop
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

import msrnn
from msrnn.cli.main import main
from msrnn.eval.conditions import parse_conditions
from msrnn.eval.generation import GenerationResult, continue_prompts, report
from msrnn.eval.teacher_forcing import teacher_force
from msrnn.eval.texts import split_into_chunks

CELL, TOKENIZER = chat_cell(), tiny_tokenizer()
TEXT = "The boat was small, the sea was not; and on the 3rd day the wind rose again. " * 6
PROMPTS = split_into_chunks({"book": TEXT}, TOKENIZER, 20, 3)


@pytest.mark.parametrize("reduction", ["full", "tova:6"])
def test_teacher_forcing_equals_the_step_loop(reduction):
    ids = torch.stack([c.ids for c in PROMPTS])
    read, _ = step_loop(CELL, ids, CELL.initial_state(3, reduction))
    logits, state = CELL(ids[:, :7], CELL.initial_state(3, reduction), last_only=True)
    found = teacher_force(CELL, logits, ids[:, 7:], state)
    right = -read[:, 6:-1].log_softmax(-1).gather(2, ids[:, 7:, None])[..., 0]
    torch.testing.assert_close(found.nll, right, rtol=0, atol=1e-8)
    assert torch.equal(found.is_argmax, read[:, 6:-1].argmax(-1) == ids[:, 7:])
    own, _, _ = msrnn.generate(CELL, ids[:, :7], CELL.initial_state(3, reduction), max_new_tokens=5)
    assert teacher_force(CELL, logits, own, state).is_argmax.all()
    assert not found.is_argmax.all()


def test_a_result_of_a_batch_equals_that_of_a_single_prompt():
    cell = chat_cell(eos_token_ids=(40, 41, 42, 43, 44, 45))
    (full, tova), ended = parse_conditions(["full", "tova"], [6]), 0
    for condition in (full, tova):
        for found, chunk in zip(continue_prompts(cell, PROMPTS, condition, 25), PROMPTS, strict=True):
            new, _, _ = msrnn.generate(cell, chunk.ids[None], cell.initial_state(1, condition.reduction), max_new_tokens=25)
            ids = new[0].tolist()
            end = next((i for i, token in enumerate(ids) if token in cell.config.eos_token_ids), None)
            assert (found.chunk, found.ended) == (chunk.name, end is not None)
            assert found.ids == (ids if end is None else ids[: end + 1])
            ended += found.ended
            read, _ = step_loop(cell, torch.cat((chunk.ids, torch.tensor(found.ids)))[None])
            logits = read[0, len(chunk.ids) - 1 : -1]
            right = -logits.log_softmax(-1).gather(1, torch.tensor(found.ids)[:, None]).mean()
            assert found.nll == pytest.approx(float(right))
            assert found.agreement == pytest.approx(float((logits.argmax(-1) == torch.tensor(found.ids)).double().mean()))
            assert found.agreement == 1 or condition is tova
    assert 0 < ended < 6


def test_a_seed_repeats_the_samples():
    (condition,) = parse_conditions(["tova"], [6])
    one, again, other = (continue_prompts(CELL, PROMPTS, condition, 20, seed) for seed in (1, 1, 2))
    assert one == again != other


def test_every_batch_has_its_own_seed(tmp_path, monkeypatch, capsys):
    CELL.save(tmp_path / "model")
    (tmp_path / "book.txt").write_text(TEXT)
    called = []

    def record(cell, chunks, condition, max_new_tokens, seed):
        called.append((str(condition), [chunk.name for chunk in chunks], seed))
        return continue_prompts(cell, chunks, condition, max_new_tokens, seed)

    monkeypatch.setattr("msrnn.eval.generation.continue_prompts", record)
    arguments = ["eval", "generation", str(tmp_path / "model"), "--text", str(tmp_path / "book.txt"), "--chunk", "20"]
    arguments += [
        "--chunks",
        "3",
        "--batch",
        "2",
        "--max-new-tokens",
        "4",
        "--operators",
        "tova",
        "--sizes",
        "5",
        "--seed",
        "7",
    ]
    assert main(arguments) == 0
    batches = [["book 0", "book 1"], ["book 2"]]
    assert called == [(spec, batch, 7 + i) for spec in ("full", "tova:5") for i, batch in enumerate(batches)]


def test_distinct_ngrams_and_common_prefix():
    a, b = (GenerationResult("x", 1, "c", ids, False, 1.0, 1.0) for ids in ([1, 2, 1, 2, 1], [1, 2, 1, 3]))
    assert (a.distinct(1), a.distinct(2), a.distinct(4), a.distinct(6)) == (0.4, 0.5, 1.0, 1.0)
    assert (a.common_prefix(b), b.common_prefix(a), a.common_prefix(a)) == (3, 3, 5)


def test_table_contains_means_over_prompts():
    results = [GenerationResult("full", None, f"c {i}", [1, 2, 3], False, 1.0, 1.0) for i in range(2)]
    results += [
        GenerationResult("tova", 4, "c 0", [1, 2, 3, 3], True, 2.0, 0.5),
        GenerationResult("tova", 4, "c 1", [2, 2], False, 4.0, 1.0),
    ]
    rows = report(results, 4).tables[0].rows
    assert rows[0][:7] == ["full", "unbounded", "3", "0%", "1.000", "100.0%", "3"]
    assert rows[1] == ["tova", "4", "3", "50%", "3.000", "75.0%", "2", "0.625", "1.000", "1.000"]


def test_the_command_adds_the_unbounded_model(tmp_path, capsys):
    CELL.save(tmp_path / "model")
    (tmp_path / "book.txt").write_text(TEXT)
    arguments = ["eval", "generation", str(tmp_path / "model"), "--text", str(tmp_path / "book.txt"), "--chunk", "20"]
    arguments += ["--chunks", "3", "--batch", "2", "--max-new-tokens", "8", "--operators", "tova", "--sizes", "5"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert unpadded(capsys.readouterr().out).count("| full | unbounded |") == 1
    records = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(r["operator"], r["chunk"]) for r in records] == [(o, f"book {i}") for o in ("full", "tova") for i in range(3)]
    assert main([*arguments, "--operators", "truncated"]) == 1
    assert "has no state to continue from" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "out"), "--seed", "3"]) == 1
    assert "with seed None; this one has 3" in capsys.readouterr().err
