"""Published file formats, scores of the benchmark, answers from one state per document. The data are handwritten."""

import json
import math

import pytest
import torch
from support.tables import unpadded
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

import msrnn
from msrnn.cli.main import main
from msrnn.eval.conditions import parse_conditions
from msrnn.eval.questions import Question, f1, read_questions, rouge
from msrnn.eval.understanding import UnderstandingResult, answer_questions, report

CELL, TOKENIZER = chat_cell(), tiny_tokenizer()
STORY = "The boat was small, the sea was not; and on the 3rd day the wind rose again.\n" * 5


def squality():
    """Return data in the format of nyu-mll/SQuALITY@dc08d4f, one object per line."""
    arguments = [
        {
            "question_text": f"What about {what}?",
            "question_number": n,
            "responses": [
                {"worker_id": "6", "uid": "0c", "response_text": f"The {what} is small."},
                {"worker_id": "5", "uid": "71", "response_text": f" It is the {what}, not at all. "},
            ],
        }
        for n, what in enumerate(("boat", "sea"), 1)
    ]
    stories = [
        {"metadata": {"passage_id": i, "uid": "ea", "license": "free"}, "document": STORY, "questions": arguments}
        for i in ("10", "20")
    ]
    return "\n".join(map(json.dumps, stories)) + "\n"


def qasper():
    """Return data in the format of qasper-dev-v0.3.json (allenai/qasper-led-baseline@c982bee, qasper_sample_tiny.json)."""
    kinds = [
        {"unanswerable": True, "extractive_spans": [], "yes_no": None, "free_form_answer": ""},
        {"unanswerable": False, "extractive_spans": [], "yes_no": False, "free_form_answer": ""},
        {"unanswerable": False, "extractive_spans": ["a boat", "the sea"], "yes_no": None, "free_form_answer": ""},
        {"unanswerable": False, "extractive_spans": [], "yes_no": None, "free_form_answer": "By wind."},
        {"unanswerable": False, "extractive_spans": ["oars"], "yes_no": None, "free_form_answer": "Rowing."},
    ]
    evidence = {"evidence": [], "highlighted_evidence": []}
    answers = [{"answer": {**kind, **evidence}, "annotation_id": "3", "worker_id": "w"} for kind in kinds]
    sections = [{"section_name": "Boats", "paragraphs": ["One.", ""]}, {"section_name": None, "paragraphs": ["Two."]}]
    arguments = [{"question": "How does it sail?", "question_id": "75", "answers": answers}]
    return json.dumps({"1909.1": {"title": "Sailing", "abstract": "Short.", "full_text": sections, "qas": arguments}})


def test_squality_as_published(tmp_path):
    (tmp_path / "dev.jsonl").write_text(squality())
    found = read_questions(tmp_path / "dev.jsonl")
    assert [(q.task, q.name, q.number) for q in found] == [("squality", n, i) for n in ("10", "20") for i in (0, 1)]
    assert found[1].document == STORY
    assert found[1].references == ("The sea is small.", " It is the sea, not at all. ")
    assert found[1].prompt_suffix == "\nAnswer the question in a paragraph.\nQuestion: What about sea?\nAnswer:"


def test_qasper_as_published(tmp_path):
    (tmp_path / "dev.json").write_text(qasper())
    (found,) = read_questions(tmp_path / "dev.json")
    assert found.document == "Sailing\nShort.\nBoats\nOne.\nTwo."
    assert found.references == ("Unanswerable", "No", "a boat, the sea", "By wind.", "oars")
    assert found.prompt_suffix.endswith('answer "yes", "no", or "unanswerable".\nQuestion: How does it sail?\nAnswer:')


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "{"),
        ("a.jsonl", "[1]"),
        ("a.jsonl", '{"metadata": {"passage_id": 7}, "document": "", "questions": []}'),
        ("a.jsonl", "\n"),
        ("a.json", "[]"),
        ("a.json", "{}"),
        ("a.json", '{"1": {"title": "x"}}'),
        ("a.json", qasper().replace('"free_form_answer": "By wind."', '"free_form_answer": 7')),
        ("a.txt", "x"),
        ("a.json", "[" * 10000),
    ],
)
def test_other_formats_are_refused(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(
        msrnn.Error,
        match=r"a\.(jsonl?|txt) (is not in the format|has no question|cannot be read)|is empty|expected a .jsonl file",
    ):
        read_questions(tmp_path / name)


def test_f1_by_hand():
    assert f1("The boat, a small one!", ["small boat"]) == pytest.approx(100 * 2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert f1("no", ["Yes", "No."]) == 100
    assert f1("boat boat", ["boat"]) == pytest.approx(100 * 2 / 3)  # one of two
    assert f1("", ["boat"]) == 0
    assert f1("another", ["other"]) == 0  # articles are words, not letters


def test_rouge_takes_the_best_reference_of_each_kind():
    assert rouge("the boat is small", ["the boat is small", "x"]) == pytest.approx(100)
    one = (3 / 4, 2 / 3, 3 / 4)  # of "the boat is big": three words, two pairs of three, three in order
    assert rouge("the boat is small", ["the boat is big"]) == pytest.approx(100 * math.prod(one) ** (1 / 3))
    assert rouge("the boat is small", ["the boat is big", "small is"]) == pytest.approx(100 * math.prod(one) ** (1 / 3))
    other = (1, 2 / 3, 1 / 2)  # four words, two pairs of three, two in order
    assert rouge("is small the boat", ["the boat is small"]) == pytest.approx(100 * math.prod(other) ** (1 / 3))
    assert rouge("walks", ["walk"]) == 0  # no stemming


QUESTIONS = [
    Question("qasper", "p", 0, STORY, "How big?", ("small", "not big")),
    Question("qasper", "p", 1, STORY, "Is the sea small, in the end?", ("No",)),
]


@pytest.mark.parametrize("row", ["full", "tova", "h2o", "truncated"])
def test_answers_from_one_state_equal_those_of_whole_prompts(row):
    (condition,) = parse_conditions([row], [120] if row == "truncated" else [16])
    tails = [TOKENIZER.encode(q.prompt_suffix, add_special_tokens=False).ids for q in QUESTIONS]
    limit = max(map(len, tails)) + 40
    if row == "truncated":
        (condition,) = parse_conditions([row], [limit - 20])
    found = answer_questions(CELL, TOKENIZER, QUESTIONS, condition, limit, 9, None if row == "full" else [[7, 8, 9], [10]])
    room = 20 if row == "truncated" else 40
    for q, tail, got in zip(QUESTIONS, tails, found, strict=True):
        prompt = TOKENIZER.encode(STORY).ids[:room] + tail
        new, _, _ = msrnn.generate(CELL, torch.tensor([prompt]), CELL.initial_state(1, condition.reduction), max_new_tokens=9)
        ids = new[0].tolist()
        ids = ids[: ids.index(2) + 1] if 2 in ids else ids
        assert got.ids == ids
        assert got.text == TOKENIZER.decode(ids).strip()
        assert got.score == f1(got.text, q.references)
        losses, n, own = 0.0, 0, ids if row == "full" else [[7, 8, 9], [10]][q.number]
        for text in q.references:
            reference = TOKENIZER.encode(f" {text}", add_special_tokens=False).ids
            logits, _ = CELL(torch.tensor([prompt + reference]), CELL.initial_state(1, condition.reduction))
            losses -= float(logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(reference)[:, None]).sum())
            n += len(reference)
        assert got.nll == pytest.approx(losses / n)
        logits, _ = CELL(torch.tensor([prompt + own]), CELL.initial_state(1, condition.reduction))
        right = (logits[0, len(prompt) - 1 : -1].argmax(-1) == torch.tensor(own)).double().mean()
        assert got.agreement == pytest.approx(float(right))
        assert got.agreement == 1 or row != "full"


def test_a_question_longer_than_the_prompt_is_refused():
    with pytest.raises(msrnn.Error, match="a prompt has 30 tokens; expected more than"):
        answer_questions(CELL, TOKENIZER, QUESTIONS, parse_conditions(["full"], [])[0], 30, 4)


def test_tables_contain_paired_differences():
    results = [UnderstandingResult("full", None, f"q {i}", [1], "x", 10.0 * i, 1.0, 2.0 + i) for i in range(3)]
    results += [UnderstandingResult("tova", 8, f"q {i}", [1], "x", 5.0, 0.5, 2.5 + i) for i in range(3)]
    score, agreed, nats = report(results, "qasper").tables
    assert score.rows[0] == ["full", "", "10.00 ± 5.77"]
    assert agreed.rows[1] == ["tova", "50.0%", ""]
    assert nats.rows == [["full", "", "3.000"], ["tova", "+0.5000", ""]]


def test_the_command(tmp_path, capsys, monkeypatch):
    CELL.save(tmp_path / "model")
    (tmp_path / "dev.json").write_text(qasper())
    arguments = ["eval", "understanding", str(tmp_path / "model"), "--data", str(tmp_path / "dev.json"), "--operators", "tova"]
    arguments += ["--sizes", "8", "--length", "400", "--max-new-tokens", "4"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "| full | | 100.0% |" in unpadded(shown)
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())) == 2
    prompt = max(len(TOKENIZER.encode(q.document + q.prompt_suffix).ids) for q in read_questions(tmp_path / "dev.json"))
    whole = [*arguments, "--length", "9000", "--operators", "truncated", "--sizes"]
    assert main([*whole, str(prompt - 1)]) == 0
    capsys.readouterr()
    assert main([*whole, str(prompt)]) == 1
    assert f"truncated:{prompt} changes nothing in a prompt of {prompt} tokens; expected a smaller" in capsys.readouterr().err
    monkeypatch.setattr(msrnn.Cell, "forward", lambda *_, **__: pytest.fail("a token was read"))
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == shown
    for more, message in {
        ("--length", "9000", "--sizes", "8000"): "--sizes: tova:8000 changes nothing in a prompt with its answer of",
        ("--length", "30"): "a prompt has 30 tokens; expected more than",
        ("--operators", "truncated"): "a prompt has 8 tokens; expected more than",
        ("--data", "/nowhere.json"): "cannot read /nowhere.json",
        ("--data", "/nowhere.txt"): "expected a .jsonl file of SQuALITY",
    }.items():
        assert main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err
