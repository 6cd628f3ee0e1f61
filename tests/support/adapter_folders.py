"""Edits of the files of an adapter folder."""

import json

from safetensors.torch import load_file, save_file

FIRST_TENSOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def edit_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
