"""Every question has its right answer in its prompt, once and at its depth, and the prompt has the promised length."""

import random
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.task_solvers import solve
from support.tiny_tokenizer import tiny_tokenizer

import msrnn
from msrnn.eval.retrieval import AT_DEPTH, TASKS
from msrnn.eval.tasks.difficulty import DIFFICULTIES, Difficulty
from msrnn.eval.tasks.example import FILLER, count_tokens, string_match
from msrnn.eval.tasks.needles import Sentences
from msrnn.eval.tasks.word_list import WORDS
from msrnn.eval.tasks.words import _zipf_order

TOKENIZER = tiny_tokenizer()
BOOK = "The boat was small. The sea was not; and on the 3rd day, the wind rose again! Was it late? \n" * 90
TEXT = Sentences.of(BOOK)
LONGEST_UNIT = 64
"""Tokens of the tiny tokenizer in one unit of filler: a line with another needle is the longest."""


def generate(task, length, depth, seed, difficulty):
    more = (TEXT,) if task == "text-needle" else ()
    return TASKS[task](TOKENIZER, length, depth, random.Random(seed), difficulty, *more)


difficulties = st.builds(
    Difficulty,
    digits=st.integers(4, 7),
    distractors=st.none() | st.integers(0, 4),
    hops=st.integers(0, 4),
    word_names=st.booleans(),
    common=st.integers(1, 5),
    ratio=st.integers(2, 6),
    frequent=st.integers(1, 3),
)


@settings(max_examples=40)
@given(st.sampled_from(list(TASKS)), st.integers(3000, 4200), st.floats(0, 1), st.integers(0, 99), difficulties)
def test_a_solver_that_reads_the_prompt_answers_every_question(task, length, depth, seed, difficulty):
    example = generate(task, length, depth, seed, difficulty)
    assert sorted(solve(example.prompt)) == sorted(example.answers)
    assert string_match(" ".join(solve(example.prompt)), example.answers) == 1
    assert length - LONGEST_UNIT * (task == "multikey") - 40 < count_tokens(TOKENIZER, example.prompt) <= length
    assert generate(task, length, depth, seed, difficulty) == example
    assert generate(task, length, depth, seed + 1, difficulty) != example


@pytest.mark.parametrize("difficulty", DIFFICULTIES.values(), ids=DIFFICULTIES)
@pytest.mark.parametrize("task", AT_DEPTH)
@pytest.mark.parametrize("depth", [0, 0.3, 1])
def test_the_needle_occurs_once_and_at_its_depth(task, depth, difficulty):
    example = generate(task, 2500, depth, 7, difficulty)
    (answer,), body = example.answers, example.prompt.split("\n\n")[1]
    assert len(re.findall(answer, example.prompt)) == 1
    before, after = re.split(rf"One of the special magic numbers for \S+ is: {answer}\.", body)
    others = re.compile(r"One of the special magic numbers for \S+ is: (\d+)\.")
    if difficulty.distractors is not None:
        before, after = others.sub("", before), others.sub("", after)
    unit = 130 if task == "text-needle" else 70  # characters of a sentence of the book, and of a line
    assert abs(len(before) - depth * (len(before) + len(after))) <= unit
    found = others.findall(example.prompt)
    assert len(set(found)) == len(found)
    distractors = difficulty.distractors if task == "multikey" else 0
    assert len(found) == 1 + distractors if distractors is not None else len(found) > 20


def test_a_prompt_ends_where_the_answer_begins():
    for task in TASKS:
        example = generate(task, 3000, 0.5, 1, DIFFICULTIES["small"])
        assert re.search(r"(is|are|are:|is:)$", example.prompt)
        assert not any(answer in example.prompt[-40:] for answer in example.answers)


def test_filler_is_that_of_the_pass_key_task():
    example = generate("needle", 900, 1, 1, DIFFICULTIES["small"])
    assert example.prompt.split("\n\n")[1].startswith(" ".join(FILLER * 2))


def test_a_part_of_the_text_is_unchanged():
    example = generate("text-needle", 900, 0.5, 3, DIFFICULTIES["small"])
    body = re.sub(r"One of the special magic numbers for \S+ is: \d+\. ", "", example.prompt.split("\n\n")[1])
    assert body in " ".join(BOOK.split())
    assert body.startswith(("The boat", "The sea", "Was it"))


def test_no_word_is_a_part_of_another_one():
    assert len(set(WORDS)) == len(WORDS) > 250
    assert not [(a, b) for a in WORDS for b in WORDS if a != b and a in b]


def test_long_lists_repeat_their_words_and_keep_the_ratio():
    difficulty = DIFFICULTIES["small"]
    words = re.findall(
        r"\d+\. (\w+)", generate("common-words", 12000, 0, 1, difficulty).prompt.split("\n\n\n")[1].split("\n\n")[1]
    )
    counts = sorted(words.count(word) for word in set(words))
    assert counts[0] > 1
    assert counts[-difficulty.common :] == [difficulty.ratio * counts[0]] * difficulty.common
    assert set(counts[: -difficulty.common]) == {counts[0]}


@pytest.mark.parametrize("length", [1, 4, 20, 60])
@pytest.mark.parametrize("task", TASKS)
def test_a_short_length_is_refused(task, length):
    with pytest.raises(msrnn.Error, match=f"a prompt has at most {length} tokens; expected at least"):
        generate(task, length, 0.5, 1, DIFFICULTIES["ruler"])


def test_each_coded_word_is_that_of_dhondt():
    counts = dict.fromkeys("abcdef", 0)
    for word in _zipf_order([*counts], 150):
        assert word == max(counts, key=lambda code: Fraction(1, ("abcdef".index(code) + 1) ** 2) / (counts[code] + 1))
        counts[word] += 1


def test_a_short_text_is_refused():
    text = Sentences.of("The sea was not small. It was late.")
    with pytest.raises(msrnn.Error, match="--text has 8 words, too few for 900 tokens"):
        TASKS["text-needle"](TOKENIZER, 900, 0.5, random.Random(1), DIFFICULTIES["small"], text)
    with pytest.raises(msrnn.Error, match="--text has 1 word, too few for 900 tokens"):
        TASKS["text-needle"](TOKENIZER, 900, 0.5, random.Random(1), DIFFICULTIES["small"], Sentences.of("Late."))


def test_string_match_counts_the_answers_in_any_order_and_case():
    assert string_match("it is BELL, then apple.", ["apple", "bell", "comet"]) == pytest.approx(2 / 3)
    assert string_match("", ["apple"]) == 0
