"""What would run, where and why: `explain` for one call, `info` for the installation."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from aigc_fast import functional
from aigc_fast.optimize import decoders
from aigc_fast.runtime import backends, devices, native
from aigc_fast.runtime.backends import Explanation
from aigc_fast.runtime.operator import operators

_KERNELS = {"attention": "scaled_dot_product_attention", "recursion": "ar_recursion"}


@contextmanager
def _generators_kept(values: tuple[Any, ...]) -> Iterator[None]:
    """A random function draws its key before it comes to its op; afterwards the generators are what they were."""
    given = {value: value.get_state() for value in values if isinstance(value, torch.Generator)}
    devices = {value.device for value in values if isinstance(value, torch.Tensor) and value.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for generator, state in given.items():
            generator.set_state(state)


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Tells which backend would run a call, and why the others would not; nothing is computed.

    Args:
        op: a name in `aigc_fast.functional`, such as "conv_transpose2d" or "reparameterize_kl"; or "attention" or
            "decode".
        *args: what the function would be called with; for "decode", a model (transformers' or ours), then the arguments
            of its `generate`.
        **kwargs: likewise.

    Returns:
        The explanation; `print` it for a table.

    Raises:
        ValueError: on an unknown name.
        Exception: whatever the function raises on bad arguments.

    Example:
        >>> print(aigc_fast.explain("conv_transpose2d", x, weight, stride=2))
    """
    op = _KERNELS.get(op, op)
    if op == "decode":
        return decoders.explain(*args, **kwargs)
    if op not in functional.__all__:
        raise ValueError(
            f"op={op!r}: expected 'decode' or a name of aigc_fast.functional: {', '.join(sorted(functional.__all__))}"
        )
    with _generators_kept((*args, *kwargs.values())):
        found = backends.asked(lambda: getattr(functional, op)(*args, **kwargs))
    if found is None:
        return Explanation(op, "reference", dict.fromkeys(backends.NAMES[1:]), "no kernel is needed")
    if found.args_of_op is not None:
        return operators()[found.op].explain(*found.args_of_op)
    reasons = dict.fromkeys(backends.NAMES[1:], backends.NOT_THERE) | {"reference": None, "cpu": found.reason}
    return Explanation(found.op, "reference", reasons, "PyTorch's own function")


def info() -> dict[str, Any]:
    """Versions, instruction-set levels, threads, GPU and backends of this installation.

    Returns:
        A JSON-able dictionary:
        `aigc_fast`, `torch`, `python`: versions; `platform`: the machine;
        `native`: how the CPU library was built and what it runs on, or `{"error": reason}`;
        `threads`: torch's; `gpu`: the first CUDA device's name or None;
        `backend`: the one in force; `backends`: for each, None when it can run here, else why not;
        `ops`: the names of all ops.
    """
    from aigc_fast import __version__

    return {
        "aigc_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "native": native.info(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "backend": backends.current(),
        "backends": _backend_reasons(),
        "ops": sorted(operators()),
    }


def _backend_reasons() -> dict[str, str | None]:
    no_gpu = None if torch.cuda.is_available() else "no CUDA device"
    return {
        "reference": None,
        "cpu": native.cpu_reason(),
        "cuda": _cuda_reason(no_gpu),
        "triton": _triton_reason(no_gpu),
    }


def _cuda_reason(no_gpu: str | None) -> str | None:
    if native.is_emulated:
        return native.cuda_reason()
    return no_gpu or native.cuda_reason() or native.device_reason(torch.cuda.current_device())


def _triton_reason(no_gpu: str | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return no_gpu or devices.too_old_for_triton(torch.cuda.current_device())
