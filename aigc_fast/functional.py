"""The twin of `torch.nn.functional`: the same names and signatures, on aigc_fast's kernels where they win."""

__all__: list[str] = []
