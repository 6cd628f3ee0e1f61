"""``python tests/benchmarks/memory.py FOLDER``: peak resident memory of converting and loading, against what is promised.

Makes synthetic checkpoints (about as large as asked) in FOLDER, and each measurement in a process of its own: VmHWM, which
counts the pages of mapped files too. Promised: ``convert`` the largest shard + 1 GB; ``load`` 1.15 × the parameters + 0.5 GB.
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

FACTS = {
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


def layer_shapes(facts):
    E, F = facts["hidden_size"], facts["intermediate_size"]
    K = E // facts["num_attention_heads"] * facts["num_key_value_heads"]
    shapes = {"input_layernorm": (E,), "post_attention_layernorm": (E,), "self_attn.q_proj": (E, E), "self_attn.k_proj": (K, E)}
    shapes |= {"self_attn.v_proj": (K, E), "self_attn.o_proj": (E, E)}
    return shapes | {"mlp.gate_proj": (F, E), "mlp.up_proj": (F, E), "mlp.down_proj": (E, F)}


def hf(folder, size, dtype=torch.bfloat16, **facts):
    """A sharded Hugging Face folder of about ``size`` bytes in shards of an eighth."""
    facts = {**FACTS, **facts}
    shapes, outer = layer_shapes(facts), (facts["vocab_size"], facts["hidden_size"])
    a_layer = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
    n_layers = max(1, int(size - 2 * outer[0] * outer[1] * dtype.itemsize) // a_layer)
    every = {f"model.layers.{n}.{name}.weight": shape for n in range(n_layers) for name, shape in shapes.items()}
    every |= {"model.embed_tokens.weight": outer, "lm_head.weight": outer, "model.norm.weight": outer[1:]}
    folder.mkdir(parents=True)
    shards, held, weight_map = 1, {}, {}
    for n, (name, shape) in enumerate(every.items()):
        held[name] = torch.rand(shape).to(dtype)
        weight_map[name] = f"model-{shards:05}.safetensors"
        if sum(x.nbytes for x in held.values()) > size / 8 or n == len(every) - 1:
            save_file(held, folder / weight_map[name], {"format": "pt"})
            shards, held = shards + 1, {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({**facts, "num_hidden_layers": n_layers}))
    return folder


def gguf_file(path, source):
    """The same shapes as ``source``, a folder of :func:`hf`, all Q8_0 but the norms, random bytes."""
    import gguf
    import numpy as np

    facts = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(facts["num_hidden_layers"])
    writer.add_embedding_length(facts["hidden_size"])
    writer.add_feed_forward_length(facts["intermediate_size"])
    writer.add_head_count(facts["num_attention_heads"])
    writer.add_head_count_kv(facts["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(2048)
    writer.add_vocab_size(facts["vocab_size"])
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, facts["num_hidden_layers"])
    outer = {"model.embed_tokens": (facts["vocab_size"], facts["hidden_size"]), "model.norm": (facts["hidden_size"],)}
    outer["lm_head"] = outer["model.embed_tokens"]
    layers = range(facts["num_hidden_layers"])
    every = outer | {f"model.layers.{n}.{name}": s for n in layers for name, s in layer_shapes(facts).items()}
    for name, shape in every.items():
        theirs = table.get_name(f"{name}.weight", try_suffixes=(".weight",))
        if len(shape) == 1:
            writer.add_tensor(theirs, np.ones(shape, np.float32))
        else:
            data = np.zeros((shape[0], shape[1] // 32 * 34), np.uint8)
            data.reshape(-1, 34)[:, 2:] = 7
            writer.add_tensor(theirs, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def measured(action):
    """Bytes: resident before and at the peak of ``action``, python in a process of its own; and what getrusage says."""
    code = MEASURED.format(action)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()[-3:]))


def make(folder, size):
    gguf_file(folder / "q8.gguf", hf(folder / "hf", size))


def main(folder, size):
    folder = Path(folder)
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(folder, size))  # or getrusage would count it
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
        ("load HF, as it is", source, "None", 1),
        ("load HF, float32", source, "torch.float32", 2),
        ("load own, as it is", own, "None", 1),
        ("load own, float32", own, "torch.float32", 2),
        ("load GGUF Q8_0, float32", q8, "None", 2),
        ("load GGUF Q8_0, bfloat16", q8, "torch.bfloat16", 1),
    ):
        rows.append((name, f'cell = converters.load("{path}", dtype={dtype})', times))
    for name, action, times in rows:
        before, peak, said = measured(action)
        bound = shard + 1e9 if times is None else 1.15 * times * weights + 0.5e9
        figures = f"before {before / 1e9:.2f}  peak {peak / 1e9:.2f} (getrusage {said / 1e9:.2f})"
        print(f"  {name:34} {figures}  promised {bound / 1e9:.2f}")
        for made in ("other", "third"):
            shutil.rmtree(folder / made, ignore_errors=True)
        assert peak <= bound, name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where to make the checkpoints; it needs room for five times the size")
    parser.add_argument("--size", type=float, default=2e9, help="bytes of bfloat16 parameters")
    main(**vars(parser.parse_args()))
