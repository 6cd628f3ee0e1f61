"""Right answers count, lengths are those of the answers, differences are paired; runs resume with the same table."""

import json

import pytest
from matplotlib.image import imread
from support.tables import unpadded
from support.tiny_tokenizer import chat_cell

import msrnn
from msrnn.cli.main import main
from msrnn.eval import reasoning
from msrnn.eval.answers import Answer, split_into_batches
from msrnn.eval.reasoning import file_questions, generate_questions
from msrnn.eval.reasoning_report import ReasoningResult, report

GSM8K = [{"question": f"How much is {i} + {i}?", "answer": f"{i} + {i} = {2 * i}.\n#### {2 * i}"} for i in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reasoning")
    chat_cell().save(path / "model")
    (path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, GSM8K)))
    return path


def arguments(folder, *more):
    short = [
        "--tasks",
        "arithmetic",
        "lists",
        "--steps",
        "1",
        "2",
        "--shots",
        "1",
        "--examples",
        "3",
        "--max-new-tokens",
        "12",
        "--batch",
        "2",
    ]
    return ["eval", "reasoning", str(folder / "model"), *short, "--operators", "tova", "--sizes", "9", *more]


def test_a_model_that_solves_the_problems_is_right(folder, monkeypatch, capsys):
    right = {q.prompt: q.answer for q in generate_questions(["arithmetic", "lists"], [1, 2], 3, 1, 1)}
    right |= {q.prompt: q.answer for q in file_questions(folder / "gsm8k.jsonl", 3, 1)}

    def solved(cell, tokenizer, prompts, reduction, limits, stop):
        assert (limits, stop) == ([12] * len(prompts), "\n\n")
        return [Answer(f"first. #### {right[prompt]}", 4, True) for prompt in prompts]

    monkeypatch.setattr(reasoning, "write_answers", solved)
    assert main(arguments(folder, "--data", str(folder / "gsm8k.jsonl"))) == 0
    out = unpadded(capsys.readouterr().out)
    assert "| operator | arithmetic, 1 | arithmetic, 2 | lists, 1 | lists, 2 | gsm8k | all |" in out
    assert out.count("| tova:9 |" + " 100 |" * 6) == 2  # right, and ended
    assert out.count("| tova:9 |" + " +0 |" * 5 + " +0 ± 0 |") == 2  # six equal differences have an error
    assert out.count("| full |" + " 4 |" * 6) == 1


def copied(prompt):
    """Return the numbers that the last question of a prompt names, counted down or copied."""
    question = prompt.rpartition("Question: ")[2].partition("\nAnswer:")[0]
    if question.startswith("Repeat"):
        return question.partition("#### ")[2]
    return ", ".join(map(str, range(int(question.split()[3]), -1, -1)))


def test_a_model_that_reads_the_last_question_is_right(folder, monkeypatch, capsys):
    def write(cell, tokenizer, prompts, reduction, limits, stop):
        return [Answer(f" #### {copied(prompt)}", 4, True) for prompt in prompts]

    monkeypatch.setattr(reasoning, "write_answers", write)
    assert main(arguments(folder, "--tasks", "count", "copy")) == 0
    out = unpadded(capsys.readouterr().out)
    assert "| operator | count, 1 | count, 2 | copy, 1 | copy, 2 | all |" in out
    assert out.count("| tova:9 |" + " 100 |" * 5) == 2


def test_a_model_that_copies_a_solved_problem_is_wrong():
    for q in generate_questions(["arithmetic", "lists", "count", "copy"], [1, 2, 4], 8, 4, 1):
        *solved, question = q.prompt.split("\n\n")
        assert question.partition("\nAnswer:")[0] not in [problem.partition("\nAnswer:")[0] for problem in solved]
    with pytest.raises(msrnn.Error, match="--shots is 400, which are all problems that count has in 2 steps; expected fewer"):
        generate_questions(["count"], [2], 1, 400, 1)


def test_a_random_model_is_wrong_and_writes_up_to_the_limit(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(folder, "--tasks", "lists", "--out", str(out))) == 0
    printed = unpadded(capsys.readouterr().out)
    assert "| tova:9 | 0 | 0 | 0 |" in printed
    assert "| tova:9 | 12 | 12 | 12 |" in printed
    records = json.loads((out / "report.json").read_text())
    assert {(r["is_right"], r["tokens"], r["ended"]) for r in records} == {(False, 12, False)}
    assert [(r["operator"], r["steps"], r["number"]) for r in records[:4]] == [
        ("full", 1, 0),
        ("full", 1, 1),
        ("full", 1, 2),
        ("full", 2, 0),
    ]
    for name in ("accuracy", "length"):
        assert min(imread(out / f"reasoning-{name}.png").shape[:2]) > 200
    assert main(arguments(folder, "--tasks", "count", "copy")) == 0
    assert "| tova:9 | 0 | 0 | 0 | 0 | 0 |" in unpadded(capsys.readouterr().out)


def test_the_table_of_an_interrupted_run_equals_that_of_an_unbroken_one(folder, tmp_path, monkeypatch, capsys):
    words = arguments(folder, "--tasks", "arithmetic")
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    calls, answer = [], reasoning.answer_questions

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return answer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(reasoning, "answer_questions", interrupted)
        assert main([*words, "--out", str(tmp_path / "broken")]) == 130
    assert main([*words, "--out", str(tmp_path / "broken")]) == 0
    for name in ("report.md", "report.json"):
        assert (tmp_path / "broken" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert "5 of 12 entries taken from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "2", "2"], "--steps has 2 twice"),
        (["--tasks"], "--tasks is empty and --data is not given"),
        (["--operators", "truncated"], "truncated:9, which has no state"),
        (["--data", "FOLDER/gsm8k.jsonl", "--shots", "7"], "gsm8k.jsonl has 7 problems; expected more than --shots, 7"),
        (["--data", "FOLDER/none.jsonl"], "none.jsonl"),
    ],
)
def test_invalid_arguments_are_refused_before_any_answer(words, message, folder, capsys, monkeypatch):
    monkeypatch.setattr(reasoning, "write_answers", None)
    assert main(arguments(folder, *(word.replace("FOLDER", str(folder)) for word in words))) == 1
    assert message in capsys.readouterr().err


def test_the_first_problems_of_a_file_are_the_solved_ones(folder):
    found = file_questions(folder / "gsm8k.jsonl", 3, 2)
    assert [(q.task, q.steps, q.number, q.answer) for q in found] == [("gsm8k", None, i, str(2 * (i + 2))) for i in range(3)]
    assert found[0].prompt.startswith(
        "Question: How much is 0 + 0?\nAnswer: 0 + 0 = 0.\n#### 0\n\nQuestion: How much is 1 + 1?"
    )
    assert found[0].prompt.endswith("#### 2\n\nQuestion: How much is 2 + 2?\nAnswer:")
    assert len(file_questions(folder / "gsm8k.jsonl", 30, 2)) == 5


def test_questions_do_not_depend_on_how_many_are_asked_for():
    few = [q.name for q in generate_questions(["lists"], [3], 2, 2, 5)]
    assert set(few) < {q.name for q in generate_questions(["arithmetic", "lists"], [2, 3], 4, 2, 5)}
    assert all(
        len({q.steps for q in batch}) == 1 for batch in split_into_batches(generate_questions(["lists"], [3, 4], 3, 1, 5), 2)
    )


def test_differences_are_paired_by_question():
    def results(operator, size, found, tokens):
        rows = zip((0, 1, 2), found, tokens, strict=True)
        return [ReasoningResult(operator, size, "lists", 2, n, "a, b", f, "", t, t < 9) for n, f, t in rows]

    full = results("full", None, ["a, b", "b, a", "a,b"], [4, 6, 8])
    first, second, third = results("tova", 8, ["a, b", None, "a,b"], [5, 7, 9])  # right where full is, one token longer
    right, right_difference, length, length_difference, ended = report([*full, second, first, third], 9).tables
    assert right.rows == [["full", "67", "67"], ["tova:8", "67", "67"]]
    assert right_difference.rows == [["tova:8", "+0", "+0"]]
    assert length.rows == [["full", "6", "6"], ["tova:8", "7", "7"]]
    assert length_difference.rows == [["tova:8", "+1", "+1"]]
    assert ended.rows == [["full", "100", "100"], ["tova:8", "67", "67"]]
    worse = results("tova", 8, [None, "a, b", "b"], [9, 4, 8])
    assert report([*full, *worse], 9).tables[1].rows == [["tova:8", "-33 ± 67", "-33 ± 67"]]
