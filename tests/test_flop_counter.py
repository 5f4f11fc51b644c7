"""`torch.utils.flop_counter.FlopCounterMode` counts for the package's ops what it counts for PyTorch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aigc_fast import functional as F

CASES = {
    "conv1d": ("conv1d", [(2, 64, 300), (96, 64, 5)], {"stride": 2, "padding": 2}),
    "conv2d": ("conv2d", [(3, 32, 33, 31), (64, 8, 3, 3)], {"groups": 4, "dilation": 2}),
    "conv3d": ("conv3d", [(2, 16, 9, 11, 12), (32, 16, 3, 3, 3)], {"padding": 1}),
    "conv_transpose1d": ("conv_transpose1d", [(2, 64, 300), (64, 96, 5)], {"stride": 2, "output_padding": 1}),
    "conv_transpose2d": ("conv_transpose2d", [(3, 32, 33, 31), (32, 16, 4, 4)], {"stride": 2, "groups": 4}),
    "conv_transpose3d": ("conv_transpose3d", [(2, 16, 9, 11, 12), (16, 8, 3, 3, 3)], {"stride": 2}),
    "attention": ("scaled_dot_product_attention", [(2, 4, 130, 64), (2, 4, 70, 64), (2, 4, 70, 48)], {}),
    "causal attention": ("scaled_dot_product_attention", [(2, 4, 130, 64)] * 3, {"is_causal": True}),
    "grouped heads": (
        "scaled_dot_product_attention",
        [(2, 4, 130, 64), (2, 2, 130, 64), (2, 2, 130, 64)],
        {"enable_gqa": True},
    ),
}


def _count(call: Callable[..., Tensor], tensors: list[Tensor], options: dict[str, object], gradients: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        output = call(*tensors, **options)
        if gradients:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("case", CASES)
def test_counts_of_pytorch(case: str) -> None:
    name, shapes, options = CASES[case]
    tensors = [torch.randn(shape).requires_grad_() for shape in shapes]
    count = _count(getattr(F, name), tensors, options, gradients=False)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch counts none of its kernel for the CPU
        assert count == _count(getattr(TF, name), tensors, options, gradients=False) > 0
    # Each gradient of a convolution takes as much; attention's backward forms the scores anew.
    both = 3 * count
    if "scaled_dot_product" in name:
        query, key, value = shapes
        both = 2 * query[0] * query[1] * query[2] * key[2] * (4 * query[3] + 3 * value[3])
    assert _count(getattr(F, name), tensors, options, gradients=True) == both
