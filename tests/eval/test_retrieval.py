"""A model that copies the needle scores 100 %, a random one 0; differences are paired; runs resume with the same table."""

import json
import random

import pytest
from matplotlib.image import imread
from support.tables import unpadded
from support.task_solvers import solve
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

from msrnn.cli.main import main
from msrnn.eval import retrieval
from msrnn.eval.answers import Answer, split_into_batches
from msrnn.eval.conditions import parse_conditions
from msrnn.eval.retrieval import TASKS, generate_questions
from msrnn.eval.retrieval_report import RetrievalResult, report
from msrnn.eval.tasks.difficulty import DIFFICULTIES

BOOK = "The boat was small. The sea was not; and on the 3rd day, the wind rose again! Was it late? \n" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("retrieval")
    chat_cell().save(path / "model")
    (path / "book.txt").write_text(BOOK)
    return path


def arguments(folder, *more):
    short = ["--lengths", "1400", "--examples", "1", "--depths", "0", "1", "--operators", "tova", "--sizes", "9"]
    return ["eval", "retrieval", str(folder / "model"), "--text", str(folder / "book.txt"), *short, *more]


def solved(cell, tokenizer, prompts, reduction, limits):
    return [Answer(", ".join(solve(prompt)), 3, True) for prompt in prompts]


def test_a_model_that_copies_the_answer_scores_100_percent(folder, monkeypatch, capsys):
    monkeypatch.setattr(retrieval, "write_answers", solved)
    assert main(arguments(folder)) == 0
    out = unpadded(capsys.readouterr().out)
    assert f"| operator | {' | '.join(TASKS)} | mean |" in out
    assert "| tova:9 |" + " 100% |" * 7 in out
    assert "| full |" + " 100% |" * 7 in out
    assert "| tova:9 |" + " +0 |" * 6 + " +0 ± 0 |" in out  # six equal differences have an error


def test_a_random_model_scores_0(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(folder, "--tasks", "needle", "multikey", "--lengths", "700", "--out", str(out))) == 0
    assert "| tova:9 |" + " 0% |" * 3 in unpadded(capsys.readouterr().out)
    records = json.loads((out / "report.json").read_text())
    assert {r["score"] for r in records} == {0}
    assert [(r["operator"], r["task"], r["depth"], r["number"]) for r in records[:3]] == [
        ("full", "needle", 0, 0),
        ("full", "needle", 1, 0),
        ("full", "multikey", 0, 0),
    ]
    assert all(len(r["text"]) > 0 for r in records)
    for name in ("retrieval", "needle", "multikey"):
        assert min(imread(out / f"{name}.png").shape[:2]) > 200


def test_the_table_of_an_interrupted_run_equals_that_of_an_unbroken_one(folder, tmp_path, monkeypatch, capsys):
    words = arguments(folder, "--tasks", "needle", "multikey", "--batch", "2", "--lengths", "700")
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    calls, answer = [], retrieval.answer_questions

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(retrieval, "answer_questions", interrupted)
        assert main([*words, "--out", str(tmp_path / "broken")]) == 130
    assert not (tmp_path / "broken" / "report.md").exists()
    assert main([*words, "--out", str(tmp_path / "broken")]) == 0
    for name in ("report.md", "report.json"):
        assert (tmp_path / "broken" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert "2 of 8 entries taken from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depths", "1.5"], "--depths has 1.5; expected numbers from 0 to 1"),
        (["--depths", "0.5", "0.5"], "--depths has 0.5 twice"),
        (["--lengths", "70"], "needle: a prompt has at most 70 tokens; expected at least"),
        (["--operators", "truncated"], "truncated:9, which has no state"),
        (["--lengths", "9000"], "text-needle: --text has 800 words, too few for 9000 tokens"),
    ],
)
def test_invalid_arguments_are_refused_before_any_answer(words, message, folder, capsys, monkeypatch):
    monkeypatch.setattr(retrieval, "write_answers", None)
    assert main(arguments(folder, *words)) == 1
    assert message in capsys.readouterr().err


def test_prompts_that_the_machine_cannot_hold_are_not_built(folder, capsys, monkeypatch):
    monkeypatch.setattr(retrieval, "generate_questions", lambda *_, **__: pytest.fail("prompts were built"))
    assert main(arguments(folder, "--lengths", "700", "1000000000000")) == 1
    assert "6 states of 1000000000000 rows need" in capsys.readouterr().err


def test_text_needle_needs_a_text(folder, capsys):
    assert main(["eval", "retrieval", str(folder / "model"), "--tasks", "text-needle"]) == 1
    assert "--tasks has text-needle, which needs a text; expected --text PATH" in capsys.readouterr().err


def test_questions_do_not_depend_on_how_many_are_asked_for():
    def names(tasks, lengths, depths, count, seed=1):
        found = generate_questions(tiny_tokenizer(), tasks, lengths, depths, count, seed, DIFFICULTIES["small"], {})
        return [q.name for q in found]

    few = names(["needle", "variables"], [1400], [0, 1], 1)
    assert set(few) < set(names(["variables", "needle"], [1500, 1400], [0, 0.5, 1], 3))
    assert not set(few) & set(names(["needle", "variables"], [1400], [0, 1], 1, seed=2))


@pytest.mark.parametrize(("difficulty", "digits"), [("small", 5), ("ruler", 7)])
def test_an_answer_has_at_most_16_tokens_more_than_twice_those_of_the_right_one(difficulty, digits):
    (question,) = generate_questions(tiny_tokenizer(), ["needle"], [1400], [0], 1, 1, DIFFICULTIES[difficulty], {})
    assert question.limit == 16 + 2 * digits  # a digit is a token of this tokenizer


def test_batches_have_one_task_and_length():
    found = generate_questions(tiny_tokenizer(), ["needle", "variables"], [1300, 1400], [0, 1], 2, 1, DIFFICULTIES["small"], {})
    random.Random(0).shuffle(found)
    batches = split_into_batches(found, 3)
    assert sorted(map(len, batches)) == [1, 1, 1, 1, 3, 3, 3, 3]
    assert all(len({(q.task, q.length) for q in batch}) == 1 for batch in batches)


def test_differences_are_paired_by_question():
    def results(operator, size, texts):
        return [RetrievalResult(operator, size, "needle", 64, d, 0, ["12345"], text) for d, text in texts]

    (condition,) = parse_conditions(["tova"], [8])
    full = results("full", None, [(0.0, "12345"), (1.0, " is 12345"), (0.5, "54321")])
    tova = results(condition.operator, 8, [(0.5, "none"), (0.0, "1 12345"), (1.0, "12345.")])  # right where full is
    found = report([*full, *tova])
    assert found.tables[0].rows == [["full", "67%", "67%"], ["tova:8", "67%", "67%"]]
    assert found.tables[1].rows == [["tova:8", "+0", "+0"]]
    assert found.figures["needle.png"].panels["tova:8"].tolist() == [[1, 0, 1]]
    assert "rows H holds" not in found.tables[0].note
    large = report([*full, *results("window", 64, [(0.0, "12345"), (1.0, ""), (0.5, "")])]).tables[0].note
    assert large.endswith("With 64 rows H holds the whole prompt, so no row is evicted before the answer.")
    worse = results(condition.operator, 8, [(0.5, ""), (0.0, "1 12345"), (1.0, "none")])
    assert report([*full, *worse]).tables[1].rows == [["tova:8", "-33 ± 33", "-33 ± 33"]]
    assert found.figures["retrieval.png"].horizontal_lines == {"full": pytest.approx(2 / 3)}
