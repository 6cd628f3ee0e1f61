"""Plain loops that define what a faster path has to give."""


def plain_loop(cell, token, state, active=None):
    """Return a step of the cell, with the layers run one by one."""
    x, layers = cell.embed_tokens(token, state.clock), []
    for layer, H in zip(cell.layers, state, strict=True):
        x, H = layer.step(x, H, active=active)
        layers.append(H)
    return cell.compute_logits(x), state.with_layers(layers)
