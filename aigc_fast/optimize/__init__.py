"""Swaps a model's layers for aigc_fast's, in place, and says what was swapped, what was not and why."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from aigc_fast.integrations import blocks
from aigc_fast.nn.matching import chains
from aigc_fast.nn.sequential import FusedSequential
from aigc_fast.optimize import decoders, measure, swap
from aigc_fast.optimize.reporting import Entry, Report
from aigc_fast.runtime.kept import store
from aigc_fast.runtime.precision import check_precision
from aigc_fast.runtime.tuning import tuning
from aigc_fast.runtime.weights import check_weights

__all__ = ["Entry", "Report", "optimize", "report", "restore"]

Model = TypeVar("Model", bound=nn.Module)

_LAYER, _CHAINS, _BLOCK = "layer", "chains", "block"
# By a module's name and what it is: PyTorch's time in milliseconds, or that of its own modules in turn, and ours.
Times = dict[tuple[str, str], list[float]]

_reports: WeakKeyDictionary[nn.Module, Report] = WeakKeyDictionary()


def optimize(
    model: Model,
    *,
    example_inputs: Any = None,
    precision: str | None = None,
    weights: str | None = None,
    inplace: bool = True,
) -> Model:
    """Swaps torch.nn.ConvTranspose1d/2d/3d, Conv1d/2d/3d, Linear, GroupNorm, InstanceNorm1d/2d/3d, LayerNorm,
    Dropout, MultiheadAttention, TransformerEncoderLayer, RNN, LSTM and GRU with their cells for aigc_fast.nn's.

    Only the class of a module changes: parameters, buffers, hooks, `state_dict` keys, the training flag and
    `isinstance` of the torch class stay the same. Only modules of exactly those types are swapped; subclasses, lazy and
    quantized modules are left as they are. A torch.nn.Sequential in which a convolution is followed by BatchNorm, ReLU,
    LeakyReLU, Tanh or Sigmoid becomes an `aigc_fast.nn.FusedSequential`, which runs them as one call: with a norm only
    at inference, without one in training too. So does one in which a Linear, GroupNorm, InstanceNorm or LayerNorm is
    followed by one of these activations, SiLU, GELU or ELU, or in which a ReflectionPad, or an activation other than
    Sigmoid, comes before a convolution.
    Blocks of diffusers (ResnetBlock2D, AutoencoderTinyBlock) and transformers (HifiGanResidualBlock, EnCodec's
    convolutions, residual blocks, encoder and decoder) become blocks that compute the same in fewer passes over memory;
    other blocks, subclasses, and blocks whose forward is not the expected one are left as they are.
    `report(model)` shows what was done and why; `restore(model)` undoes it.

    The `generate` of transformers' GPT2LMHeadModel, GPTNeoXForCausalLM, LlamaForCausalLM, MistralForCausalLM and
    Qwen2ForCausalLM runs on a native engine from then on, with all of its options (greedy, beams, sampling, assisted)
    and, in float32, the same ids. What the engine does not support, such as hooks or adapters, is left to transformers,
    and the reason is reported. The first call packs the weights, which are packed again when they change.

    Dropout draws its mask from Philox: as reproducible under `torch.manual_seed` as PyTorch's, but other elements are
    dropped.

    Args:
        model: any module, or a single layer.
        example_inputs: what the model is called with: a tensor, a tuple of positional arguments or a dict of keyword
            arguments. With it, each layer is timed both ways on the inputs that it meets in that call (forward, and
            backward too when the model is in training mode), and layers that would be slower are not swapped. This
            takes one run of a deep copy of the model and the inputs, in which hooks are called; a model that can't be
            copied runs itself, and the attributes, buffers and gradients of its modules are put back. The random
            generators are left as they were. What is measured of the swapped layers' own calls is kept, as by
            `aigc_fast.tuning`.
        precision: "highest", "high" or "medium", as for `torch.set_float32_matmul_precision`, for the convolutions and
            the attention of the swapped layers only, forward and backward; None leaves it to PyTorch's own switch. What
            PyTorch itself computes, such as attention's projections, always obeys that switch.
        weights: "fp32", "bf16", "int8" or "int4": the format in which decoders keep the weights they generate with, and
            RNN, LSTM and GRU those of float32 calls that need no gradients; None keeps them as they are. The parameters
            themselves do not change.
        inplace: False works on a deep copy.

    Returns:
        The model, or its copy.

    Raises:
        TypeError: when `model` is not a module.
        ValueError: for unknown precision or weights, or when the model can't be called with `example_inputs`.

    Example:
        >>> model = aigc_fast.optimize(model)
        >>> print(aigc_fast.report(model))
    """
    _check_model(model)
    check_precision(precision)
    check_weights(weights)
    if not inplace:
        model = copy.deepcopy(model)
    times = None if example_inputs is None else _measured(model, example_inputs)
    found = swapped(model, times)
    for module in model.modules():
        if swap.is_swapped(module) and precision is not None:
            module.float32_precision = precision
        if swap.is_swapped(module) and weights is not None and hasattr(type(module), "weights"):
            module.weights = weights
    decoders.swap(model, weights)
    _reports[model] = found
    return model


def swapped(model: nn.Module, times: Times | None) -> Report:
    """Swaps the layers that are no slower by these times, all where there are none, and says what was done."""
    layers = tuple(_decide(name, module, times) for name, module in _candidates(model))
    fused = tuple(_fuse(name, module, times) for name, module in _fusible(model))
    whole = tuple(_decide_block(name, module, times) for name, module in _blocks(model))
    timed = None if times is None else "forward + backward" if model.training else "forward"
    return Report(layers, fused, _others(model), timed, blocks=whole)


def restore(model: Model) -> Model:
    """Turns every layer that `optimize` swapped back into PyTorch's, in place, and frees its packed weights.

    Args:
        model: a module that went through `optimize`, whole or in part.

    Returns:
        The model.

    Raises:
        TypeError: when `model` is not a module.
    """
    _check_model(model)
    for module in model.modules():
        if swap.is_swapped(module):
            swap.put_back(module)
            vars(module).pop("float32_precision", None)
            vars(module).pop("weights", None)
        elif type(module) is FusedSequential:
            swap.unfuse(module)
        elif blocks.is_swapped(module):
            blocks.put_back(module)
    decoders.put_back(model)
    _reports.pop(model, None)
    store.release(_tensors(model))
    return model


def report(model: nn.Module) -> Report:
    """What `optimize` swapped in this model, what it did not and why, and the memory that its packed weights take now.

    For a copy of an optimized model, or one that was loaded, the report has no times.

    Args:
        model: the module that was given to `optimize`.

    Returns:
        The report; `print` it for a table.

    Raises:
        TypeError: when `model` is not a module.
    """
    _check_model(model)
    found = _reports[model] if model in _reports else _found(model)
    kept = store.bytes_of(_tensors(model)) + decoders.nbytes(model)
    return dataclasses.replace(found, decoders=decoders.entries(model), kept_bytes=kept)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def _found(model: nn.Module) -> Report:
    layers = tuple(
        Entry(name, _type_name(module), swap.is_swapped(module), _note_of_stock(module))
        for name, module in _candidates(model)
    )
    fused = tuple(
        Entry(name, _chain_text(module), True)
        for name, module in _named(model)
        if type(module) is FusedSequential and chains(module)
    )
    whole = tuple(
        Entry(name, type(module).__name__, blocks.is_swapped(module), blocks.refusal(module))
        for name, module in _blocks(model)
    )
    return Report(layers, fused, _others(model), blocks=whole)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _note_of_stock(module: nn.Module) -> str | None:
    return None if swap.is_swapped(module) else swap.refusal(module) or "not optimized yet"


def _named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name or "(model)", module) for name, module in model.named_modules()]


def _candidates(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in _named(model) if swap.concerns(module)]


def _type_name(module: nn.Module) -> str:
    return (swap.original_class(module) or type(module)).__name__


def _others(model: nn.Module) -> dict[str, int]:
    leaves = (
        module
        for name, module in _named(model)
        if next(module.children(), None) is None and "parametrizations." not in name and not swap.is_read_only(module)
    )
    return dict(Counter(type(module).__name__ for module in leaves if not swap.concerns(module)))


def _fusible(model: nn.Module) -> list[tuple[str, nn.Sequential]]:
    return [(name, module) for name, module in _named(model) if swap.is_fusible(module) and chains(module)]


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in _named(model) if blocks.known_in(module) is not None]


def _measured(model: nn.Module, example_inputs: Any) -> Times:
    """The times of the model's layers and fusible Sequentials, as they are called, each in both ways."""
    with measure.rehearsal(model) as stage:
        return times_of(stage, measure.captured_calls(stage, measurable(stage), example_inputs))


def measurable(model: nn.Module) -> list[nn.Module]:
    """The modules that there are two ways to run: layers and blocks to be swapped, and Sequentials to be fused."""
    layers = [module for _, module in _candidates(model) if swap.refusal(module) is None]
    whole = [module for _, module in _blocks(model) if blocks.refusal(module) is None]
    return [*layers, *(module for _, module in _fusible(model)), *whole]


def times_of(stage: nn.Module, calls: Mapping[nn.Module, Sequence[measure.Call]]) -> Times:
    """The times of modules in their calls, each in both ways.

    Args:
        stage: the model, a copy: its hooks go, and its layers are swapped where that is no slower.
        calls: of its `measurable` modules; those without calls are left out.
    """
    layers = {name: module for name, module in _candidates(stage) if calls.get(module)}
    sequentials = {name: module for name, module in _fusible(stage) if calls.get(module)}
    whole = {name: module for name, module in _blocks(stage) if calls.get(module)}
    make = measure.step_of if stage.training else measure.forward_of
    measure.silence(stage)
    times: Times = {}
    with torch.set_grad_enabled(stage.training):
        for name, module in layers.items():
            _tune(module, calls[module], make)
            times[name, _LAYER] = measure.interleaved_ms(module, calls[module], make, [swap.put_back, swap.swap])
    for name, module in layers.items():
        _decide(name, module, times)
    with torch.no_grad():
        for name, module in sequentials.items():
            module.eval()
            ways = [swap.unfuse, swap.fuse]
            times[name, _CHAINS] = measure.interleaved_ms(module, calls[module], measure.forward_of, ways)
    for name, module in sequentials.items():
        _fuse(name, module, times)
        module.train(stage.training)
    with torch.set_grad_enabled(stage.training):
        for name, module in whole.items():
            ways = [blocks.put_back, blocks.swap]
            times[name, _BLOCK] = measure.interleaved_ms(module, calls[module], make, ways)
    return times


def _tune(
    module: nn.Module, calls: Sequence[measure.Call], make: Callable[[nn.Module, measure.Call], Callable[[], Any]]
) -> None:
    """Finds out, for this process and later ones, how the swapped layer had better run these calls."""
    swap.swap(module)
    with tuning():
        for call in calls:
            make(module, call)()


def _decide(name: str, module: nn.Module, times: Times | None) -> Entry:
    kind = _type_name(module)
    reason = swap.refusal(module)
    if reason is not None:
        return Entry(name, kind, False, reason)
    measured = (times or {}).get((name, _LAYER))
    if measured is not None and measured[1] >= measured[0]:
        swap.put_back(module)
        return Entry(name, kind, False, "no faster than PyTorch's here", *measured)
    swap.swap(module)
    if measured is not None:
        return Entry(name, kind, True, None, *measured)
    return Entry(name, kind, True, None if times is None else "not timed: example_inputs never reach it")


def _fuse(name: str, module: nn.Sequential, times: Times | None) -> Entry:
    text = _chain_text(module)
    measured = (times or {}).get((name, _CHAINS))
    if measured is not None and measured[1] >= measured[0]:
        swap.unfuse(module)
        return Entry(name, text, False, "no faster than module by module here", *measured)
    swap.fuse(module)
    when = "in training too" if all(chain.runs_in_training for chain in chains(module)) else "at inference"
    return Entry(name, text, True, when, *(measured or ()))


def _decide_block(name: str, module: nn.Module, times: Times | None) -> Entry:
    kind, reason = type(module).__name__, blocks.refusal(module)
    measured = (times or {}).get((name, _BLOCK))
    if reason is None and measured is not None and measured[1] >= measured[0]:
        reason = "no faster than the block's own here"
    if reason is not None:
        blocks.put_back(module)
        return Entry(name, kind, False, reason, *(measured or ()))
    blocks.swap(module)
    return Entry(name, kind, True, None, *(measured or ()))


def _chain_text(module: nn.Sequential) -> str:
    return ", ".join(str(chain) for chain in chains(module))
