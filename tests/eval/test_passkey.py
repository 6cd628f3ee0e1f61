"""A key is placed at its depth and found if greedy decoding generates it."""

import json
import random

import pytest
import torch
from matplotlib.image import imread
from support.tables import unpadded
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

import msrnn
from msrnn.cli.main import main
from msrnn.eval import passkey
from msrnn.eval.conditions import parse_conditions
from msrnn.eval.passkey import NEEDLE, QUESTION, TASK, PasskeyResult, make_prompt, report, retrieve_keys

TOKENIZER = tiny_tokenizer()


@pytest.mark.parametrize("length", [320, 601, 1300])
@pytest.mark.parametrize("depth", [0, 0.5, 1])
def test_depth_of_the_key_and_length_of_the_prompt(length, depth):
    ids = make_prompt(TOKENIZER, "12345", length, depth)
    text = TOKENIZER.decode(ids)
    one = len(
        TOKENIZER.encode("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n").ids
    )
    assert length - one < len(ids) <= length
    assert text.startswith(TASK)
    assert text.endswith(QUESTION)
    before, after = text.removeprefix(TASK).removesuffix(QUESTION).split(NEEDLE.format(key="12345"))
    assert abs(len(before) - depth * (len(before) + len(after))) <= one


def test_a_short_length_is_refused():
    with pytest.raises(msrnn.Error, match="the length of a text is 100 tokens; expected at least"):
        make_prompt(TOKENIZER, "12345", 100, 0.5)


@pytest.mark.parametrize("row", ["full", "tova:9"])
def test_a_key_is_found_if_greedy_decoding_generates_it(row):
    """The cell is random, so the keys are replaced by the text that it generates, with one wrong letter in the last."""
    cell, (condition,) = chat_cell(), parse_conditions([row], [9])
    result = retrieve_keys(cell, TOKENIZER, condition, 320, 0.5, 3, seed=1)
    assert (result.found, result.keys) == (0, 3)
    texts = [torch.tensor([make_prompt(TOKENIZER, key, 320, 0.5)]) for key in ("11111", "22222", "33333")]
    written = [
        TOKENIZER.decode(msrnn.generate(cell, text, cell.initial_state(1, row), max_new_tokens=6)[0][0].tolist())
        for text in texts
    ]

    written[2] = written[2][:-1] + ("x" if written[2][-1] != "x" else "y")  # wrong last letter
    answers = dict(zip((" 11111", " 22222", " 33333"), written, strict=True))

    class AnswerTokenizer:  # encodes a key as the text that the model generates after its prompt
        def encode(self, text, add_special_tokens=True):
            if text in answers:
                return TOKENIZER.encode(answers[text], add_special_tokens=False)
            return TOKENIZER.encode(text, add_special_tokens=add_special_tokens)

    class FixedKeys:
        def __init__(self, _):
            self.left = iter((11111, 22222, 33333))

        def randrange(self, *_):
            return next(self.left)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("random.Random", FixedKeys)
        result = retrieve_keys(cell, AnswerTokenizer(), condition, 320, 0.5, 3, seed=1)
    assert result.found == pytest.approx(2 / 3)


def test_nats_are_those_of_the_digits_of_the_key():
    cell, (condition,) = chat_cell(), parse_conditions(["h2o"], [9])
    result = retrieve_keys(cell, TOKENIZER, condition, 320, 0.25, 2, seed=3)
    rng, nats = random.Random("3 320 0.25"), []
    for _ in range(2):
        key = str(rng.randrange(10000, 100000))
        assert len(key) == 5
        prompt = make_prompt(TOKENIZER, key, 320, 0.25)
        answer = TOKENIZER.encode(f" {key}", add_special_tokens=False).ids
        logits, _ = cell(torch.tensor([prompt + answer]), cell.initial_state(1, "h2o:9"))
        scores = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        nats += (-scores.gather(1, torch.tensor(answer)[:, None])[:, 0]).tolist()
    assert result.nll == pytest.approx(sum(nats) / len(nats))
    assert (result.operator, result.size, result.length, result.depth) == ("h2o", 9, 320, 0.25)


def test_heat_maps_and_tables_contain_the_results():
    results = [
        PasskeyResult("tova", 8, n, d, found, nll, 4)
        for (n, d, found, nll) in [(64, 0, 0.25, 1.0), (64, 1, 0.75, 2.0), (128, 0, 0, 3.0), (128, 1, 0.5, 5.0)]
    ]
    whole = report(results)
    assert whole.tables[0].columns == whole.tables[1].columns == ["operator", "64 tokens", "128 tokens"]
    assert whole.tables[0].rows == [["tova:8", "50%", "25%"]]
    assert whole.tables[0].note.startswith("8 keys per length, at 2 depths")
    assert whole.tables[1].rows == [["tova:8", "1.50", "4.00"]]
    assert whole.figures["passkey.png"].panels["tova:8"].tolist() == [[0.25, 0.75], [0, 0.5]]
    assert whole.figures["passkey.png"].ticks == (["0", "1"], ["64", "128"])
    assert whole.figures["passkey.png"].x_label == "depth, share of the text"
    assert whole.figures["passkey.png"].y_label == "prompt, tokens"


def test_prompts_that_the_machine_cannot_hold_are_not_built(tmp_path, capsys, monkeypatch):
    chat_cell().save(tmp_path / "model")
    monkeypatch.setattr(passkey, "make_prompt", lambda *_: pytest.fail("a prompt was built"))
    arguments = ["eval", "passkey", str(tmp_path / "model"), "--sizes", "9", "--lengths", "1000000000000"]
    assert main(arguments) == 1
    assert "4 states of 1000000000000 rows need" in capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    chat_cell().save(tmp_path / "model")
    arguments = ["eval", "passkey", str(tmp_path / "model"), "--sizes", "9", "--operators", "sinks:SIZE:2", "--keys", "2"]
    out = tmp_path / "out"
    assert main([*arguments, "--lengths", "330", "400", "--depths", "0", "0.5", "--out", str(out)]) == 0
    assert "| sinks:9:2 | 0% | 0% |" in unpadded(capsys.readouterr().out)
    assert [(r["length"], r["depth"]) for r in json.loads((out / "report.json").read_text())] == [
        (330, 0),
        (330, 0.5),
        (400, 0),
        (400, 0.5),
    ]
    assert min(imread(out / "passkey.png").shape[:2]) > 200
    for more, message in {
        ("--depths", "1.5"): "--depths has 1.5",
        ("--lengths", "50"): "the length of a text is 50 tokens",
        ("--operators", "truncated"): "truncated:9, which has no state",
    }.items():
        assert main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err
