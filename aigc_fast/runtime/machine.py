"""The machine, as measurements name it, and its memory."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache

import torch

from aigc_fast.runtime import native

_CONTAINER_LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
_ASSUMED_BYTES = 8 << 30


@cache
def processor_name() -> str:
    """The processor's marketing name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def is_intels() -> bool:
    """Whether the processor is one of Intel's."""
    return "Intel" in processor_name()


@cache
def device_name(device: torch.device) -> str:
    """The device as measurements name it: a card by what it is, with its compute capability; others by their type."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} {major}.{minor}"


def description() -> dict[str, str | int]:
    """What figures depend on, JSON-able."""
    # The package imports this module before it has all of its names.
    from aigc_fast import __version__

    return {
        "processor": processor_name(),
        "level": native.level() or "none",
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "aigc_fast": __version__,
        "system": platform.system(),
    }


def machine_bytes() -> int:
    """The machine's memory, or the container's where that is less."""
    found = [_ASSUMED_BYTES]
    with suppress(AttributeError, ValueError, OSError):  # not every system tells
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError), open(path, encoding="ascii") as file:  # "max" is no limit
            found.append(int(file.read()))
    return min(found)
