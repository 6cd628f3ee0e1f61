"""Token embedding."""

from torch import nn


class Embedding(nn.Embedding):
    """``nn.Embedding`` that skips random initialisation on the meta device, where it would import the compiler of PyTorch."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
