"""Tests whether a computation may be differentiated, and the fused attention with derivatives of any order.

Derivatives come from autograd (backward), from forward-mode AD (``torch.autograd.forward_ad``) and from the transforms of
``torch.func`` (jvp, jacfwd, jacrev, vmap). Under each of them tensors must not be written in place or through ``data``, and
kernels without a derivative drop tangents without an error.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention

from .attention import SCALED_PRODUCT, LogitRule, attention_logits, mask_logits

_functorch: Any = torch._C._functorch


def in_transform() -> bool:
    """Return True inside of forward-mode AD or of a transform of ``torch.func``, vmap included."""
    return forward_ad._current_level >= 0 or (
        not torch.compiler.is_compiling() and _functorch.peek_interpreter_stack() is not None
    )


def is_differentiated(*tensors: Tensor) -> bool:
    """Return True if derivatives with respect to one of the tensors may be computed, or a transform is active."""
    return any(x.requires_grad for x in tensors) or in_transform()


def has_derivative(x: Tensor) -> bool:
    """Return True if derivatives with respect to ``x`` are computed: by backward, forward-mode AD or ``torch.func``."""
    if x.requires_grad or not in_transform():
        return x.requires_grad
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        return True
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_gradtrackingtensor(x):
            return True
        x = _functorch.get_unwrapped(x)
    return False


def is_batched_by_vmap(*tensors: Tensor) -> bool:
    """Return True if vmap has a batch dimension in one of the tensors, so that its values cannot be read."""
    for x in tensors if in_transform() else ():
        while _functorch.is_functorch_wrapped_tensor(x):
            if _functorch.is_batchedtensor(x):
                return True
            x = _functorch.get_unwrapped(x)
    return False


def is_readable(x: Tensor) -> bool:
    """Return True if code may branch on the values of ``x`` at no cost.

    It may on the CPU, which needs no synchronisation, but not under ``torch.compile``, nor if vmap batches ``x``.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_batched_by_vmap(x)


def to_list(x: Tensor) -> Any:
    """Return ``x.tolist()``, also inside of jvp and grad of ``torch.func``, where torch 2.8 has no data pointer of a tensor.

    Raises:
        RuntimeError: vmap has a batch dimension in ``x``.
    """
    try:
        return x.tolist()
    except RuntimeError:
        return [to_list(part) for part in x] if x.ndim else x.item()


def fused_attention(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, rule: LogitRule = SCALED_PRODUCT) -> Tensor:
    """Return softmax attention by PyTorch's fused kernel, with derivatives of any order.

    The kernels have a first derivative by backward only, and no softcap. Inside of a transform, for the second and later
    derivatives, and with a softcap, the products are computed one by one.

    Args:
        query: ``(B, K, M, D)``; keys, values: ``(B, K, R, D)``.
        visible: bool, broadcast to ``(B, K, M, R)``, True where a query attends to a row.
        rule: of the logits.

    Returns:
        ``(B, K, M, D)``.
    """
    if in_transform() or rule.softcap is not None:
        return _plain_attention(query, keys, values, visible, rule)
    output = scaled_dot_product_attention(query, keys, values, visible, scale=rule.scale)
    if output.requires_grad and not torch.compiler.is_compiling():
        output = _SecondDerivative.apply(output, query, keys, values, visible, rule)
    return output


def _plain_attention(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, rule: LogitRule) -> Tensor:
    weights = mask_logits(attention_logits(query, keys, rule=rule), visible).softmax(dim=-1)
    return weights.to(values.dtype) @ values


class _SecondDerivative(torch.autograd.Function):
    """The identity of the output of the fused kernel.

    A backward pass that is not recorded continues with the backward of the kernel. A recorded one (``create_graph``) does not
    call the kernel: it computes the gradients of query, keys and values by operations that have derivatives themselves.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, *inputs: Any) -> Tensor:
        *tensors, ctx.rule = inputs
        ctx.save_for_backward(*tensors)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return d_output, None, None, None, None, None
        needed = [x for x in ctx.saved_tensors[:3] if x.requires_grad]
        query, keys, values, visible = ctx.saved_tensors
        output = _plain_attention(query, keys, values, visible, ctx.rule)
        gradients = iter(torch.autograd.grad(output, needed, d_output, create_graph=True))
        return None, *(next(gradients) if x.requires_grad else None for x in ctx.saved_tensors[:3]), None, None
