"""Measure loading of a large model: ``python tests/benchmarks/loading.py FOLDER``.

Synthetic weights with the shapes of Mistral-7B (bfloat16, 14.5 GB, ``--layers`` for less) are written to FOLDER in one format
after the other, as this library writes them, as transformers does (names sorted), and in int4, and removed. Each measurement
runs in a process of its own: seconds until the model is ready, seconds of the first tokens, and resident memory after each (its
part of the mapped file is RssFile). The file is in the file cache of the system as far as the main memory suffices.
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from converters.formats import huggingface
from converters.formats.hf_families.family import NAMES
from msrnn.layers.packed.matrix import PackedMatrix, quantise
from msrnn.models import MISTRAL_7B_V01
from msrnn.models.packing import LazyMatrix, matrix_tensors
from msrnn.models.registry import build_on_meta
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.storage.model_folder import write_model_folder

MEASURED = """
import time
import torch
{imports}

def memory():
    text = open("/proc/self/status").read()
    return ", ".join(f"{{x}} {{int(text.split(x + ':')[1].split()[0]) / 1e6:.2f}} GB" for x in ("RssAnon", "RssFile"))

torch.set_grad_enabled(False)
start = time.perf_counter()
{load}
print(f"  {name:28} ready in {{time.perf_counter() - start:.2f}} s, {{memory()}}", flush=True)
times = []
for n in range(4):
    start = time.perf_counter()
    {step}
    times.append(time.perf_counter() - start)
print(f"{{'':31}}tokens in", *(f"{{x:.2f}}" for x in times), f"s, {{memory()}}", flush=True)
"""
OURS = {
    "imports": "import msrnn, converters",
    "load": "cell = converters.load({!r})\nstate = cell.initial_state(reduction='tova:128')",
    "step": "logits, state = cell.step_(torch.tensor([5]), state)",
}
THEIRS = {
    "imports": "from transformers import AutoModelForCausalLM",
    "load": "model = AutoModelForCausalLM.from_pretrained({!r}, dtype=torch.bfloat16)",
    "step": "model(torch.tensor([[5]]))",
}


def tensors(config):
    """Return lazy tensors of random numbers that repeat every 8 MB."""
    block = (torch.randn(2**22) * 0.02).bfloat16()

    def make(shape):
        size = torch.Size(shape).numel()
        return torch.ones(shape).bfloat16() if len(shape) == 1 else block.repeat(-(-size // len(block)))[:size].view(shape)

    shapes = {name: tuple(x.shape) for name, x in build_on_meta(config).named_parameters()}
    return {name: LazyTensor(shape, torch.bfloat16, lambda shape=shape: make(shape)) for name, shape in shapes.items()}


def packed_tensors(config, lazy):
    """Return lazy tensors of int4 weights: a few quantised rows that repeat."""

    def make(shape, bits):
        few = quantise(torch.randn(32, shape[1]) * 0.02, bits)
        parts = (None if x is None else x.repeat(shape[0] // 32, *(1,) * (x.ndim - 1)) for x in few)
        return PackedMatrix(*parts)

    stems = {name.removesuffix(".weight"): x.shape for name, x in lazy.items() if len(x.shape) == 2}
    bits = {stem: 8 if stem in ("embed", "head") else 4 for stem in stems}
    matrices = {stem: LazyMatrix(shape, bits[stem], partial(make, shape, bits[stem])) for stem, shape in stems.items()}
    return {name: x for name, x in lazy.items() if len(x.shape) == 1} | matrix_tensors(matrices)


def measure(name, folder, parts):
    code = MEASURED.format(name=name, **{key: text.format(str(folder)) for key, text in parts.items()})
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def main(folder, layers, kinds):
    config, folder = replace(MISTRAL_7B_V01, n_layers=layers), Path(folder)
    weights = tensors(config)
    for kind in kinds:
        target = folder / kind
        target.mkdir(parents=True)
        try:
            if kind in ("own", "int4"):
                stored = weights if kind == "own" else packed_tensors(config, weights)
                write_model_folder(target, config.to_dict(), stored, {})
            else:
                by_name = dict(sorted(weights.items(), key=lambda item: NAMES.from_msrnn(item[0])))
                huggingface.write(config, by_name, {}, target)
            print(f"{kind}: {(target / 'model.safetensors').stat().st_size / 1e9:.1f} GB", flush=True)
            for _ in range(2):
                measure(f"{kind}, this library", target, OURS)
            if kind == "hf":
                measure(f"{kind}, transformers", target, THEIRS)
        finally:
            shutil.rmtree(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder for the weights, which are removed")
    parser.add_argument("--kinds", nargs="+", choices=("own", "hf", "int4"), default=["own", "hf", "int4"], help="formats")
    parser.add_argument("--layers", type=int, default=32, help="number of layers; 32 are 14.5 GB")
    main(**vars(parser.parse_args()))
