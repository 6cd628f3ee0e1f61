"""One tiny model in every format that a converter reads: tensors by Hugging Face's names and what its config.json says.

The order of rows in q and k is transformers' own formula (convert_llama_weights_to_hf.py, ``permute``), turned round: a
number's way from Meta's file to Hugging Face's is ``view(heads, D / 2, 2, E).transpose(1, 2)``, so the way back is the
transpose of ``view(heads, 2, D / 2, E)``.
"""

import json

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from support.transformers_reference import saved, tiny_reference

from converters.formats import huggingface

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
NATIVE = {
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
}  # fmt: skip


def made(family, folder):
    """A model of transformers, its tensors by Hugging Face's names, its config.json; ``folder`` is it, in safetensors."""
    kind, facts = FAMILIES[family]
    model = tiny_reference(
        kind, dtype=torch.float32, rope_parameters={"rope_type": "default", "rope_theta": THETA}, vocab_size=60, **facts
    )
    saved(model, folder)
    state, facts = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    if family == "early yi":
        names = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
        for old, new in names.items():
            state = {name.replace(old, new): x for name, x in state.items()}
    if "yi" in family:
        facts |= {"model_type": "Yi", "architectures": ["YiForCausalLM"]}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(facts))
    return model, state, facts


def interleave(w, heads):
    return w.view(heads, 2, w.shape[0] // heads // 2, w.shape[1]).transpose(1, 2).reshape(w.shape)


def native(state, facts):
    """Meta's and Mistral's names and order of rows."""
    tensors = {}
    for name, x in state.items():
        for theirs, ours in NATIVE.items():
            name = name.replace(theirs, ours)
        if name.endswith("wq.weight"):
            x = interleave(x, facts["num_attention_heads"])
        if name.endswith("wk.weight"):
            x = interleave(x, facts["num_key_value_heads"])
        tensors[name] = x.clone()
    return tensors


def cut(tensors, n, embedding_axis):
    """One dict per device, as Meta's model-parallel layers cut them."""

    def part(name, x, i):
        if x.ndim == 1:
            return x.clone()
        axis = embedding_axis if "tok_embeddings" in name else 1 if name.endswith(("wo.weight", "w2.weight")) else 0
        return x.chunk(n, axis)[i].clone()

    return [{name: part(name, x, i) for name, x in tensors.items()} for i in range(n)]


def params(facts, **more):
    """Meta's params.json."""
    said = {"dim": facts["hidden_size"], "n_heads": facts["num_attention_heads"], "n_layers": facts["num_hidden_layers"]}
    said |= {"n_kv_heads": facts["num_key_value_heads"], "multiple_of": 8, "norm_eps": 1e-5, "vocab_size": -1}
    return said | {"rope_theta": THETA, "max_seq_len": 64} | more


def mistral_params(facts, **more):
    said = {k: v for k, v in params(facts).items() if k != "multiple_of"} | {"vocab_size": facts["vocab_size"]}
    return said | {"hidden_dim": facts["intermediate_size"], "head_dim": 8, "sliding_window": facts["sliding_window"]} | more


def folder_of(path, files):
    """A folder of JSON and of PyTorch's files."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name.endswith(".json"):
            (path / name).write_text(json.dumps(content))
        elif name.endswith(".safetensors"):
            save_file(content, path / name)
        else:
            torch.save(content, path / name)
    return path


def sharded(state, name, suffix):
    """Two shards and their index."""
    names = sorted(state)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = {f"{name}-0000{i}-of-00002{suffix}": {n: state[n] for n in half} for i, half in enumerate(halves, 1)}
    index = {"metadata": {}, "weight_map": {n: file for file, held in files.items() for n in held}}
    return files | {f"{name}{suffix}.index.json": index}


def legacy_bin(path, state, facts):
    folder_of(path, {"config.json": facts})
    torch.save(state, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return path


def gguf_file(path, state, facts):
    """By llama.cpp's own writer and its own names."""
    path.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path / "x.gguf", "llama")
    heads, kv_heads = facts["num_attention_heads"], facts["num_key_value_heads"]
    writer.add_block_count(facts["num_hidden_layers"])
    writer.add_embedding_length(facts["hidden_size"])
    writer.add_feed_forward_length(facts["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(facts["head_dim"])
    writer.add_value_length(facts["head_dim"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(64)
    writer.add_rope_freq_base(THETA)
    writer.add_vocab_size(facts["vocab_size"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if facts.get("sliding_window"):
        writer.add_sliding_window(facts["sliding_window"])
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, facts["num_hidden_layers"])
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


def ours(state, early_yi):
    """By the library's own names, which a test of the name tables holds."""
    names = {**huggingface.NAMES.layer, **(huggingface.EARLY_YI_NORMS if early_yi else {}), **huggingface.NAMES.outer}
    tensors = {}
    for name, x in state.items():
        for theirs, own in names.items():
            name = name.replace(f"{theirs}.weight", f"{own}.weight")
        tensors[name.replace("model.layers", "layers")] = x
    return tensors


def pieces(files):
    return {f"consolidated.{n:02}.pth": piece for n, piece in enumerate(files)}


SOURCES = {
    "sharded safetensors": lambda p, m, s, f: folder_of(p, {"config.json": f, **sharded(s, "model", ".safetensors")}),
    "bin": lambda p, m, s, f: folder_of(p, {"config.json": f, "pytorch_model.bin": s}),
    "sharded bin": lambda p, m, s, f: folder_of(p, {"config.json": f, **sharded(s, "pytorch_model", ".bin")}),
    "legacy bin": lambda p, m, s, f: legacy_bin(p, s, f),
    "live": lambda p, m, s, f: m,
    "pair, dict": lambda p, m, s, f: (s, f),
    "pair, config": lambda p, m, s, f: (s, type(m.config)(**f)) if f["model_type"] != "Yi" else (s, f),
    "gguf": lambda p, m, s, f: gguf_file(p, s, f),
    "mistral": lambda p, m, s, f: folder_of(p, {"params.json": mistral_params(f), "consolidated.safetensors": native(s, f)}),
    "mistral, sharded": lambda p, m, s, f: folder_of(
        p, {"params.json": mistral_params(f), **sharded(native(s, f), "consolidated", ".safetensors")}
    ),
    "mistral, pth": lambda p, m, s, f: folder_of(p, {"params.json": mistral_params(f), **pieces([native(s, f)])}),
    "meta": lambda p, m, s, f: folder_of(p, {"params.json": params(f), **pieces([native(s, f)])}),
    "meta, safetensors": lambda p, m, s, f: folder_of(p, {"params.json": params(f), "consolidated.safetensors": native(s, f)}),
    "meta, 2 pieces": lambda p, m, s, f: folder_of(p, {"params.json": params(f), **pieces(cut(native(s, f), 2, 1))}),
    "meta, 4 pieces, by vocabulary": lambda p, m, s, f: folder_of(
        p, {"params.json": params(f), **pieces(cut(native(s, f), 4, 0))}
    ),
}
"""What a source is called -> what makes it: a path, the model, its tensors, its config.json."""


def fits(source, family):
    """Whether there is such a thing."""
    if "mistral" in source:
        return family == "mistral"
    if "meta" in source:
        return family not in ("mistral", "early yi", "yi") and (source, family) != ("meta, 4 pieces, by vocabulary", "mqa")
    return source != "live" or "yi" not in family  # transformers has no Yi


PAIRS = [(source, family) for source in SOURCES for family in FAMILIES if fits(source, family)]
