"""GGUF files of tiny cells, written by the gguf package."""

import gguf
import numpy as np

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 24,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 6,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.context_length": 64,
}
"""The metadata of ``tiny_cell()``."""
NAMES = {
    "embed": "token_embd", "norm": "output_norm", "head": "output",
    "attention_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "ffn_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
"""GGUF's names by msrnn's names, written independently of the name table in converters."""


def to_gguf(cell):
    """Return the tensors of a cell with GGUF's names; the rows of q and k are interleaved as in llama.cpp's converter."""
    tensors = {}
    for name, x in cell.state_dict().items():
        *layer, part, _ = name.split(".")
        if part in "qk":
            n = cell.config.n_heads if part == "q" else cell.config.n_kv_heads
            x = x.reshape(n, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        tensors["".join(f"blk.{n}." for n in layer[1:]) + f"{NAMES[part]}.weight"] = x.numpy()
    return tensors


def write(path, metadata, tensors, types=None):
    """Write a GGUF file; return its path. A tensor is float32, or bytes of a quantisation type given in ``types``."""
    writer = gguf.GGUFWriter(None, "llama")
    writer.kv_data[0].clear()
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, x in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(x), raw_dtype=(types or {}).get(name))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
