"""The watch, on a clock of its own: what never comes true costs a small share, what does is taken."""

import random

import pytest

from msrnn.decoding.speculation_controller import CREDIT, SHARE, Watch


def run(tokens, cost, context, gain, noise=0.0, seed=0):
    """Write so many tokens; a plain pass takes 1, one with guesses ``cost``: seconds spent, and passes with guesses.
    ``context`` and ``gain``: of the guess at each token, functions of how many are written."""
    watch, chance, written, spent, guesses = Watch(), random.Random(seed), 0, 0.0, 0
    while written < tokens:
        found = [context(written)]
        if watch.pays(found):
            seconds, more = cost * (1 + noise * chance.random()), gain(written)
            watch.guessed(seconds, found, [more])
            guesses += 1
        else:
            seconds, more = 1 + noise * chance.random(), 0
            watch.plain(seconds)
        spent += seconds
        written += 1 + more
    return spent, guesses


@pytest.mark.parametrize("context", [0, 1, 2, 3, None])
@pytest.mark.parametrize("cost", [1.05, 1.3, 2.0, 2.9])
def test_what_never_comes_true_costs_little(cost, context):
    for tokens in (128, 1000):
        spent, guesses = run(tokens, cost, lambda _: context, lambda _: 0)
        assert spent <= tokens * (1 + SHARE) + CREDIT + max(0, cost - 2)  # being held up once is not counted
        assert guesses == 0 if context is None else tokens < 1000 or guesses > 3  # it goes on trying
        assert tokens < 128 or spent <= 1.05 * tokens


@pytest.mark.parametrize("cost", [1.3, 2.0, 3.0])
def test_what_comes_true_is_taken(cost):
    spent, _ = run(300, cost, lambda _: 3, lambda _: 7)
    assert spent < 1.1 * 300 * cost / 8 + 3


def test_it_knows_which_guesses_come_true():
    """Guesses of one token of context fail, those of three bring six tokens."""
    long = random.Random(1)
    kinds = [long.random() < 0.3 for _ in range(2000)]
    spent, _ = run(1000, 2.0, lambda n: 3 if kinds[n] else 1, lambda n: 6 if kinds[n] else 0, noise=0.2)
    passes = 1000 / (1 + 0.3 * 6)
    ideal = passes * 1.1 * (0.3 * 2 + 0.7)
    assert spent < 1.15 * ideal


def test_what_it_hoped_it_unlearns():
    """Guesses of three tokens of context fail, those of one bring six tokens."""
    chance = random.Random(1)
    kinds = [chance.random() < 0.5 for _ in range(2000)]
    spent, _ = run(1000, 2.0, lambda n: 1 if kinds[n] else 3, lambda n: 6 if kinds[n] else 0)
    assert spent < 600  # at best 375; without guesses 1000


def test_a_text_that_turns():
    """Half of it comes true, half does not: it is taken up, and dropped again."""
    spent, _ = run(1000, 2.0, lambda _: 2, lambda n: 5 if 300 <= n < 700 else 0, noise=0.1)
    assert spent < 1.1 * (600 * 1.05 + 400 / 6 * 2.1)


def test_being_held_up_once_is_no_reason():
    """The first pass with guesses takes twenty times as long: kernels are made. The others pay."""
    watch, guesses = Watch(), 0
    for n in range(40):
        if watch.pays([2]):
            watch.guessed(2.0 if guesses else 20.0, [2], [5])
            guesses += 1
        else:
            watch.plain(30.0 if n == 10 else 1.0)
    assert guesses > 36


def test_of_a_batch_the_mean_counts():
    watch = Watch()
    watch.plain(1.0)
    assert watch.pays([3])
    assert not watch.pays([])
    assert not watch.pays([None, None])
    assert not watch.pays([3, *[None] * 9])
