"""Tiny models in every format that converters read, written from Hugging Face's tensor names and ``config.json``."""

import json

import gguf
import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from support.transformers_reference import save_folder, tiny_reference

from converters.formats.hf_families.family import NAMES
from converters.formats.hf_families.llama import EARLY_YI_NORMS

FAMILIES = {
    "mha": ("llama", {"num_key_value_heads": 4}),
    "gqa": ("llama", {}),
    "mqa": ("llama", {"num_key_value_heads": 1}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 5, "head_dim": 8}),
    "yi": ("llama", {"num_key_value_heads": 1}),
    "early yi": ("llama", {}),
}
THETA = 500.0
META_NAMES = {
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
}  # fmt: skip


def make_checkpoint(family, folder):
    """Save a model of transformers in ``folder``; return the model, its tensors and the fields of its config.json."""
    kind, settings = FAMILIES[family]
    model = tiny_reference(
        kind, dtype=torch.float32, rope_parameters={"rope_type": "default", "rope_theta": THETA}, vocab_size=60, **settings
    )
    save_folder(model, folder)
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    if family == "early yi":
        names = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
        for old, new in names.items():
            state = {name.replace(old, new): x for name, x in state.items()}
    if "yi" in family:
        config |= {"model_type": "Yi", "architectures": ["YiForCausalLM"]}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
    return model, state, config


def interleave(w, heads):
    """Reorder the rows of q or k from half-split pairs to interleaved pairs, the inverse of ``half_split``."""
    return rearrange(w, "(n half pair) e -> (n pair half) e", n=heads, half=2)


def to_meta(state, config):
    """Return the tensors with Meta's and Mistral's names and row order."""
    tensors = {}
    for name, x in state.items():
        for theirs, ours in META_NAMES.items():
            name = name.replace(theirs, ours)
        if name.endswith("wq.weight"):
            x = interleave(x, config["num_attention_heads"])
        if name.endswith("wk.weight"):
            x = interleave(x, config["num_key_value_heads"])
        tensors[name] = x.clone()
    return tensors


def split_model_parallel(tensors, n, embedding_axis):
    """Return one dict per device, split as in Meta's model-parallel layers."""

    def part(name, x, i):
        if x.ndim == 1:
            return x.clone()
        axis = embedding_axis if "tok_embeddings" in name else 1 if name.endswith(("wo.weight", "w2.weight")) else 0
        return x.chunk(n, axis)[i].clone()

    return [{name: part(name, x, i) for name, x in tensors.items()} for i in range(n)]


def meta_params(config, **more):
    """Return the fields of Meta's params.json."""
    params = {"dim": config["hidden_size"], "n_heads": config["num_attention_heads"], "n_layers": config["num_hidden_layers"]}
    params |= {"n_kv_heads": config["num_key_value_heads"], "multiple_of": 8, "norm_eps": 1e-5, "vocab_size": -1}
    return params | {"rope_theta": THETA, "max_seq_len": 64} | more


def mistral_params(config, **more):
    """Return the fields of Mistral's params.json."""
    params = {k: v for k, v in meta_params(config).items() if k != "multiple_of"} | {"vocab_size": config["vocab_size"]}
    return (
        params | {"hidden_dim": config["intermediate_size"], "head_dim": 8, "sliding_window": config["sliding_window"]} | more
    )


def write_folder(path, files):
    """Write a folder of JSON, safetensors and PyTorch files; return its path."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name.endswith(".json"):
            (path / name).write_text(json.dumps(content))
        elif name.endswith(".safetensors"):
            save_file(content, path / name)
        else:
            torch.save(content, path / name)
    return path


def write_meta(path, tiny, shards=None, **more):
    """Write Meta's folder of tensors and config.json; a field with the value ``...`` is left out."""
    tensors, config = tiny
    params = {k: v for k, v in meta_params(config, **more).items() if v is not ...}
    return write_folder(path, {"params.json": params, **pth_files(shards or [tensors])})


def sharded(state, name, suffix):
    """Return two shards and their index."""
    names = sorted(state)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = {f"{name}-0000{i}-of-00002{suffix}": {n: state[n] for n in half} for i, half in enumerate(halves, 1)}
    index = {"metadata": {}, "weight_map": {n: file for file, shard in files.items() for n in shard}}
    return files | {f"{name}{suffix}.index.json": index}


def legacy_bin(path, state, config):
    """Write a folder with a PyTorch file of the format before 1.6; return its path."""
    write_folder(path, {"config.json": config})
    torch.save(state, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return path


def gguf_file(path, state, config):
    """Write a GGUF file with the gguf package and its name map; return the path of the file."""
    path.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path / "x.gguf", "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(64)
    writer.add_rope_freq_base(THETA)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, x in state.items():
        name = name.replace("ln1", "input_layernorm").replace("ln2", "post_attention_layernorm")
        if "q_proj" in name or "k_proj" in name:
            x = interleave(x, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(table.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(x.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path / "x.gguf"


def to_msrnn(state, early_yi):
    """Return the tensors with msrnn's names; the name tables have a test of their own."""
    names = {**NAMES.layer, **(EARLY_YI_NORMS if early_yi else {}), **NAMES.outer}
    tensors = {}
    for name, x in state.items():
        for hf_name, msrnn_name in names.items():
            name = name.replace(f"{hf_name}.weight", f"{msrnn_name}.weight")
        tensors[name.replace("model.layers", "layers")] = x
    return tensors


def pth_files(shards):
    return {f"consolidated.{n:02}.pth": shard for n, shard in enumerate(shards)}


SOURCES = {
    "sharded safetensors": lambda p, m, s, c: write_folder(p, {"config.json": c, **sharded(s, "model", ".safetensors")}),
    "bin": lambda p, m, s, c: write_folder(p, {"config.json": c, "pytorch_model.bin": s}),
    "sharded bin": lambda p, m, s, c: write_folder(p, {"config.json": c, **sharded(s, "pytorch_model", ".bin")}),
    "legacy bin": lambda p, m, s, c: legacy_bin(p, s, c),
    "live": lambda p, m, s, c: m,
    "pair, dict": lambda p, m, s, c: (s, c),
    "pair, config": lambda p, m, s, c: (s, type(m.config)(**c)) if c["model_type"] != "Yi" else (s, c),
    "gguf": lambda p, m, s, c: gguf_file(p, s, c),
    "mistral": lambda p, m, s, c: write_folder(
        p, {"params.json": mistral_params(c), "consolidated.safetensors": to_meta(s, c)}
    ),
    "mistral, sharded": lambda p, m, s, c: write_folder(
        p, {"params.json": mistral_params(c), **sharded(to_meta(s, c), "consolidated", ".safetensors")}
    ),
    "mistral, pth": lambda p, m, s, c: write_folder(p, {"params.json": mistral_params(c), **pth_files([to_meta(s, c)])}),
    "meta": lambda p, m, s, c: write_folder(p, {"params.json": meta_params(c), **pth_files([to_meta(s, c)])}),
    "meta, safetensors": lambda p, m, s, c: write_folder(
        p, {"params.json": meta_params(c), "consolidated.safetensors": to_meta(s, c)}
    ),
    "meta, 2 shards": lambda p, m, s, c: write_folder(
        p, {"params.json": meta_params(c), **pth_files(split_model_parallel(to_meta(s, c), 2, 1))}
    ),
    "meta, 4 shards, by vocabulary": lambda p, m, s, c: write_folder(
        p, {"params.json": meta_params(c), **pth_files(split_model_parallel(to_meta(s, c), 4, 0))}
    ),
}
"""Function of (path, model, tensors, config.json) that makes a source, by the name of its format."""


def exists(source, family):
    """Return True if models of the family exist in the format."""
    if "mistral" in source:
        return family == "mistral"
    if "meta" in source:
        return family not in ("mistral", "early yi", "yi") and (source, family) != ("meta, 4 shards, by vocabulary", "mqa")
    return source != "live" or "yi" not in family  # transformers has no Yi


PAIRS = [(source, family) for source in SOURCES for family in FAMILIES if exists(source, family)]
