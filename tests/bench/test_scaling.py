"""The step in the section ``scaling`` is compared with the bytes that it reads and sends."""

from types import SimpleNamespace

import pytest
from support.benchmarks import DIM, HEADS, LAYERS, SIZE, TOKENS

from msrnn.bench import scaling
from msrnn.bench.sections import measure
from msrnn.bench.settings import STEPS, Bench
from msrnn.bench.step import SUMMED_BYTES


def test_a_step_of_one_process_reads_the_weights_and_h(monkeypatch, bench):
    seconds = {"step": 0.02 * STEPS, "sum": 0.5, "read": 2.0}
    monkeypatch.setattr(Bench, "time", lambda self, contenders, rounds, **_: {name: [seconds[name]] for name in contenders})
    step, text = measure(bench, "scaling")
    nbytes = 4 * sum(x.numel() for x in bench.cell().parameters())  # the embedding is tied, and read once as the LM head
    nbytes += SIZE * LAYERS * HEADS * (2 * DIM * 4 + 8)
    assert step.workload == "step_, tova:8, float32, 1 rank"
    assert (step.value, step.baseline) == pytest.approx((20.0, 1e3 * nbytes / (SUMMED_BYTES / 0.5)))
    assert step.note == "1.1 GB/s of memory on each rank"
    assert (text.workload, text.value) == ("read 32 tokens, tova:8, 1 rank", TOKENS / 2)


def test_latency_and_bandwidth_are_those_of_two_all_reduces():
    """Of messages that take 20 µs, and a second for each GB that three ranks send."""
    cell = SimpleNamespace(config=SimpleNamespace(width=1000), rank_part=SimpleNamespace(ranks=SimpleNamespace(size=3)))
    short, long = (STEPS * (20e-6 + 4 / 3 * 4 * n / 1e9) for n in (1000, scaling.LARGE_MESSAGE))
    device = scaling._device(cell, {"sum": 0.5, "short": short, "long": long})
    assert (device.latency, device.link, device.bandwidth) == pytest.approx((20e-6, 1e9, 2 * SUMMED_BYTES))


def test_packed_weights_are_the_note(bench):
    bench.packed_dtype = bench.dtype
    assert [row.note for row in measure(bench, "scaling")] == ["the model of cost has no packed weights"]
