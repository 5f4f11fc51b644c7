"""Drop-in native kernels that make generative PyTorch models faster: same numbers, same state_dict, sooner."""

__version__ = "0.1.0"
