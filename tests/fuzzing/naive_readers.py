"""Readers of every format that are independent of msrnn and check nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file
from support.gguf_files import NAMES as GGUF_NAMES

Read = tuple[dict[str, Any], dict[str, bytes]]
"""The config fields in the files by msrnn's names (with the prefix ``rope.`` for the rope), and the bytes of each tensor."""

HF_NAMES = {
    "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head",
    "attention_norm": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip
MSRNN_NAMES = [*(f"layers.{n}.{stem}" for n in (0, 1) for stem in list(HF_NAMES)[3:]), "embed", "norm", "head"]
HF_FIELDS = {
    "vocab_size": "vocab_size", "hidden_size": "width", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads", "head_dim": "head_dim", "intermediate_size": "ffn_width", "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "context_length", "tie_word_embeddings": "tied", "sliding_window": "sliding_window",
    "bos_token_id": "bos_token_id", "eos_token_id": "eos_token_ids", "rope_theta": "rope.theta",
}  # fmt: skip
HF_ROPE = {
    "rope_theta": "theta", "factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_length", "attention_factor": "attention_factor", "beta_fast": "beta_fast",
    "beta_slow": "beta_slow", "truncate": "truncate",
}  # fmt: skip
META_NAMES = {
    "embed": "tok_embeddings", "norm": "norm", "head": "output",
    "attention_norm": "attention_norm", "q": "attention.wq", "k": "attention.wk", "v": "attention.wv", "o": "attention.wo",
    "ffn_norm": "ffn_norm", "gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2",
}  # fmt: skip
META_FIELDS = {
    "dim": "width", "n_layers": "n_layers", "n_heads": "n_heads", "n_kv_heads": "n_kv_heads", "head_dim": "head_dim",
    "hidden_dim": "ffn_width", "norm_eps": "norm_eps", "vocab_size": "vocab_size", "rope_theta": "rope.theta",
    "sliding_window": "sliding_window", "max_seq_len": "context_length", "rope_scaling_factor": "rope.factor",
}  # fmt: skip
GGUF_FIELDS = {
    "block_count": "n_layers", "embedding_length": "width", "feed_forward_length": "ffn_width",
    "attention.head_count": "n_heads", "attention.head_count_kv": "n_kv_heads", "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "norm_eps", "context_length": "context_length", "vocab_size": "vocab_size",
    "rope.freq_base": "rope.theta", "attention.sliding_window": "sliding_window", "rope.scaling.factor": "rope.factor",
}  # fmt: skip


def safetensors(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the bytes of each tensor at the offsets of the header, and the metadata."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    return {name: data[start + x["data_offsets"][0] : start + x["data_offsets"][1]] for name, x in header.items()}, metadata


def name_in(table: dict[str, str], name: str, layers: str) -> str:
    """Return the name of a format for an msrnn name without ``.weight``."""
    *layer, part = name.split(".")
    return "".join(f"{layers}.{n}." for n in layer[1:]) + table[part] + ".weight"


def read_own(folder: Path) -> Read:
    """Read the library's own folder."""
    fields = json.loads((folder / "config.json").read_text())
    fields = {name: value for name, value in fields.items() if name not in ("format", "version")}
    rope = fields.pop("rope")
    fields |= {f"rope.{name}": value for name, value in rope.items() if name != "rope_type"}
    return fields, safetensors(folder / "model.safetensors")[0]


def read_hf(folder: Path) -> Read:
    """Read a Hugging Face folder."""
    config = json.loads((folder / "config.json").read_text())
    if (folder / "generation_config.json").exists():
        config |= {k: v for k, v in json.loads((folder / "generation_config.json").read_text()).items() if k == "eos_token_id"}
    fields = {field: config[name] for name, field in HF_FIELDS.items() if config.get(name) is not None}
    for settings in (config.get("rope_parameters"), config.get("rope_scaling")):
        fields |= {f"rope.{HF_ROPE[k]}": v for k, v in (settings or {}).items() if k in HF_ROPE and v is not None}
    if config["model_type"] != "mistral":
        fields.pop("sliding_window", None)
    stored: dict[str, bytes] = {}
    for path in folder.glob("*.safetensors"):
        stored |= safetensors(path)[0]
    for path in folder.glob("*.bin"):
        stored |= {name: raw(x) for name, x in torch.load(path, weights_only=True).items()}
    names = {name: name_in(HF_NAMES, name, "model.layers") for name in MSRNN_NAMES}
    return fields, {f"{name}.weight": stored[hf_name] for name, hf_name in names.items() if hf_name in stored}


def read_meta(folder: Path) -> Read:
    """Read Meta's and Mistral's folders; shards are joined by their shapes alone."""
    config = json.loads((folder / "params.json").read_text())
    fields = {field: config[name] for name, field in META_FIELDS.items() if config.get(name) not in (None, -1)}
    files = sorted(folder.glob("consolidated.*"))
    shards = [load_file(x) if x.suffix == ".safetensors" else torch.load(x, weights_only=True) for x in files]
    tensors = {}
    for name in MSRNN_NAMES:
        stored, part = name_in(META_NAMES, name, "layers"), name.split(".")[-1]
        if stored in shards[0]:
            parts = [shard[stored] for shard in shards]
            axis = 1 if part in ("o", "down") or (part == "embed" and parts[0].shape[1] != config["dim"]) else 0
            x = torch.cat(parts, axis) if parts[0].ndim == 2 else parts[0]
            if part in "qk":
                n = fields["n_heads" if part == "q" else "n_kv_heads"]
                x = rearrange(x, "(n pair half) e -> (n half pair) e", n=n, half=2)
            tensors[f"{name}.weight"] = raw(x)
    return fields, tensors


def raw(x: torch.Tensor) -> bytes:
    """Return the bytes of a tensor."""
    return x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def read_gguf(folder: Path) -> Read:
    """Read a GGUF file with the gguf package."""
    import gguf

    reader = gguf.GGUFReader(folder / "model.gguf")
    stored = {t.name: gguf.quants.dequantize(np.array(t.data), t.tensor_type) for t in reader.tensors}
    keys = {f"llama.{key}": field for key, field in GGUF_FIELDS.items()}
    fields = {field: reader.fields[key].contents() for key, field in keys.items() if key in reader.fields}
    tensors = {}
    for name in MSRNN_NAMES:
        gguf_name = name_in(GGUF_NAMES, name, "blk")
        if gguf_name in stored:
            x, part = stored[gguf_name], name.split(".")[-1]
            if part in "qk":
                n = fields["n_heads" if part == "q" else "n_kv_heads"]
                x = rearrange(x, "(n pair half) e -> (n half pair) e", n=n, half=2)
            tensors[f"{name}.weight"] = np.ascontiguousarray(x).tobytes()
    return fields, tensors


def read_state(folder: Path) -> Read:
    """Read a saved state."""
    tensors, metadata = safetensors(folder / "state.safetensors")
    return {"operators": json.loads(metadata["operators"]), **json.loads(metadata["cell"])}, tensors
