"""Calls that others take: arguments with a `__torch_function__` of their own, and recorders of PyTorch's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.overrides import _get_overloaded_args, handle_torch_function, has_torch_function_variadic

is_compiling = torch.compiler.is_compiling
function_modes = torch._C._len_torch_function_stack
tracing_state = torch._C._get_tracing_state


def is_recorded() -> bool:
    """Whether a graph is made for readers that know PyTorch's operators alone: TorchScript's, by tracing, or ONNX's."""
    # ONNX export compiles or traces; asking for it directly costs more than asking for both.
    return torch.onnx.is_in_onnx_export() if is_compiling() else tracing_state() is not None


def is_for_onnx() -> bool:
    """Whether the graph that is made is ONNX's, which has no op of ours."""
    return is_recorded() and torch.onnx.is_in_onnx_export()


def is_overridden(*arguments: Any) -> bool:
    """Whether one of the arguments has a `__torch_function__` of its own that is not disabled."""
    if not has_torch_function_variadic(*arguments):
        return False
    # A mode makes the check above true for every call, and Tensor has a `__torch_function__` like any class.
    return not function_modes() or any(type(argument) is not Tensor for argument in _get_overloaded_args(arguments))


def is_symbolic(*arguments: Any) -> bool:
    """Whether torch.fx traces: its proxies stand for values that are not there yet."""
    return has_torch_function_variadic(*arguments) and any(isinstance(argument, Proxy) for argument in arguments)


def record(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The node of torch.fx's graph that calls this public function with these symbolic arguments."""
    return handle_torch_function(function, (*args, *kwargs.values()), *args, **kwargs)


def hand_over(
    function: Callable[..., Any],
    theirs: Callable[..., Any],
    tensors: tuple[Any, ...],
    rest: tuple[Any, ...],
    **ours: Any,
) -> Any:
    """A call that is not ours but PyTorch's, or None: of overridden tensors, or recorded for readers of its graphs.

    Whether it may be one costs less to ask: `has_torch_function_variadic(*tensors) or tracing_state() is not None`.

    Args:
        function: the public function that was called: what torch.fx records.
        theirs: PyTorch's own function, which takes the same arguments.
        tensors: the arguments that can be overridden.
        rest: the other arguments.
        ours: arguments that PyTorch's function does not have, and does without.
    """
    if is_symbolic(*tensors):
        return record(function, *tensors, *rest, **ours)
    return theirs(*tensors, *rest) if is_overridden(*tensors) or is_recorded() else None
