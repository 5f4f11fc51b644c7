"""What runs, watched from outside: launches of kernels, the package's registered ops, and what PyTorch's profiler sees.

The native modules' kernels are wrapped as this module is imported, before anything can keep one of them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from aigc_fast.runtime import native

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Kernels that tell whether they took a call.
MAY_REFUSE = {"attention", "attention_backward", "dropout", "reparameterize", "reparameterize_backward"}
# What the CUDA module has besides.
NO_KERNELS = {"build_info", "probe", "set_order", "last_launch"}

_watchers: list[Callable[[str], None]] = []


def _tell(name: str) -> None:
    for watcher in list(_watchers):
        watcher(name)


def _watched(name: str, kernel: Callable[..., Any], backend: str = "cpu") -> Callable[..., Any]:
    called = name if backend == "cpu" else f"{backend}:{name}"

    def call(*args: Any) -> Any:
        taken = kernel(*args)
        if taken or backend != "cpu" or name not in MAY_REFUSE:
            _tell(called)
        return taken

    return call


def _watch_cpu() -> None:
    kernels_of = native._C.kernels
    native._C.kernels = lambda level: {name: _watched(name, kernel) for name, kernel in kernels_of(level).items()}
    vars(native.kernels()).update(native._C.kernels(native.level()))


def _watch_cuda() -> None:
    for name, kernel in list(vars(native.cuda).items()):
        if callable(kernel) and name not in NO_KERNELS and not name.endswith("_workspace"):
            setattr(native.cuda, name, _watched(name, kernel, "cuda"))


def _watch_triton() -> None:
    from triton.runtime import KernelInterface

    launcher_on = KernelInterface.__getitem__

    def launch(kernel: Any, grid: Any) -> Any:
        _tell(f"triton:{kernel.__name__}")
        return launcher_on(kernel, grid)

    KernelInterface.__getitem__ = launch


if native.cpu_reason() is None:
    _watch_cpu()
if native.cuda_reason() is None:
    _watch_cuda()
if importlib.util.find_spec("triton") is not None and (INTERPRETED or torch.cuda.is_available()):
    _watch_triton()


@contextmanager
def launches(*names: str) -> Iterator[list[str]]:
    """The kernels that are launched inside the block, on any thread, in their order; refused calls do not count.

    Args:
        names: of those to look at, all by default: the CPU's by their own names, others as "cuda:name", "triton:name".
    """
    launched: list[str] = []

    def note(name: str) -> None:
        if not names or name in names:
            launched.append(name)

    _watchers.append(note)
    try:
        yield launched
    finally:
        _watchers.remove(note)


class Dispatched(TorchDispatchMode):
    """A block in which the package's ops go through PyTorch's dispatcher, derivatives among them.

    Attributes:
        calls: name and arguments of each, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == "aigc_fast":
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def profiled(function: Callable[[], Any]) -> set[str]:
    """The names of all that PyTorch's profiler sees: its operators, and our ops where they are differentiated."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        function()
    return {event.key for event in seen.key_averages()}
