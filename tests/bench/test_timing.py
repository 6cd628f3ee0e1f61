"""Order and sums of interleaved timing, with a clock that the test advances."""

from functools import partial

import torch

from msrnn.bench import timing


def test_every_second_round_is_reversed(monkeypatch):
    clock, called = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def run(name, seconds):
        called.append(name)
        clock[0] += seconds * len(called)

    contenders = {name: partial(run, name, seconds) for name, seconds in {"a": 1.0, "b": 10.0}.items()}
    spent = timing.seconds(contenders, 3, torch.device("cpu"), lambda: None)
    assert called == ["a", "b", "b", "a", "a", "b"]
    assert spent == {"a": [1.0, 4.0, 5.0], "b": [20.0, 30.0, 60.0]}
