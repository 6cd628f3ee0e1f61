"""16-bit dtypes on CPUs that have no instructions for their products and emulate them slowly."""

import torch
from torch import Tensor

HAS_NATIVE_16BIT = {
    torch.bfloat16: getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)(),
    torch.float16: getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", bool)(),
}
"""True where this CPU multiplies a 16-bit dtype natively. Emulated products are some 20 times as slow as in float32."""


def upcast_if_emulated(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if its dtype has 16 bits and this CPU emulates products in that dtype; otherwise ``x``."""
    return x if x.device.type != "cpu" or HAS_NATIVE_16BIT.get(x.dtype, True) else x.float()
