"""Our names of the parts of torch.nn's classic layers, to give both the same weights."""

import re

import torch
from torch import Tensor, nn

ENCODER_NAMES = {  # torch.nn's names of a layer's parts, and ours
    "self_attn": "attention",
    "norm1": "attention_residual.norm",
    "linear1": "ffn.up",
    "linear2": "ffn.down",
    "norm2": "ffn_residual.norm",
}
DECODER_NAMES = {  # with the half of our layer that has it
    "self_attn": (0, "attention"),
    "norm1": (0, "attention_residual.norm"),
    "multihead_attn": (1, "attention"),
    "norm2": (1, "attention_residual.norm"),
    "linear1": (1, "ffn.up"),
    "linear2": (1, "ffn.down"),
    "norm3": (1, "ffn_residual.norm"),
}


def parameters_under_our_names(theirs: nn.Module) -> dict[str, Tensor]:
    """The parameters of a ``torch.nn.TransformerEncoder`` or ``TransformerDecoder`` under our names.

    A layer of their decoder is two of ours: what looks at the text, and what looks at the source and thinks.
    """
    names = [
        *((rf"layers\.(\d+)\.{part}\.", lambda m, new=new: f"layers.{m[1]}.{new}.") for part, new in ENCODER_NAMES.items()),
    ]
    if isinstance(theirs, nn.TransformerDecoder):
        names = [
            (rf"layers\.(\d+)\.{part}\.", lambda m, half=half, new=new: f"layers.{2 * int(m[1]) + half}.{new}.")
            for part, (half, new) in DECODER_NAMES.items()
        ]
    found = {}
    for name, x in theirs.state_dict().items():
        pieces = zip("qkv", x.chunk(3), strict=True) if "in_proj_" in name else [("", x)]
        for letter, piece in pieces:
            own = name.replace("in_proj_", f"{letter}.")
            for pattern, new in names:
                own = re.sub(pattern, new, own)
            found[own.replace("out_proj", "o")] = piece
    return found


def randomized(module: nn.Module, seed: int) -> nn.Module:
    """``module`` in float64 and eval mode, its biases and norms no longer zeros and ones, its attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in module.named_parameters():
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            x.data = 1 + 0.2 * noise if "norm" in name and name.endswith("weight") else noise * (0.5 if x.ndim == 1 else 0.4)
    return module.double().eval()
