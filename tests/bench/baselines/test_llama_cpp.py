"""llama.cpp as a baseline, with a stand-in for llama-cpp-python."""

import json

import pytest
import torch
from support.benchmarks import SIZE, set_times

from msrnn.bench.baselines import llama_cpp
from msrnn.bench.sections import measure
from msrnn.bench.settings import STEPS
from msrnn.startup import DEFAULT_SPIN_COUNT, SPIN_COUNT


def test_llama_cpp_is_measured_in_its_own_process(install_llama_cpp, bench):
    install_llama_cpp()
    (row,) = measure(bench, "llama-cpp")
    assert row.note == ""
    assert row.workload == "step_, tova:8, float32"
    assert row.baseline_name == "llama-cpp-python 0.0, model.gguf"
    assert row.value > 0
    assert row.baseline > 0


def test_it_reads_the_text_and_steps_at_its_end(install_llama_cpp, bench):
    log, ids = install_llama_cpp(), bench.text(SIZE)
    threads = torch.get_num_threads()
    with llama_cpp.stepping(bench, ids, 3) as steps:
        assert json.loads(log.read_text()) == [[256, threads, threads], ids[0].tolist()]
        steps()
        assert json.loads(log.read_text())[1] == [*ids[0].tolist(), int(ids[0, 2])]
        steps()
        assert json.loads(log.read_text())[1] == [*ids[0].tolist(), int(ids[0, 5])]


def test_the_ratio_is_the_time_of_msrnn_by_that_of_llama_cpp(install_llama_cpp, bench, monkeypatch):
    install_llama_cpp()
    set_times(monkeypatch, msrnn=[STEPS * 0.25], llama=[STEPS * 0.5])
    (row,) = measure(bench, "llama-cpp")
    assert (row.value, row.baseline, row.ratio) == (250, 500, 0.5)


@pytest.mark.parametrize(("own", "expected"), [(SPIN_COUNT, DEFAULT_SPIN_COUNT), ("77", "77")])
def test_the_setting_of_the_commands_is_not_that_of_a_baseline(own, expected, install_llama_cpp, bench, monkeypatch):
    log = install_llama_cpp()
    module = log.with_name("llama") / "llama_cpp.py"
    module.write_text(module.read_text().replace("self.settings = [", "self.settings = [os.environ['GOMP_SPINCOUNT'], "))
    monkeypatch.setenv("GOMP_SPINCOUNT", own)
    with llama_cpp.stepping(bench, bench.text(SIZE), 1):
        assert json.loads(log.read_text())[0][0] == expected


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"vocab": 60}, f"llama.cpp: cache and vocabulary have [{SIZE}, 60] entries; expected [{SIZE}, 50]"),
        ({"more": 1}, f"llama.cpp: cache and vocabulary have [{SIZE + 1}, 50] entries; expected [{SIZE}, 50]"),
        ({"vocab": "1 // 0"}, "llama.cpp: ZeroDivisionError: integer division or modulo by zero"),
    ],
)
def test_failure_of_llama_cpp_is_the_note(change, note, install_llama_cpp, bench):
    install_llama_cpp(**change)
    assert [row.note for row in measure(bench, "llama-cpp")] == [note]


def test_missing_settings_are_the_note(install_llama_cpp, bench):
    install_llama_cpp()
    bench.gguf = None
    assert [row.note for row in measure(bench, "llama-cpp")] == ["MODEL is no .gguf file and no --gguf was given"]
    bench.llama_cpp = None
    assert [row.note for row in measure(bench, "llama-cpp")] == ["no --llama-cpp-python was given"]
