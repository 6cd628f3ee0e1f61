"""Our names of the parts of torch.nn's classic layers, to give both the same weights."""

import re

import torch
from torch import Tensor, nn

NAMES = {  # torch.nn's -> ours, of encoder and decoder layers; the three norms of a decoder's layer are told below
    r"\bself_attn\.out_proj\.": "attention.o.",
    r"\bmultihead_attn\.out_proj\.": "cross.o.",
    r"\blinear1\.": "ffn.up.",
    r"\blinear2\.": "ffn.down.",
    r"\.norm1\.": ".around_attention.norm.",
}


def ours(theirs: nn.Module) -> dict[str, Tensor]:
    """The parameters of a ``torch.nn.TransformerEncoder`` or ``TransformerDecoder`` under our names."""
    found = {}
    decoder = isinstance(theirs, nn.TransformerDecoder)
    names = {
        **NAMES,
        r"\.norm2\.": ".around_cross.norm." if decoder else ".around_ffn.norm.",
        r"\.norm3\.": ".around_ffn.norm.",
    }
    for name, x in theirs.state_dict().items():
        if (joined := re.search(r"(self_attn|multihead_attn)\.in_proj_(weight|bias)$", name)) is not None:
            part = {"self_attn": "attention", "multihead_attn": "cross"}[joined[1]]
            for letter, piece in zip("qkv", x.chunk(3), strict=True):
                found[f"{name[: joined.start()]}{part}.{letter}.{joined[2]}"] = piece
            continue
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        found[name] = x
    return found


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """``module`` in float64 and eval mode, its biases and norms no longer zeros and ones, its attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in module.named_parameters():
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            x.data = 1 + 0.2 * noise if "norm" in name and name.endswith("weight") else noise * (0.5 if x.ndim == 1 else 0.4)
    return module.double().eval()
