"""Generated problems have right solutions; GSM8K and MATH files are read; answers are found and compared."""

import json
import random
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import msrnn
from msrnn.eval.tasks.long_answers import copy, count
from msrnn.eval.tasks.problem import Problem, few_shot_prompt, find_answer, same_answer
from msrnn.eval.tasks.problem_files import read_problems
from msrnn.eval.tasks.reasoning import arithmetic, lists


def solve_arithmetic(question):
    value, steps = int(re.search(r"Start with (\d+)\.", question)[1]), []
    for verb, digit in re.findall(r"(Add|Subtract) (\d)\.", question):
        value += int(digit) if verb == "Add" else -int(digit)
        steps.append(value)
    return str(value), [str(step) for step in steps]


def solve_lists(question):
    words, steps = re.search(r"The list is ([^.]+)\.", question)[1].split(", "), []
    for sentence in re.findall(r"[^.]+", question)[1:-1]:
        if added := re.search(r"Add (\w+) at the end", sentence):
            words.append(added[1])
        else:
            first = words.pop(0)
            words += [first] if "Move the first" in sentence else []
        steps.append(", ".join(words))
    return ", ".join(words), steps


@settings(max_examples=60)
@given(st.integers(0, 999), st.integers(1, 30))
def test_solutions_are_right_in_every_step(seed, steps):
    problem = arithmetic(random.Random(seed), steps)
    answer, values = solve_arithmetic(problem.question)
    assert (problem.answer, len(values)) == (answer, steps)
    equations = re.findall(r"(Add|Subtract) (\d): (\d+) ([-+]) (\d) = (\d+)\.", problem.solution)
    assert [e[:2] for e in equations] == re.findall(r"(Add|Subtract) (\d)\.", problem.question)
    assert all((e[0] == "Add", e[1]) == (e[3] == "+", e[4]) for e in equations)
    assert [e[5] for e in equations] == values
    assert all(0 <= int(v) <= 99 for v in values)
    assert [e[2] for e in equations[1:]] == values[:-1]
    assert problem.solution.endswith(f". #### {answer}")


@settings(max_examples=60)
@given(st.integers(0, 999), st.integers(1, 30))
def test_lists_are_right_after_every_change(seed, steps):
    problem = lists(random.Random(seed), steps)
    answer, lines = solve_lists(problem.question)
    assert problem.answer == answer == lines[-1]
    changes = problem.question.split(". ")[1:-1]
    assert problem.solution == " ".join(f"{c}: {line}." for c, line in zip(changes, lines, strict=True)) + f" #### {answer}"
    lengths = [len(line.split(", ")) for line in lines]
    assert [len(set(line.split(", "))) for line in lines] == lengths
    assert set(lengths) <= {3, 4, 5}
    assert find_answer(problem.solution) == problem.answer


@settings(max_examples=60)
@given(st.integers(0, 999), st.integers(1, 30))
def test_a_count_ends_at_zero_and_a_copy_is_the_list_of_the_question(seed, steps):
    counted, copied = count(random.Random(seed), steps), copy(random.Random(seed), steps)
    first = int(re.fullmatch(r"Count down from (\d+) to 0\.", counted.question)[1])
    assert steps <= first < steps + 20
    numbers = [int(n) for n in counted.answer.split(", ")]
    assert (numbers[0], numbers[-1], len(numbers)) == (first, 0, first + 1)
    assert {a - b for a, b in pairwise(numbers)} == {1}
    assert re.fullmatch(r"Repeat: #### (.*)\.", copied.question)[1] == copied.answer
    assert re.fullmatch(rf"[1-9]\d\d(, [1-9]\d\d){{{steps - 1}}}", copied.answer)
    for problem in (counted, copied):
        assert problem.solution == f"#### {problem.answer}."
        assert same_answer(find_answer(problem.solution), problem.answer)
        assert not same_answer(find_answer(problem.solution[:-2]), problem.answer)  # the last digit is missing


def test_problems_depend_on_the_seed():
    for make in (arithmetic, lists, count, copy):
        assert make(random.Random(1), 5) == make(random.Random(1), 5) != make(random.Random(2), 5)


def test_a_prompt_has_solved_problems_and_ends_before_the_solution():
    shots = [Problem("1 + 1?", "1 + 1 = 2. #### 2", "2"), Problem("2 + 1?", "2 + 1 = 3. #### 3", "3")]
    solved = "Question: 1 + 1?\nAnswer: 1 + 1 = 2. #### 2\n\nQuestion: 2 + 1?\nAnswer: 2 + 1 = 3. #### 3\n\n"
    assert few_shot_prompt(shots, "3 + 1?") == solved + "Question: 3 + 1?\nAnswer:"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("So it is 3.\n#### 1,234", "1,234"),
        ("#### 5\n#### 6", "5"),
        (r"It is \boxed{1}, or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"It is \boxed{\frac{1}{2", None),
        ("It is 7.", None),
        ("", None),
        ("####", ""),
    ],
)
def test_the_answer_of_a_solution(solution, answer):
    assert find_answer(solution) == answer


@pytest.mark.parametrize(
    ("found", "right", "same"),
    [
        ("1234", "1,234", True),
        ("$1,234.00", "1234", True),
        ("7.", "7", True),
        ("-3", "- 3", True),
        ("1,23", "123", False),
        ("100, 200, 300, 400, 500, 600, 701", "100, 200, 300, 400, 500, 600, 700", False),  # more digits than a float has
        ("1.50", "1.5", True),
        ("71", "7", False),
        ("", "7", False),
        (None, "7", False),
        ("bell, comet", "bell,comet", True),
        ("comet, bell", "bell, comet", False),
        (r"\frac{1}{2}", r"\frac{1}{2}", True),
        ("1/2", "0.5", False),
    ],
)
def test_equal_answers(found, right, same):
    assert same_answer(found, right) == same


def test_files_of_gsm8k_and_math(tmp_path):
    path = tmp_path / "test.jsonl"
    gsm8k = {"question": "How many?", "answer": "One and one are <<1+1=2>>2.\n\nSo 2 boats.\n#### 2"}
    math = {"problem": "How much?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "Level 1", "type": "Algebra"}
    path.write_text(f"{json.dumps(gsm8k)}\n{json.dumps(math)}\n\n")
    one, two = read_problems(path)
    assert one == Problem("How many?", "One and one are 2.\nSo 2 boats.\n#### 2", "2")
    assert two == Problem("How much?", r"It is $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1, is not JSON"),
        ('{"question": "a", "answer": "#### 1"}\n[1]', "line 2, has no question and answer"),
        ('{"question": 1, "answer": "#### 1"}', "line 1, has no question and answer"),
        ('{"question": "a", "answer": "1"}', "line 1, has no answer; expected it after ####"),
        ('{"question": "a", "answer": "####"}', "line 1, has no answer"),
        (r'{"question": "a \ud800", "answer": "#### 1"}', "line 1, has half of a surrogate pair"),
        ("\n\n", "has no problem"),
        ("", "is empty"),
    ],
)
def test_other_files_are_refused(text, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(msrnn.Error, match=message):
        read_problems(tmp_path / "a.jsonl")


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"question": "\xe4"}')
    with pytest.raises(msrnn.Error, match="is not UTF-8"):
        read_problems(tmp_path / "a.jsonl")
