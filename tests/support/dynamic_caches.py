"""A text that a model of transformers and the cell of the same weights read."""

import torch
from support.transformers_reference import float64_reference

import converters

TOKENS = torch.randint(3, 61, (2, 30), generator=torch.Generator().manual_seed(1))


def load(model):
    return converters.load(model).requires_grad_(False)


def read(model, tokens, cache=None, **arguments):
    """Return logits of the model and its cache."""
    with float64_reference(model), torch.no_grad():
        out = model(tokens, past_key_values=cache, use_cache=True, **arguments)
    return out.logits, out.past_key_values
