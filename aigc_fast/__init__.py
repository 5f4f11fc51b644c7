"""Drop-in native kernels that make generative PyTorch models faster: same numbers, same state_dict, sooner."""

__version__ = "0.1.0"

# First: it raises a readable error on a torch that is too old for anything below.
from aigc_fast import _native  # noqa: F401, I001
from aigc_fast import functional, nn
from aigc_fast.backends import backend

__all__ = ["backend", "functional", "nn"]
