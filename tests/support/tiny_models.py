"""Tiny random cells and texts, the step loop, and comparisons of states.

The attention of the cells is far from uniform, so that their evictions are far from ties.
"""

import torch
from torch import Tensor

from msrnn.layers.rotary import DynamicNTKRope, LinearRope, Llama3Rope, Rope, YarnRope
from msrnn.models import Decoder, DecoderConfig
from msrnn.models.config import Config
from msrnn.models.llama import Llama
from msrnn.state.multistate import MultiState
from msrnn.state.state import State

torch.set_num_threads(1)

ROPES = {
    "default": Rope(100.0),
    "linear": LinearRope(100.0, 2.0),
    "dynamic": DynamicNTKRope(100.0, 2.0, 6),
    "llama3": Llama3Rope(100.0, 4.0, 1.0, 4.0, 16),
    "yarn": YarnRope(100.0, 4.0, 16, 1.1, 2.0, 0.5),
}
"""One rotary embedding of each type. Its scaling takes effect within a dozen tokens."""

CONFIG = {
    "family": "llama",
    "vocab_size": 50,
    "width": 24,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 6,
    "ffn_width": 32,
    "norm_eps": 1e-5,
    "rope": ROPES["default"],
    "context_length": 64,
}


def tiny_cell(seed: int = 0, dtype: torch.dtype = torch.float64, frozen: bool = True, **fields) -> Llama:
    """Return a random cell; ``fields`` override ``CONFIG``. Its attention logits have a standard deviation of about 2."""
    cell = Llama(Config(**{**CONFIG, **fields})).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in cell.named_parameters():
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            if "norm" in name:
                x.copy_(1 + 0.2 * noise)
            elif "embed" in name:
                x.copy_(noise)
            else:
                gain = 1.5 if name.endswith(("q.weight", "k.weight")) else 1.0
                x.copy_(gain * noise * x.shape[1] ** -0.5)
    return cell.eval().requires_grad_(not frozen)


DECODER_CONFIG = {
    **{"vocab_size": 50, "width": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "ffn_width": 32},
    "context_length": 40,
}


def tiny_decoder(seed=0, frozen=True, **fields) -> Decoder:
    """Return a random decoder; ``fields`` override ``DECODER_CONFIG``. Norms and biases differ from their initial values."""
    cell = Decoder(DecoderConfig(**{**DECODER_CONFIG, **fields})).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in cell.named_parameters():
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            if "norm" in name:
                x.copy_(x + 0.2 * noise)
            elif name.startswith(("embed", "position_embedding", "memory", "write_tokens", "persistent")) or name.endswith(
                "bias"
            ):
                x.copy_(noise)
            else:
                x.copy_(noise * (1.5 if ".q." in name or ".k." in name else 1) * x.shape[1] ** -0.5)
    return cell.eval().requires_grad_(not frozen)


def random_tokens(seed: int, B: int, T: int, vocab: int = CONFIG["vocab_size"]) -> Tensor:
    """Return random ids ``(B, T)``."""
    return torch.randint(vocab, (B, T), generator=torch.Generator().manual_seed(seed))


def step_loop(cell, text: Tensor, state: State | None = None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
    """Read a text by one step per token; return logits ``(B, T, V)``, NaN past the end of a row, and the state.

    This is the definition of reading a text. Rows that have ended are inactive.
    """
    B, T = text.shape
    state = cell.initial_state(B) if state is None else state
    logits = torch.full((B, T, cell.config.vocab_size), torch.nan, dtype=cell.dtype)
    for t in range(T):
        active = None if lengths is None else t < lengths
        token = text[:, t] if lengths is None else text[:, t].masked_fill(~active, 0)
        read, state = cell.step(token, state, active=active)
        logits[:, t] = read if lengths is None else read.masked_fill(~active[:, None], torch.nan)
    return logits, state


def retained_positions(state: State) -> list:
    """Return the retained positions ``[layer][batch row][key/value head]``, in ascending order."""
    return [[[sorted(p for p in head if p != -1) for head in row] for row in H.positions.tolist()] for H in state]


def rows_by_position(H: MultiState, b: int) -> list[dict[str, Tensor]]:
    """Return the rows of batch row b per key/value head, in order of position and without empty rows."""
    heads = []
    for k, positions in enumerate(H.positions[b]):
        order = positions.argsort(stable=True)  # stable, because learned rows share one position
        order = order[positions[order] != -1]
        heads.append({name: x[b, k, order] for name, x in H.rows.items()})
    return heads


def assert_same(a: State, b: State, atol: float = 0.0) -> None:
    """Assert equal clocks, operators and positions, and rows that differ by at most ``atol``. Row order is ignored."""
    assert len(a) == len(b)
    for G, H in zip(a, b, strict=True):
        assert G.reduction == H.reduction
        assert G.clock.tolist() == H.clock.tolist()
        for row in range(len(G.clock)):
            for one, other in zip(rows_by_position(G, row), rows_by_position(H, row), strict=True):
                assert one["positions"].tolist() == other["positions"].tolist()
                assert one.keys() == other.keys()
                for name in one:
                    gap = (one[name] - other[name]).abs().amax().item() if one[name].numel() else 0.0
                    assert gap <= atol, f"{name} of row {row} differs by {gap}"


def assert_close(a: Tensor, b: Tensor, atol: float = 1e-9) -> None:
    """Assert that two tensors differ by at most ``atol``, and are NaN at the same places."""
    torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True)
