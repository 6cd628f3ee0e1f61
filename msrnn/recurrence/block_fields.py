"""Fields of the observation for the tokens of a block: keys, values, attention output, queries and input of the layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.attention import weighted_values
from ..reductions.contract import Reduction
from ..state.quantised_rows import dequantise_rows


@dataclass(frozen=True)
class BlockFields:
    """The fields of :class:`Observation` for T tokens and R rows; None where the operator does not need them.

    Attributes:
        keys: ``(B, K, R, D)``.
        values: ``(B, K, R, D)``.
        queries: ``(B, K, G, T, D)``.
        x: ``(B, T, E)``.
        attended: values ``(B, K, R, D)`` as H stores them, which the attention output is computed from; int8 with scales.
        value_scales: ``(B, K, R)``, factors of int8 values.
        dtype: of the attention output, that of the queries.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    queries: Tensor | None = None
    x: Tensor | None = None
    attended: Tensor | None = None
    value_scales: Tensor | None = None
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(
        cls,
        operator: Reduction,
        x: Tensor,
        queries: Tensor,
        keys: tuple[Tensor, Tensor | None],
        values: tuple[Tensor, Tensor | None],
        dtype: torch.dtype,
    ) -> "BlockFields":
        """Return the fields that ``operator`` needs, without gradients.

        Args:
            x, queries: as the attributes.
            keys, values: ``(B, K, R, D)`` as H stores them, each with its scales ``(B, K, R)`` if it is int8, otherwise None.
            dtype: of the keys and values that the operator receives, that of the weights.
        """
        return cls(
            keys=dequantise_rows(*keys, dtype).detach().to(dtype) if operator.needs_keys else None,
            values=dequantise_rows(*values, dtype).detach().to(dtype) if operator.needs_values else None,
            queries=queries.detach() if operator.needs_queries else None,
            x=x.detach() if operator.needs_input else None,
            attended=values[0].detach() if operator.needs_output else None,
            value_scales=values[1] if operator.needs_output else None,
            dtype=queries.dtype,
        )

    @property
    def copied_per_token(self) -> int:
        """Number of elements of keys and values that :meth:`of_tokens` copies for each of several tokens."""
        return sum(rows.numel() for rows in (self.keys, self.values) if rows is not None)

    def of_tokens(self, start: int, stop: int, weights: Tensor) -> dict[str, Tensor]:
        """Return the fields of tokens ``start`` to ``stop`` by name, each token as one entry of the batch, ``(B t, …)``.

        Args:
            weights: attention weights of the tokens, ``(B, K, G, t, R)``.
        """
        T, fields = stop - start, dict[str, Tensor]()
        for name, rows in (("keys", self.keys), ("values", self.values)):
            if rows is not None:
                fields[name] = rows[:, None].expand(-1, T, -1, -1, -1).flatten(0, 1)
        if self.attended is not None:
            output = weighted_values(weights.flatten(2, 3), self.attended, self.value_scales, self.dtype)  # (B, K, G t, D)
            fields["output"] = output.unflatten(2, (-1, T)).movedim(3, 1).flatten(0, 1)  # (B t, K, G, D)
        if self.queries is not None:
            fields["queries"] = self.queries[:, :, :, start:stop].movedim(3, 1).flatten(0, 1)
        if self.x is not None:
            fields["x"] = self.x[:, start:stop].flatten(0, 1)
        return fields
