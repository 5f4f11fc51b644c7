"""The native CPU kernels of convolution, over csrc/cpu/conv_transpose.cpp."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from aigc_fast import _native
from aigc_fast.ops.conv_transpose import reference
from aigc_fast.ops.conv_transpose.plan import AXES, Ints, Plan, layout, memory_format

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
BFLOAT16 = DTYPES[torch.bfloat16]
DIRECT = 0
ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "tanh": 3, "sigmoid": 4}


class _Packed(NamedTuple):
    data: Tensor | None
    kept: bool
    version: int
    pointer: int
    fingerprint: int


_packed_weights = WeakIdKeyDictionary()
_thread = threading.local()


def unsupported(tensors: Sequence[Tensor | None]) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    first = tensors[0]
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"input is on {tensor.device}"
        if tensor.dtype not in DTYPES or tensor.dtype != first.dtype:
            return f"dtype {tensor.dtype}: the kernels take float32 or bfloat16, the same for all arguments"
        if tensor.numel() == 0:
            return "an argument has no elements"
    return _native.cpu_reason()


def _fingerprint(weight: Tensor) -> int:
    """Of a few elements: shows writes that the version counter misses (`weight.data.add_(...)`)."""
    return _native.cpu.kernels.conv_fingerprint(weight.data_ptr(), weight.numel(), weight.element_size())


def _dense(weight: Tensor) -> Tensor:
    """The same weight, where gaps or overlaps in memory would upset `_fingerprint` and the packing."""
    return (
        weight if weight.is_contiguous() or weight.is_contiguous(memory_format=_last(weight)) else weight.contiguous()
    )


def _is_current(entry: _Packed, weight: Tensor) -> bool:
    same_memory = entry.version == weight._version and entry.pointer == weight.data_ptr()
    return same_memory and entry.fingerprint == _fingerprint(weight)


def _last(weight: Tensor) -> torch.memory_format:
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.dim(), torch.contiguous_format)


def _weight_strides(weight: Tensor) -> Ints:
    strides = weight.stride()
    return (*strides[:2], *(0,) * (2 + AXES - weight.dim()), *strides[2:])


@lru_cache(maxsize=4096)
def algorithm(level: str, in_layout: Ints, out_layout: Ints, geometry: Ints, round_to_bfloat16: bool) -> int:
    """The algorithm that is expected to be fastest, by csrc/cpu/conv_transpose.cpp."""
    return _native.cpu.kernels.conv_algorithm(in_layout, out_layout, geometry, int(round_to_bfloat16))


def _workspace(size: int) -> Tensor:
    """Memory for a packed weight that only one call needs: fresh pages would cost more than the packing."""
    buffer = getattr(_thread, "workspace", None)
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):
            buffer = _thread.workspace = torch.empty(size, dtype=torch.float32)
    return buffer


def _pack(weight: Tensor, in_layout: Ints, out_layout: Ints, plan: Plan, method: int, keep: bool) -> Tensor | None:
    kernels = _native.cpu.kernels
    size = kernels.conv_packed_size(in_layout, out_layout, plan.geometry, method)
    packed = torch.empty(size, dtype=torch.float32) if keep else _workspace(size)
    strides = _weight_strides(weight)
    fine = kernels.conv_pack(
        weight.data_ptr(),
        DTYPES[weight.dtype],
        strides,
        in_layout,
        out_layout,
        plan.geometry,
        method,
        packed.data_ptr(),
    )
    return packed if fine else None


def packed_weight(weight: Tensor, in_layout: Ints, out_layout: Ints, plan: Plan, method: int) -> Tensor | None:
    """The weight in the kernels' layout; kept while nothing wants its gradient and nobody writes to it.

    None where the weight holds values that the algorithm must not see.
    """
    keep = not (weight.requires_grad and torch.is_grad_enabled()) and not weight.is_inference()
    weight_memory = _dense(weight)
    if not keep or weight_memory is not weight:
        return _pack(weight_memory, in_layout, out_layout, plan, method, keep=False)
    key = (_native.cpu.level, plan.geometry, method)
    entries = _packed_weights.setdefault(weight, {})
    entry = entries.get(key)
    current = entry is not None and _is_current(entry, weight)
    if current and entry.kept:
        return entry.data
    # Kept from the second call on: in training every step has new weights, and most of them are used once.
    data = _pack(weight, in_layout, out_layout, plan, method, keep=current)
    kept_data = data if current else None
    entries[key] = _Packed(kept_data, current, weight._version, weight.data_ptr(), _fingerprint(weight))
    return data


def _rows(tensor: Tensor) -> Tensor:
    """(N, everything else) in float32: PyTorch's bfloat16 product is slow without AMX or AVX512-BF16."""
    return tensor.detach().flatten(1).to(torch.float32)


def _matrix_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, activation: str, slope: float
) -> Tensor:
    transposed = plan.geometry[-1]
    product = torch.mm(_rows(input), _rows(weight) if transposed else _rows(weight).t())
    output = product.reshape(plan.output_shape)
    if bias is not None:
        output += bias.detach().view(-1, *(1,) * (output.dim() - 2))
    output = reference.ACTIVATIONS[activation](output, slope)
    return output.to(input.dtype).contiguous(memory_format=memory_format(input, weight))


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, activation: str = "none", slope: float = 0.0
) -> Tensor:
    """Runs a planned convolution, transposed or not; input and weight on the CPU in float32 or bfloat16."""
    if plan.is_matrix:
        return _matrix_forward(input, weight, bias, plan, activation, slope)
    output = torch.empty(plan.output_shape, dtype=input.dtype, memory_format=memory_format(input, weight))
    in_layout, out_layout = layout(input), layout(output)
    shift = bias
    if bias is not None and (bias.dtype != torch.float32 or not bias.is_contiguous()):
        shift = bias.detach().to(torch.float32).contiguous()
    code = DTYPES[input.dtype]
    rounds = code == BFLOAT16 or torch.get_float32_matmul_precision() == "medium"
    best = algorithm(_native.cpu.level, in_layout, out_layout, plan.geometry, rounds)
    for method in dict.fromkeys((best, DIRECT)):
        packed = packed_weight(weight, in_layout, out_layout, plan, method)
        if packed is not None and _native.cpu.kernels.conv_forward(
            input.data_ptr(),
            code,
            in_layout,
            packed.data_ptr(),
            None if shift is None else shift.data_ptr(),
            output.data_ptr(),
            code,
            out_layout,
            plan.geometry,
            method,
            ACTIVATIONS[activation],
            slope,
        ):
            break
    return output


def takes_windows(large: Tensor, small: Tensor, plan: Plan) -> bool:
    """Whether the weight gradient goes through Winograd windows."""
    return unsupported((large, small)) is None and _takes_windows(
        _native.cpu.level, layout(large), layout(small), plan.geometry
    )


@lru_cache(maxsize=4096)
def _takes_windows(level: str, large: Ints, small: Ints, geometry: Ints) -> bool:
    return bool(_native.cpu.kernels.conv_weight_gradient_algorithm(large, small, geometry))


def weight_gradient(large: Tensor, small: Tensor, plan: Plan, weight_shape: Ints) -> Tensor:
    """The weight gradient of the planned convolution from `large` to `small`."""
    if plan.is_matrix:
        return torch.mm(_rows(small).t(), _rows(large)).reshape(weight_shape).to(large.dtype)
    output = torch.empty(weight_shape, dtype=large.dtype)
    _native.cpu.kernels.conv_weight_gradient(
        large.data_ptr(),
        layout(large),
        small.data_ptr(),
        layout(small),
        DTYPES[large.dtype],
        plan.geometry,
        output.data_ptr(),
    )
    return output
