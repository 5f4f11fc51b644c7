"""Weight gradients through a kernel of one pixel and a stride, where oneDNN's leave their memory."""

from __future__ import annotations

from ctypes.util import find_library

import pytest
import torch
from parity import relative_error
from test_backends import python

import aigc_fast.functional as AF

# Every allocation is looked at when it is freed.
CHECKED = find_library("c_malloc_debug")
TRAINING = """
import torch, aigc_fast.functional as AF
torch.set_num_threads(2)
for shape in ((1, 3, 50, 50), (2, 3, 100, 100), (8, 4, 64, 64)):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    w = torch.randn(48, shape[1], 1, 1, requires_grad=True)
    for _ in range(30):
        y = AF.conv2d(x, w, None, 2)
        torch.autograd.grad(y, w, torch.randn_like(y))
print("through")
"""


@pytest.mark.skipif(CHECKED is None, reason="no glibc that checks its allocations")
def test_no_other_memory_is_written_to() -> None:
    done = python(TRAINING, LD_PRELOAD=CHECKED, MALLOC_CHECK_="3")
    assert (done.returncode, done.stdout) == (0, "through\n"), done.stderr


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels_last"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [((9, 12), (2, 2), (0, 0)), ((10, 7), (1, 3), (1, 2)), ((5, 5), (3, 2), (2, 1))]
)
def test_numbers(
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    layout: torch.memory_format,
    backend: str,
) -> None:
    input = torch.randn(3, 8, *size).contiguous(memory_format=layout)
    weight = torch.randn(6, 8 // groups, 1, 1, requires_grad=True)
    output = AF.conv2d(input, weight, None, stride, padding, 1, groups)
    upstream = torch.randn_like(output)
    (found,) = torch.autograd.grad(output, weight, upstream)
    padded = torch.nn.functional.pad(input.double(), (padding[1], padding[1], padding[0], padding[0]))
    met = padded[:, :, :: stride[0], :: stride[1]].unflatten(1, (groups, -1))
    exact = torch.einsum("nglhw,ngshw->gsl", met, upstream.double().unflatten(1, (groups, -1))).flatten(0, 1)
    assert relative_error(found[:, :, 0, 0], exact) < 1e-5
