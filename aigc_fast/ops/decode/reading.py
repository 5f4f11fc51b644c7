"""Reads the parts of a `Spec` from modules, and refuses what the engine does not compute."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aigc_fast.ops.decode.spec import Norm
from aigc_fast.runtime.modules import kind_of

ACTIVATIONS = {
    "gelu": "GELU",
    "gelu_python": "GELU",
    "gelu_new": "GELU_TANH",
    "gelu_fast": "GELU_TANH",
    "gelu_pytorch_tanh": "GELU_TANH",
    "gelu_python_tanh": "GELU_TANH",
    "gelu_accurate": "GELU_TANH",
    "silu": "SILU",
    "swish": "SILU",
    "relu": "RELU",
}
"""The engine's activations, by their names in transformers' configurations."""

_TAKEN = torch.float32, torch.bfloat16, torch.float16
_HOOKS = "_forward_hooks", "_forward_pre_hooks"


class Refused(Exception):  # noqa: N818
    """Why a model does not run on the engine."""


def exactly(module: nn.Module, *classes: type[nn.Module]) -> None:
    """Refuses a module of a class that is none of these: it may compute something else."""
    if kind_of(module) not in classes:
        raise Refused(f"{classes[0].__name__} was replaced by {type(module).__name__}")


def parameter(tensor: Tensor) -> Tensor:
    """A weight that the engine can read."""
    if type(tensor) not in (nn.Parameter, Tensor):
        raise Refused(f"a weight is a {type(tensor).__name__}, not a plain parameter")
    is_there = tensor.device.type in ("cpu", "cuda") and tensor.layout is torch.strided
    if tensor.dtype not in _TAKEN or not is_there:
        raise Refused(
            f"a weight is {tensor.dtype} on {tensor.device}: the engine takes float32, bfloat16 and float16 on the CPU"
        )
    return tensor


def norm(module: nn.Module) -> Norm:
    """A norm's parameters."""
    bias = getattr(module, "bias", None)
    return Norm(parameter(module.weight), None if bias is None else parameter(bias))


def check_modules(model: nn.Module) -> None:
    """Refuses a model that computes more than its modules say: by hooks, replaced methods, or dropout."""
    for name, module in model.named_modules():
        own = vars(module)
        if any(own[hooks] for hooks in _HOOKS):
            raise Refused(f"{name or 'the model'} has hooks")
        if "forward" in own or own.get("_compiled_call_impl") is not None:
            raise Refused(f"the forward of {name or 'the model'} was replaced")
        if module.training and kind_of(module) is nn.Dropout and module.p > 0:
            raise Refused("it is in training mode, with dropout")
