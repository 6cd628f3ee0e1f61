"""The speculation controller with simulated times: rejected drafts cost little, accepted drafts are used."""

import random

import pytest

from msrnn.decoding.speculation_controller import INITIAL_BUDGET, MAX_OVERHEAD, SpeculationController


def run(tokens, cost, match_length, gain, noise=0.0, seed=0):
    """Simulate decoding; return its seconds and the number of forward passes with drafts.

    A plain forward pass takes 1 second, one with drafts ``cost`` seconds. ``match_length`` and ``gain`` are functions of the
    number of tokens generated so far.
    """
    controller, rng, generated, spent, speculative = SpeculationController(), random.Random(seed), 0, 0.0, 0
    while generated < tokens:
        lengths = [match_length(generated)]
        if controller.should_speculate(lengths):
            seconds, accepted = cost * (1 + noise * rng.random()), gain(generated)
            controller.record_speculative(seconds, lengths, [accepted])
            speculative += 1
        else:
            seconds, accepted = 1 + noise * rng.random(), 0
            controller.record_plain(seconds)
        spent += seconds
        generated += 1 + accepted
    return spent, speculative


@pytest.mark.parametrize("match_length", [0, 1, 2, 3, None])
@pytest.mark.parametrize("cost", [1.05, 1.3, 2.0, 2.9])
def test_drafts_that_are_always_rejected_cost_little(cost, match_length):
    for tokens in (128, 1000):
        spent, speculative = run(tokens, cost, lambda _: match_length, lambda _: 0)
        assert spent <= tokens * (1 + MAX_OVERHEAD) + INITIAL_BUDGET + max(0, cost - 2)  # a single delay is not counted
        assert speculative == 0 if match_length is None else tokens < 1000 or speculative > 3  # it tries again
        assert tokens < 128 or spent <= 1.05 * tokens


@pytest.mark.parametrize("cost", [1.3, 2.0, 3.0])
def test_accepted_drafts_are_used(cost):
    spent, _ = run(300, cost, lambda _: 3, lambda _: 7)
    assert spent < 1.1 * 300 * cost / 8 + 3


def test_the_gain_is_measured_for_each_match_length():
    """Drafts after one matching token are rejected; drafts after three gain six tokens."""
    rng = random.Random(1)
    long = [rng.random() < 0.3 for _ in range(2000)]
    spent, _ = run(1000, 2.0, lambda n: 3 if long[n] else 1, lambda n: 6 if long[n] else 0, noise=0.2)
    passes = 1000 / (1 + 0.3 * 6)
    ideal = passes * 1.1 * (0.3 * 2 + 0.7)
    assert spent < 1.15 * ideal


def test_a_wrong_prior_gain_is_corrected():
    """Drafts after three matching tokens are rejected; drafts after one gain six tokens."""
    rng = random.Random(1)
    short = [rng.random() < 0.5 for _ in range(2000)]
    spent, _ = run(1000, 2.0, lambda n: 1 if short[n] else 3, lambda n: 6 if short[n] else 0)
    assert spent < 600  # the best is 375; without drafts it is 1000


def test_speculation_starts_and_stops_within_one_text():
    spent, _ = run(1000, 2.0, lambda _: 2, lambda n: 5 if 300 <= n < 700 else 0, noise=0.1)
    assert spent < 1.1 * (600 * 1.05 + 400 / 6 * 2.1)


@pytest.mark.parametrize("profitable", [0, 50, 1000])
def test_a_profit_earns_no_budget_for_rejected_drafts(profitable):
    """The loss after a long text of accepted drafts is bounded as at the start."""
    controller = SpeculationController()
    controller.record_plain(1.0)
    for _ in range(profitable):
        if controller.should_speculate([3]):
            controller.record_speculative(2.0, [3], [7])
        else:
            controller.record_plain(1.0)
    loss, tokens = 0.0, 200
    for _ in range(tokens):
        if controller.should_speculate([3]):
            controller.record_speculative(2.0, [3], [0])
            loss += 1.0
        else:
            controller.record_plain(1.0)
    assert loss <= tokens * MAX_OVERHEAD + INITIAL_BUDGET + 1


def test_a_single_delay_does_not_stop_speculation():
    """The first forward pass with drafts takes ten times as long, as it does while kernels are compiled."""
    controller, speculative = SpeculationController(), 0
    for n in range(40):
        if controller.should_speculate([2]):
            controller.record_speculative(2.0 if speculative else 20.0, [2], [5])
            speculative += 1
        else:
            controller.record_plain(30.0 if n == 10 else 1.0)
    assert speculative > 36


def test_a_long_plain_text_earns_no_budget_for_many_rejected_drafts():
    tried = []
    for passes in (100, 10_000):
        controller = SpeculationController()
        for _ in range(passes):
            controller.record_plain(1.0)
        tried.append(0)
        while controller.should_speculate([1]):
            controller.record_speculative(2.0, [1], [0])
            tried[-1] += 1
    assert 1 <= tried[0] == tried[1] < 5


def test_a_delayed_pass_counts_at_most_twice_the_average():
    """For plain passes and for passes with drafts; other work may delay one of them by any factor."""
    for delay in (2.0, 1000.0):
        controller = SpeculationController()
        controller.record_plain(1.0)
        controller.record_plain(delay)
        assert controller._plain == 1.25
        controller.record_speculative(1.5, [1], [1])
        controller.record_speculative(1.5 * delay, [1], [1])
        assert controller._speculative == 1.875


def test_the_expected_gain_is_the_mean_over_the_batch():
    controller = SpeculationController()
    controller.record_plain(1.0)
    assert controller.should_speculate([3])
    assert not controller.should_speculate([])
    assert not controller.should_speculate([None, None])
    assert not controller.should_speculate([3, *[None] * 9])


def loss_of_rejected_drafts(controller, tokens, lengths=(3,), gains=(0,), cost=2.0):
    """Return the seconds lost, and the number of forward passes with drafts; a plain forward pass takes 1 second."""
    loss, speculative = 0.0, 0
    for _ in range(tokens):
        if controller.should_speculate(lengths):
            controller.record_speculative(cost, lengths, gains)
            loss += cost - 1 - sum(gains) / len(gains)
            speculative += 1
        else:
            controller.record_plain(1.0)
    return loss, speculative


def test_a_long_text_without_drafts_earns_a_bounded_budget():
    controller = SpeculationController()
    for _ in range(10_000):
        controller.record_plain(1.0)
    loss, _ = loss_of_rejected_drafts(controller, 200)
    assert loss <= 200 * MAX_OVERHEAD + 2 * INITIAL_BUDGET + 2


def test_the_profit_is_the_mean_over_the_batch():
    """One of ten sequences gains a token in each forward pass; this does not pay for the forward pass of all."""
    loss, _ = loss_of_rejected_drafts(SpeculationController(), 400, [3] * 10, [1, *[0] * 9])
    assert loss <= 400 * MAX_OVERHEAD + INITIAL_BUDGET + 1


def test_drafts_within_the_allowed_overhead_are_read_in_every_pass():
    _, speculative = loss_of_rejected_drafts(SpeculationController(), 200, cost=1 + MAX_OVERHEAD)
    assert speculative > 180
