"""Drop-in native kernels that make generative PyTorch models faster: same numbers, same state_dict, sooner."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if sys.argv[:1] == ["-m"] and "aigc_fast.cli" in sys.orig_argv:  # whose parent this is, imported before its own code
    from aigc_fast_cli import end_at_interruptions

    end_at_interruptions()

__version__ = "0.1.0"

# First: it raises a readable error on a torch that is too old for anything below.
from aigc_fast.runtime import native  # noqa: F401, I001
from aigc_fast import functional, nn
from aigc_fast.runtime.backends import backend
from aigc_fast.runtime.tuning import tuning
from aigc_fast.diagnostics import explain, info
from aigc_fast.optimize import optimize, report, restore

if TYPE_CHECKING:
    from aigc_fast import models
    from aigc_fast.profiling import profile

__all__ = [
    "__version__",
    "backend",
    "explain",
    "functional",
    "info",
    "models",
    "nn",
    "optimize",
    "profile",
    "report",
    "restore",
    "tuning",
]


def __getattr__(name: str) -> object:
    if name == "models":
        return importlib.import_module("aigc_fast.models")
    if name == "profile":
        return importlib.import_module("aigc_fast.profiling").profile
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
