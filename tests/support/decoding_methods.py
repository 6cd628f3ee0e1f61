"""All decoding functions behind one call."""

import torch
from support.tiny_models import assert_close, assert_same

import msrnn
from msrnn.decoding.generate import Generated

METHODS = {
    "generate": (msrnn.generate, {}),
    "jacobi": (msrnn.jacobi, {"block": 4}),
    "lookahead": (msrnn.lookahead, {"window": 2, "ngram": 4, "guesses": 2}),
    "auto": (msrnn.lookahead, {}),
}
STREAMS = {
    "stream": (msrnn.stream, {}),
    "stream_jacobi": (msrnn.stream_jacobi, {"block": 4}),
    "stream_lookahead": (msrnn.stream_lookahead, {"guesses": 2, "ngram": 4}),
}


def decode(method, cell, tokens, state, **settings):
    """Decode with a function or with the whole stream."""
    if method in METHODS:
        function, own = METHODS[method]
        return Generated(*function(cell, tokens, state, **own, **settings)[:3])
    function, own = STREAMS[method]
    items = list(function(cell, tokens, state, **own, **settings))
    if method == "stream":
        return Generated(torch.stack([token for token, _ in items], 1), items[-1].state, items[-1].logits)
    rows = [[i for item in items for i in item.tokens[b]] for b in range(len(state.clock))]
    longest = max(map(len, rows))
    return Generated(torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows]), items[-1].state, items[-1].logits)


def assert_equal(ours, expected):
    assert ours.tokens.equal(expected.tokens)
    assert_same(ours.state, expected.state, 1e-8)
    assert_close(ours.logits, expected.logits, 1e-8)
