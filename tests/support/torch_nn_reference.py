"""Parameters of torch.nn's transformer layers under the names of msrnn, so that both have the same weights."""

import re

import torch
from torch import Tensor, nn

ENCODER_NAMES = {  # names in torch.nn and in msrnn
    "self_attn": "attention",
    "norm1": "attention_residual.norm",
    "linear1": "ffn.up",
    "linear2": "ffn.down",
    "norm2": "ffn_residual.norm",
}
DECODER_NAMES = {  # with the index of the msrnn layer, of two per torch.nn layer
    "self_attn": (0, "attention"),
    "norm1": (0, "attention_residual.norm"),
    "multihead_attn": (1, "attention"),
    "norm2": (1, "attention_residual.norm"),
    "linear1": (1, "ffn.up"),
    "linear2": (1, "ffn.down"),
    "norm3": (1, "ffn_residual.norm"),
}


def parameters_under_our_names(reference: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a ``torch.nn.TransformerEncoder`` or ``TransformerDecoder`` under the names of msrnn.

    One decoder layer of torch.nn is two layers of msrnn: self-attention without an MLP, and cross-attention with the MLP.
    """
    names = [
        *((rf"layers\.(\d+)\.{old}\.", lambda m, new=new: f"layers.{m[1]}.{new}.") for old, new in ENCODER_NAMES.items()),
    ]
    if isinstance(reference, nn.TransformerDecoder):
        names = [
            (rf"layers\.(\d+)\.{old}\.", lambda m, i=i, new=new: f"layers.{2 * int(m[1]) + i}.{new}.")
            for old, (i, new) in DECODER_NAMES.items()
        ]
    found = {}
    for name, x in reference.state_dict().items():
        parts = zip("qkv", x.chunk(3), strict=True) if "in_proj_" in name else [("", x)]
        for letter, part in parts:
            renamed = name.replace("in_proj_", f"{letter}.")
            for pattern, new in names:
                renamed = re.sub(pattern, new, renamed)
            found[renamed.replace("out_proj", "o")] = part
    return found


def randomized(module: nn.Module, seed: int) -> nn.Module:
    """Return ``module`` in float64 and eval mode with random parameters. Its attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in module.named_parameters():
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            x.data = 1 + 0.2 * noise if "norm" in name and name.endswith("weight") else noise * (0.5 if x.ndim == 1 else 0.4)
    return module.double().eval()
