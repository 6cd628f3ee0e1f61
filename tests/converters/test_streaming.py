"""Peak memory of loading and converting, and the files after the process is killed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.memory import CONFIG, gguf_file, hf, measured
from safetensors.torch import load_file

import converters

ROOT = Path(__file__).parents[2]
SIZE = 300e6


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """300 MB of bfloat16 in eight shards with tensors of at most 8 MB; also as a folder of msrnn and as a Q8_0 file."""
    folder = tmp_path_factory.mktemp("big")
    source = hf(folder / "hf", SIZE, vocab_size=4000)
    gguf_file(folder / "q8.gguf", source)
    converters.convert(source, folder / "own")
    return folder


LARGEST_TENSOR = 16e6  # bytes in float32


@pytest.mark.parametrize(
    ("source", "settings"), [("hf", "to='msrnn'"), ("own", "to='hf', dtype=torch.float32"), ("q8.gguf", "to='hf'")]
)
def test_converting_holds_a_few_tensors(source, settings, big, tmp_path, figure):
    before, peak, _ = measured(f"converters.convert({str(big / source)!r}, {str(tmp_path / 'out')!r}, {settings})")
    figure(f"convert {source}, {settings}: {SIZE / 1e6:.0f} MB of parameters, {(peak - before) / 1e6:.0f} at the peak")
    # Resident memory also counts mapped pages of the source, which the system keeps for a while: 46 to 98 MB were measured.
    assert peak - before < SIZE / 2


@pytest.mark.parametrize(
    ("source", "dtype", "times"),
    [
        *(("hf", "None", 1), ("hf", "torch.float32", 2), ("own", "None", 1), ("own", "torch.float16", 1)),
        *(("q8.gguf", "None", 2), ("q8.gguf", "torch.bfloat16", 1)),
    ],
)
def test_loading_holds_the_parameters_once(source, dtype, times, big, figure):
    before, peak, _ = measured(f"cell = converters.load({str(big / source)!r}, dtype={dtype})")
    figure(f"load {source}, dtype={dtype}: {times * SIZE / 1e6:.0f} MB of parameters, {(peak - before) / 1e6:.0f} at the peak")
    assert peak - before < 1.15 * times * SIZE + 4 * LARGEST_TENSOR


@pytest.mark.parametrize(("source", "weights", "share"), [("q8.gguf", "int4", 0.3), ("hf", "int8", 0.51)])
def test_packing_holds_the_packed_weights_and_a_few_tensors(source, weights, share, big, tmp_path, figure):
    before, peak, _ = measured(f"cell = converters.load({str(big / source)!r}, weights={weights!r})")
    figure(
        f"load {source}, weights={weights!r}: {share * SIZE / 1e6:.0f} MB of weights, {(peak - before) / 1e6:.0f} at the peak"
    )
    # Resident memory also counts mapped pages of the source; half of them were measured. Quantisation makes copies of a part.
    assert peak - before < 1.15 * share * SIZE + SIZE / 2 + 4 * LARGEST_TENSOR
    before, peak, _ = measured(f"converters.convert({str(big / source)!r}, {str(tmp_path / 'out')!r}, weights={weights!r})")
    figure(f"convert {source}, weights={weights!r}: {(peak - before) / 1e6:.0f} MB at the peak")
    assert peak - before < SIZE / 2 + 4 * LARGEST_TENSOR
    before, peak, _ = measured(f"converters.convert({str(tmp_path / 'out')!r}, {str(tmp_path / 'hf')!r}, to='hf')")
    figure(f"convert {weights} to hf: {(peak - before) / 1e6:.0f} MB at the peak")
    assert peak - before < SIZE / 2 + 4 * LARGEST_TENSOR


def test_a_large_tensor_is_dequantised_in_chunks(tmp_path, figure):
    """The tensor has 131 MB in float32; the gguf package would make several copies of it."""
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 1}))
    path = gguf_file(tmp_path / "q8.gguf", tmp_path)
    before, peak, _ = measured(f"converters.convert({str(path)!r}, {str(tmp_path / 'out')!r})")
    figure(f"convert a GGUF whose largest tensor has 131 MB: {(peak - before) / 1e6:.0f} at the peak")
    assert peak - before < 2 * 131e6


def test_numpy_and_the_extras_are_not_needed(big, tmp_path):
    """A folder of safetensors without a tokenizer is converted without these imports, which take time and memory."""
    code = "import sys; sys.modules |= dict.fromkeys(('numpy', 'tokenizers', 'gguf', 'transformers')); import converters\n"
    code += f"converters.convert({str(big / 'hf')!r}, {str(tmp_path / 'out')!r})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


CHILDREN = """
import json, os, signal, sys
import torch
import converters
from converters.__main__ import main
from msrnn.storage.lazy_tensors import LazyTensor

def run(job, report):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    events = 0
    def count(frame, event, argument):
        nonlocal events
        events += 1
        if events == job.get("event"):
            os.kill(os.getpid(), signal.SIGKILL)
    tensors, read = 0, LazyTensor.read
    def counted_read(x):
        nonlocal tensors
        tensors += 1
        if tensors == job.get("tensor"):
            os.kill(os.getpid(), getattr(signal, job["signal"]))
        return read(x)
    LazyTensor.read = counted_read
    if "event" in job:
        sys.setprofile(count)
    sys.stdout = open(os.devnull, "w")
    code = main([job["source"], job["target"], "--to", job["to"]])
    sys.setprofile(None)
    os.write(report, json.dumps([code, events, tensors]).encode())

for line in sys.stdin:
    job, (end, report) = json.loads(line), os.pipe()
    child = os.fork()
    if child == 0:
        run(job, report)
        sys.stderr.flush()
        os._exit(0)
    os.close(report)
    os.waitpid(child, 0)
    print(os.read(end, 100).decode() or "null", flush=True)
    os.close(end)
"""


@pytest.fixture(scope="module")
def children():
    """Returns a function that runs ``python -m converters`` in a process and kills it at a given moment.

    The function returns exit status, profiler events and tensors read, or None if the process was killed.
    """
    with subprocess.Popen(
        [sys.executable, "-c", CHILDREN],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:

        def run(**job):
            server.stdin.write(json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in job.items()}) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield run
        server.stdin.close()
        server.wait()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    fields = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    hf(folder / "sharded", 60e3, **fields)
    converters.convert(folder / "sharded", folder / "single", to="hf")
    return folder


def is_complete(folder, reference):
    """Return True if ``folder`` exists; it must then be complete."""
    if not folder.exists():
        return False
    assert sorted(os.listdir(folder)) == sorted(os.listdir(reference))
    found, expected = load_file(folder / "model.safetensors"), load_file(reference / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in ("config.json", "generation_config.json"):
        if (reference / name).exists():
            assert (folder / name).read_text() == (reference / name).read_text()
    return True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
@pytest.mark.parametrize("to", ["msrnn", "hf"])
@pytest.mark.parametrize("source", ["single", "sharded"])
def test_a_killed_run_leaves_no_incomplete_target_and_the_next_run_cleans_up(source, to, small, tmp_path, children, figure):
    job = {"source": small / source, "to": to, "signal": "SIGKILL"}
    code, events, tensors = children(target=tmp_path / "reference", event=-1, **job)
    assert code == 0
    rng = random.Random(f"{source} {to}")
    moments = [{"event": n} for n in rng.sample(range(1, events), 12) + [events - n for n in range(0, 400, 40)]]
    moments += [{"tensor": n} for n in (1, 2, tensors // 2, tensors)]
    left = done = 0
    for moment in moments:
        target = tmp_path / "target"
        ended = children(target=target, **job, **moment)
        finished = is_complete(target, tmp_path / "reference")
        assert finished or ended is None
        left += len(os.listdir(tmp_path)) - 1 - finished
        done += finished
        if not finished:
            assert children(target=target, **job)[0] == 0
            assert is_complete(target, tmp_path / "reference")
        assert sorted(os.listdir(tmp_path)) == ["reference", "target"]
        for path in target.iterdir():
            path.unlink()
        target.rmdir()
    figure(f"killed converting {source} to {to}: {len(moments)} times, {done} after the rename, {left} staging folders removed")
    assert left > 4  # otherwise the kills were too early


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
@pytest.mark.parametrize("tensor", [1, 7])
def test_ctrl_c_leaves_no_target(tensor, small, tmp_path, children):
    ended = children(source=small / "sharded", target=tmp_path / "target", to="hf", signal="SIGINT", tensor=tensor)
    assert ended[0] == 130
    assert os.listdir(tmp_path) == []
