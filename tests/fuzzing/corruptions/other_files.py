"""Damages of the folder: files that are not part of the checkpoint appear next to those that are."""

import json
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file

from .json_text import UNUSUAL_VALUES
from .registry import SECRET, damage, is_a_source

STRAY = ["README.md", "training_args.bin", "optimizer.pt", "config.json.bak", "tekken.json", "params.json", "tokenizer.model"]
STRAY += ["adapter_notes.txt", "model.safetensors.bak", "pytorch_model.bin", "consolidated.00.pth", "vocab.json", "merges.txt"]
STRAY += [
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.json",
]
STRAY += ["chat_template.jinja", "preprocessor_config.json", "x.gguf", "model.safetensors.index.json"]


@damage("folder")
def adapter(random: Random, path: Path) -> bool:
    """An adapter of peft, complete or in part, valid or not; transformers would add it to the weights."""
    folder, config = path.parent, {"peft_type": "LORA", "base_model_name_or_path": "a/b", "r": 2, "lora_alpha": 4}
    names = random.choice(
        (["adapter_config.json"], ["adapter_model.safetensors"], ["adapter_config.json", "adapter_model.bin"])
    )
    tensors = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 24)}
    for name in names:
        if random.random() < 0.3:
            (folder / name).write_text(random.choice(UNUSUAL_VALUES))
        elif name.endswith(".json"):
            (folder / name).write_text(json.dumps(config))
        elif name.endswith(".bin"):
            torch.save(tensors, folder / name)
        else:
            save_file(tensors, folder / name)
    return is_a_source(folder)


@damage("folder")
def stray_files(random: Random, path: Path) -> bool:
    """Files of other formats and of training runs, with any content; those of the checkpoint are not replaced."""
    for name in random.sample(STRAY, 3):
        stray = path.parent / name
        if stray.exists():
            continue
        valid = path.parent.with_name(SECRET).read_bytes()
        content = [b"", b"{}", random.randbytes(100), random.choice(UNUSUAL_VALUES).encode(), valid]
        stray.write_bytes(random.choice(content))
    return False


@damage("folder")
def stray_folder(random: Random, path: Path) -> bool:
    """A folder of a training run, or a folder or a link with the name of a small file."""
    stray = path.parent / random.choice(("checkpoint-10", "adapter", "tokenizer.json", "additional_chat_templates", "x.gguf"))
    if not stray.exists():
        random.choice((stray.mkdir, lambda: stray.symlink_to(random.choice((".", "nothing", stray.name)))))()
        if stray.is_dir():
            (stray / "config.json").write_text("{}") if not stray.is_symlink() else None
    return False
