"""Random numbers and dropout: Philox4x32-10, element i a pure function of a key and of i.

Randomness enters an op as its `key`, an int64 tensor (seed, offset) that `draw_key` takes from a torch generator; the
op itself is deterministic, on any number of threads, and its backward pass makes the same numbers again from the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.random import cpu, cuda, reference
from aigc_fast.ops.random.philox import KEY_LIMIT, keyed
from aigc_fast.runtime import devices
from aigc_fast.runtime.arguments import check_generator
from aigc_fast.runtime.devices import Reason, lazily
from aigc_fast.runtime.operator import LIBRARY, Operator, decompose_for_onnx, is_compiling
from aigc_fast.runtime.sharding import Sharding


def _draw(like: Tensor) -> Tensor:
    return torch.randint(KEY_LIMIT, (2,), device=like.device)


def _fake_key(like: Tensor) -> Tensor:
    return like.new_empty(2, dtype=torch.int64)


# Opaque to torch.compile, which would otherwise draw from its own generator.
LIBRARY.define("random_key(Tensor like) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
LIBRARY.impl("random_key", _draw, "CompositeExplicitAutograd")
torch.library.register_fake("aigc_fast::random_key", _fake_key, lib=LIBRARY)
decompose_for_onnx(torch.ops.aigc_fast.random_key.default, _draw, _fake_key)


def draw_key(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws the key of one random tensor and advances the generator.

    Args:
        like: a tensor on the device where the random one will be. That device's default generator is the source
            without `generator`: the key is drawn on the device, so that CUDA graphs draw anew at every replay.
        generator: of the same device, or of the CPU: then the numbers are the CPU's.

    Returns:
        int64, shape (2,), on the device of `like`: seed and offset.

    Raises:
        RuntimeError: if the generator is of another device, or of the CPU while a CUDA graph is captured.
        TypeError: if it is none.
    """
    if generator is None:
        return torch.ops.aigc_fast.random_key(like) if is_compiling() else _draw(like)
    check_generator(generator)
    source, device = generator.device, like.device
    if source.type not in ("cpu", device.type):
        raise RuntimeError(f"generator is on {source}: expected {device} or cpu")
    if source != device and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"generator is on {source} while a CUDA graph is captured, which would replay its numbers: "
            f"expected {device}"
        )
    key = torch.randint(KEY_LIMIT, (2,), device=source, generator=generator)
    return key if source == device else key.to(device)


def _empty(size: Sequence[Any], key: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device=key.device)


def _setup_dropout(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    _, ctx.key, ctx.p = inputs


def _dropout_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return DROPOUT(grad, ctx.key, ctx.p), None, None


NORMAL = Operator(
    "normal",
    "(SymInt[] size, Tensor philox_key, ScalarType dtype) -> Tensor",
    reference=reference.normal,
    allocate=_empty,
)
UNIFORM = Operator(
    "uniform",
    "(SymInt[] size, Tensor philox_key, ScalarType dtype) -> Tensor",
    reference=reference.uniform,
    allocate=_empty,
)
DROPOUT = Operator(
    "dropout",
    "(Tensor input, Tensor philox_key, float p) -> Tensor",
    reference=reference.dropout,
    allocate=lambda input, key, p: torch.empty_like(input),
    setup_context=_setup_dropout,
    backward=_dropout_backward,
    sharding=Sharding([0], key=1),
)


def _triton_fills(size: Sequence[int], key: Tensor, dtype: torch.dtype) -> Reason:
    return devices.triton(dtype, key)


def _triton_drops(input: Tensor, key: Tensor, p: float) -> Reason:
    return devices.triton(input.dtype, input, key)


for _op, _triton_unsupported, _beside in (
    (NORMAL, _triton_fills, None),
    (UNIFORM, _triton_fills, None),
    (DROPOUT, _triton_drops, 0),
):
    for _name, _fill, _unsupported in (
        ("cpu", getattr(cpu, _op.name), getattr(cpu, f"{_op.name}_unsupported")),
        ("cuda", getattr(cuda, _op.name), getattr(cuda, f"{_op.name}_unsupported")),
        ("triton", lazily(f"{__package__}.triton", _op.name), _triton_unsupported),
    ):
        _op.register(_name, _fill, keyed(_unsupported, 1, _beside))
