"""Which modules can be swapped, why others can't, and the swap itself: a change of class, in place."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

import aigc_fast.nn as fast_nn
from aigc_fast.nn.drop_in import become
from aigc_fast.nn.overrides import Methods

DROP_INS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, name): getattr(fast_nn, name)
    for name in (
        "ConvTranspose1d",
        "ConvTranspose2d",
        "ConvTranspose3d",
        "Conv1d",
        "Conv2d",
        "Conv3d",
        "Dropout",
        "GRU",
        "GRUCell",
        "GroupNorm",
        "InstanceNorm1d",
        "InstanceNorm2d",
        "InstanceNorm3d",
        "LSTM",
        "LSTMCell",
        "LayerNorm",
        "Linear",
        "MultiheadAttention",
        "RNN",
        "RNNCell",
        "TransformerEncoderLayer",
    )
}
ORIGINALS = {fast: original for original, fast in DROP_INS.items()}
_METHODS = Methods(DROP_INS)
_SEQUENTIAL = Methods([nn.Sequential])
_QUANTIZED = ("torch.ao.nn.", "torch.nn.quantized.", "torchao.")


def base_class(module: nn.Module) -> type[nn.Module]:
    """The module's class without what `torch.nn.utils.parametrize` put in front of it."""
    cls = type(module)
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls


def original_class(module: nn.Module) -> type[nn.Module] | None:
    """The torch class that the module is or was, if aigc_fast has a drop-in for it."""
    cls = base_class(module)
    return cls if cls in DROP_INS else ORIGINALS.get(cls)


def is_swapped(module: nn.Module) -> bool:
    """Whether the module runs on aigc_fast now."""
    return base_class(module) in ORIGINALS


def refusal(module: nn.Module) -> str | None:
    """Why a module that looks like one of the drop-ins' originals is left alone, or None."""
    cls = base_class(module)
    if isinstance(module, LazyModuleMixin):
        return "lazy: call the model once, then optimize"
    if "qconfig" in vars(module):
        return "it has a qconfig: quantization knows PyTorch's layers alone"
    if cls in DROP_INS or cls in ORIGINALS:
        return _METHODS.replaced(module, ORIGINALS.get(cls, cls))
    if cls.__module__.startswith(_QUANTIZED):
        return "quantized"
    return f"{cls.__name__} is a subclass: its forward may differ"


def concerns(module: nn.Module) -> bool:
    """Whether the module is one of the drop-ins' originals, in whatever guise."""
    if is_read_only(module):
        return False
    if isinstance(module, tuple(DROP_INS)):
        return True
    cls = type(module)
    return cls.__module__.startswith(_QUANTIZED) and cls.__name__ in {original.__name__ for original in DROP_INS}


def is_read_only(module: nn.Module) -> bool:
    """Whether the module is a part of torch.nn.MultiheadAttention, which reads its parameters and never calls it."""
    return type(module) is NonDynamicallyQuantizableLinear


def swap(module: nn.Module) -> None:
    """Makes the module aigc_fast's: same parameters, buffers, hooks and state_dict keys."""
    become(module, DROP_INS[original_class(module)])


def put_back(module: nn.Module) -> None:
    """Makes the module PyTorch's again."""
    become(module, original_class(module))


def is_fusible(module: nn.Module) -> bool:
    """Whether the module is a Sequential that runs its modules as torch.nn.Sequential does."""
    if type(module) not in (nn.Sequential, fast_nn.FusedSequential) or "qconfig" in vars(module):
        return False
    return _SEQUENTIAL.replaced(module, nn.Sequential) is None


def fuse(module: nn.Sequential) -> None:
    """Makes a Sequential run its chains as one call each."""
    become(module, fast_nn.FusedSequential)


def unfuse(module: nn.Sequential) -> None:
    """Makes a Sequential PyTorch's again."""
    become(module, nn.Sequential)
