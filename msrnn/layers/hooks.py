"""Calls of modules as ``nn.Module`` makes them, with the hooks and wrappers that a user has put around them."""

import inspect
from functools import lru_cache
from typing import Any

from torch import nn

from ..errors import Error


def has_hooks(module: nn.Module) -> bool:
    """Return True if a call does more than ``forward`` of the class: a hook, or a ``forward`` set on the instance."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or nn.modules.module._has_any_global_hook()
    )


def call_with_hooks(module: nn.Module, method: str, *args: Any, **kwargs: Any) -> Any:
    """Return ``module.method(*args, **kwargs)``, called with the hooks of ``module``, as a call of ``module`` is.

    The hooks receive a second object with the attributes of ``module``. Its ``forward`` is the method.
    """
    view = object.__new__(_with_forward(type(module), method))  # type: ignore[arg-type]
    view.__dict__ = module.__dict__
    return view(*args, **kwargs)


def call_layer(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Return ``layer(*args, **kwargs)``.

    Raises:
        Error: ``layer`` is a wrapper with a ``forward`` that does not take these arguments.
    """
    try:
        return layer(*args, **kwargs)
    except TypeError as error:
        try:
            inspect.signature(layer.forward).bind(*args, **kwargs)
        except TypeError as reason:  # the signature, and not an error within the layer
            name = f"{type(layer).__name__}.forward"
            raise Error(f"{name} is called as that of a layer: {reason}; expected forward(self, x, H, **arguments)") from error
        raise


@lru_cache
def _with_forward(kind: Any, method: str) -> Any:
    return type(kind.__name__, (kind,), {"forward": getattr(kind, method)})
