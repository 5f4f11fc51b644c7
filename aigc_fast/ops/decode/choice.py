"""Whose engine generates: the CPU's, or CUDA's where it is asked for, as no card was measured on which it is faster."""

from __future__ import annotations

import torch

from aigc_fast.ops.decode import cuda
from aigc_fast.ops.decode.reading import Refused
from aigc_fast.ops.decode.spec import Spec
from aigc_fast.runtime import backends, native

# What plain PyTorch does not keep weights as.
_OURS_ALONE = "int8", "int4"


def unavailable() -> str | None:
    """Why the CPU's kernels of decoding may not run here and now, or None."""
    if backends.current() not in ("auto", "cpu"):
        return f"the backend {backends.current()!r} is forced"
    if (missing := native.cpu_reason()) is not None:
        return missing
    return "autocast is on" if torch.is_autocast_enabled("cpu") else None


def wanted_on(device: torch.device) -> str:
    """The backend whose engine would run there: "cuda" on a card, unless another is forced, and where it is forced."""
    forced = backends.current()
    return "cuda" if forced == "cuda" or (device.type == "cuda" and forced == "auto") else "cpu"


def backend_on(device: torch.device, weights: str | None) -> str:
    """The backend whose engine may run there and now, "cpu" or "cuda", as far as no decoder is looked at.

    Args:
        device: of the model.
        weights: how they are wanted; None as they are.

    Raises:
        Refused: where none may.
    """
    if wanted_on(device) == "cuda":
        if torch.is_autocast_enabled(device.type):
            raise Refused("autocast is on")
        if backends.current() == "auto" and weights not in _OURS_ALONE:
            raise Refused("the engine was not measured to be faster on any GPU: aigc_fast.backend('cuda') forces it")
        return "cuda"
    if (reason := unavailable()) is not None:
        raise Refused(reason)
    if device.type == "cuda":
        raise Refused(f"the weights are on {device}")
    return "cpu"


def not_taken(backend: str, device: torch.device) -> str:
    """Why the other backend's engine runs and not this one's.

    Args:
        backend: "cpu" or "cuda".
        device: of the model.
    """
    is_elsewhere = device.type != backend and not (backend == "cuda" and native.is_emulated)
    return f"the weights are on {device}" if is_elsewhere else f"the backend {backends.current()!r} is in force"


def check(spec: Spec, backend: str) -> None:
    """Refuses a decoder that the backend's engine cannot run.

    Raises:
        Refused: with the reason.
    """
    devices = {str(tensor.device) for tensor in spec.tensors() if tensor is not spec.frequencies}
    if backend == "cuda":
        reason = cuda.unsupported(spec)
    else:
        reason = None if devices == {"cpu"} else f"the weights are on {' and '.join(sorted(devices))}"
    if reason is not None:
        raise Refused(reason)
