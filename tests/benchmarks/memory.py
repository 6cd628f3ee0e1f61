"""Measure peak resident memory of converting and loading: ``python tests/benchmarks/memory.py FOLDER``.

Synthetic checkpoints of about ``--size`` bytes are written to FOLDER. Each measurement runs in a separate process and reads
VmHWM, which includes the pages of mapped files. The bounds are the largest shard + 1 GB for ``convert``, and 1.15 × the
parameters + 0.5 GB for ``load``.
"""

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    **{"model_type": "llama", "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 4096, "rms_norm_eps": 1e-5},
    **{"num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 2048},
}
MEASURED = """
import resource, sys
from pathlib import Path
import torch, converters, msrnn

def peak():
    lines = Path("/proc/self/status")
    if not lines.is_file():  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(lines.read_text().split("VmHWM:")[1].split()[0]) * 1024

before = peak()
{}
print(before, peak(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def layer_shapes(config):
    E, F = config["hidden_size"], config["intermediate_size"]
    K = E // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"input_layernorm": (E,), "post_attention_layernorm": (E,), "self_attn.q_proj": (E, E), "self_attn.k_proj": (K, E)}
    shapes |= {"self_attn.v_proj": (K, E), "self_attn.o_proj": (E, E)}
    return shapes | {"mlp.gate_proj": (F, E), "mlp.up_proj": (F, E), "mlp.down_proj": (E, F)}


def hf(folder, size, dtype=torch.bfloat16, **fields):
    """Write a Hugging Face folder of about ``size`` bytes in eight shards or more."""
    config = {**CONFIG, **fields}
    shapes, outer = layer_shapes(config), (config["vocab_size"], config["hidden_size"])
    a_layer = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
    n_layers = max(1, int(size - 2 * outer[0] * outer[1] * dtype.itemsize) // a_layer)
    every = {f"model.layers.{n}.{name}.weight": shape for n in range(n_layers) for name, shape in shapes.items()}
    every |= {"model.embed_tokens.weight": outer, "lm_head.weight": outer, "model.norm.weight": outer[1:]}
    folder.mkdir(parents=True)
    shards, tensors, weight_map = 1, {}, {}
    for n, (name, shape) in enumerate(every.items()):
        tensors[name] = torch.rand(shape).to(dtype)
        weight_map[name] = f"model-{shards:05}.safetensors"
        if sum(x.nbytes for x in tensors.values()) > size / 8 or n == len(every) - 1:
            save_file(tensors, folder / weight_map[name], {"format": "pt"})
            shards, tensors = shards + 1, {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": n_layers}))
    return folder


def gguf_file(path, source):
    """Write a GGUF file with the shapes of ``source``, a folder of :func:`hf`: norms in float32, all others in Q8_0."""
    import gguf
    import numpy as np

    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(2048)
    writer.add_vocab_size(config["vocab_size"])
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    outer = {"model.embed_tokens": (config["vocab_size"], config["hidden_size"]), "model.norm": (config["hidden_size"],)}
    outer["lm_head"] = outer["model.embed_tokens"]
    layers = range(config["num_hidden_layers"])
    every = outer | {f"model.layers.{n}.{name}": s for n in layers for name, s in layer_shapes(config).items()}
    for name, shape in every.items():
        gguf_name = table.get_name(f"{name}.weight", try_suffixes=(".weight",))
        if len(shape) == 1:
            writer.add_tensor(gguf_name, np.ones(shape, np.float32))
        else:
            data = np.zeros((shape[0], shape[1] // 32 * 34), np.uint8)
            data.reshape(-1, 34)[:, 2:] = 7
            writer.add_tensor(gguf_name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def measured(action):
    """Run the Python code ``action`` in a separate process; return resident bytes before, VmHWM after, and ru_maxrss."""
    code = MEASURED.format(action)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()[-3:]))


def make(folder, size):
    gguf_file(folder / "q8.gguf", hf(folder / "hf", size))


def main(folder, size):
    folder = Path(folder)
    maker = multiprocessing.get_context("spawn").Process(
        target=make, args=(folder, size)
    )  # a child process, because ru_maxrss would include it
    maker.start()
    maker.join()
    source, q8, own = folder / "hf", folder / "q8.gguf", folder / "own"
    shard = max(path.stat().st_size for path in source.glob("*.safetensors"))
    weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    print(f"torch {torch.__version__}; bfloat16 parameters {weights / 1e9:.2f} GB, largest shard {shard / 1e9:.2f} GB; GB:")
    rows = []
    for to, dtype in (("msrnn", "None"), ("hf", "torch.float32")):
        target = own if to == "msrnn" else folder / "other"
        rows.append(
            (f"convert to {to}, dtype={dtype}", f'converters.convert("{source}", "{target}", to="{to}", dtype={dtype})', None)
        )
    rows.append(("convert GGUF to msrnn", f'converters.convert("{q8}", "{folder / "third"}")', None))
    for name, path, dtype, times in (
        ("load HF, own dtype", source, "None", 1),
        ("load HF, float32", source, "torch.float32", 2),
        ("load msrnn, own dtype", own, "None", 1),
        ("load msrnn, float32", own, "torch.float32", 2),
        ("load GGUF Q8_0, float32", q8, "None", 2),
        ("load GGUF Q8_0, bfloat16", q8, "torch.bfloat16", 1),
    ):
        rows.append((name, f'cell = converters.load("{path}", dtype={dtype})', times))
    for name, action, times in rows:
        before, peak, maxrss = measured(action)
        bound = shard + 1e9 if times is None else 1.15 * times * weights + 0.5e9
        figures = f"before {before / 1e9:.2f}  peak {peak / 1e9:.2f} (getrusage {maxrss / 1e9:.2f})"
        print(f"  {name:34} {figures}  bound {bound / 1e9:.2f}")
        for made in ("other", "third"):
            shutil.rmtree(folder / made, ignore_errors=True)
        assert peak <= bound, name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder for the checkpoints; it needs five times the size on disk")
    parser.add_argument("--size", type=float, default=2e9, help="bytes of bfloat16 parameters")
    main(**vars(parser.parse_args()))
