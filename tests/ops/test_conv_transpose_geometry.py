"""Every kernel, stride, dilation and padding: what the kernels claim of them, and what they compute, algorithm by
algorithm, over dirty memory. `make sweep` walks over all of it, `make test` over a part."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from convolution_cases import Convolution
from parity import assert_parity
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.conv_transpose import cpu
from aigc_fast.ops.conv_transpose.plan import make_plan
from aigc_fast.runtime import native

SOURCES = Path(__file__).parents[2] / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


@pytest.mark.skipif(COMPILER is None or not SOURCES.exists(), reason="no compiler or no sources")
def test_kernels_keep_what_they_claim_of_every_geometry(tmp_path: Path) -> None:
    program = tmp_path / "check"
    source = SOURCES / "check" / "conv_transpose.cpp"
    options = ["-std=gnu++20", "-O1", "-DAIGC_LEVEL=baseline", f"-I{SOURCES}"]
    subprocess.run([COMPILER, *options, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "transposed: 1024 axes" in done.stdout
    assert "plain: 344 axes" in done.stdout


class Channels(NamedTuple):
    """Sizes that lead to one algorithm.

    Attributes:
        inputs, outputs, groups: channels of the input and output, and their groups.
        batch: images.
        extra: the most pixels by which the input is larger than it must be.
    """

    inputs: int
    outputs: int
    groups: int = 1
    batch: int = 2
    extra: int = 3


CHANNELS = {
    "direct": Channels(9, 10),
    "groups": Channels(10, 18, 2),
    "windows": Channels(17, 18, 1, 3, 7),
    "windows of the weight gradient": Channels(72, 70, 1, 2, 7),
    "few inputs": Channels(3, 11),
    "few outputs": Channels(11, 3),
    "depthwise": Channels(18, 18, 18),
}
SETTINGS = list(product(range(1, 5), repeat=3))  # kernel, stride, dilation
MOST_PADDING = 4
IN_THREE_DIMENSIONS = 3000


def drawn(draw: random.Random, channels: Channels, transposed: bool, *settings: tuple[int, int, int]) -> Convolution:
    """A convolution of these kernels, strides and dilations, its padding, output_padding and size drawn."""
    axes = []
    for kernel, stride, dilation in settings:
        padding, reach = draw.randint(0, MOST_PADDING), dilation * (kernel - 1) + 1
        extra = draw.randrange(max(stride, dilation)) if transposed else 0
        # For an output of at least one pixel.
        least = -((reach + extra - 1 - 2 * padding) // stride) + 1 if transposed else reach - 2 * padding
        axes.append((max(1, least) + draw.randint(0, channels.extra), kernel, stride, padding, extra, dilation))
    of_channels = (channels.batch, channels.inputs, channels.outputs)
    return Convolution(*of_channels, *zip(*axes, strict=True), channels.groups, transposed)


def cases(algorithm: str, transposed: bool, dims: int) -> Iterator[Convolution]:
    """All settings in one dimension, all pairs of them in two, drawn ones in three, in an order that is drawn too."""
    draw = random.Random(f"{algorithm} {transposed} {dims}")
    if dims < 3:
        settings = list(product(SETTINGS, repeat=dims))
        draw.shuffle(settings)
    else:
        settings = [draw.choices(SETTINGS, k=dims) for _ in range(IN_THREE_DIMENSIONS)]
    return (drawn(draw, CHANNELS[algorithm], transposed, *of_axes) for of_axes in settings)


class Results(NamedTuple):
    """What a convolution and its backward give."""

    output: Tensor
    input_gradient: Tensor
    weight_gradient: Tensor

    @classmethod
    def of(cls, function: object, case: Convolution, input: Tensor, weight: Tensor, gradient: Tensor) -> Results:
        """By autograd."""
        leaves = [tensor.detach().requires_grad_() for tensor in (input, weight)]
        output = function(*leaves, None, **case.arguments)
        return cls(output.detach(), *torch.autograd.grad(output, leaves, gradient))


def in_channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))


def check(case: Convolution, levels: Sequence[str]) -> None:
    """Values and gradients at these levels, in float32 and bfloat16, in both layouts."""
    ours, theirs = getattr(AF, case.function), case.peer
    # Values of bfloat16, so that both dtypes have the same exact results.
    input, weight, _ = (tensor.float() for tensor in case.tensors(torch.bfloat16))
    shape = (case.batch, case.channels_out, *(axis[0 if case.transposed else 1] for axis in case.axes))
    gradient = torch.randn(shape).bfloat16().float()
    exact = Results.of(theirs, case, *(tensor.double() for tensor in (input, weight, gradient)))
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [tensor.to(dtype) for tensor in (input, weight, gradient)]
        peer = Results.of(theirs, case, *tensors)
        for layout, level in product((torch.Tensor.contiguous, in_channels_last), levels):
            first, second, third = tensors
            given = layout(first), second, layout(third)
            with native.use_level(level), aigc_fast.backend("cpu"):
                # What working memory holds from here is NaN.
                Results.of(ours, case, *(torch.full_like(tensor, torch.nan) for tensor in given))
                found = Results.of(ours, case, *given)
            for name, *values in zip(Results._fields, found, peer, exact, strict=True):
                assert_parity(*values, f"{case}, {dtype}, {level}, {layout.__name__}: {name}")


def forward_algorithm(case: Convolution) -> int:
    tensors = [tensor.to("meta") for tensor in case.tensors()[:2]]
    sizes = [tuple(axis[i] for axis in case.axes) for i in (3, 4, 5)]
    output_padding = case.output_padding if case.transposed else (0,) * len(case.size)
    shapes = [tuple(tensor.shape) for tensor in tensors]
    plan = make_plan(*shapes, None, *sizes[:2], output_padding, sizes[2], case.groups, case.transposed)
    return cpu.forward_algorithm(*(torch.empty(shape) for shape in shapes), plan)


# Of each kind so many in `make test`.
PART = {1: 12, 2: 12, 3: 6}
KINDS = [
    pytest.param(algorithm, transposed, dims, id=f"{algorithm}-{'transposed' if transposed else 'plain'}-{dims}d")
    for algorithm, transposed, dims in product(CHANNELS, (True, False), (1, 2, 3))
]


@needs_native
@pytest.mark.parametrize(("algorithm", "transposed", "dims"), KINDS)
def test_a_part_of_the_sweep_on_every_level(algorithm: str, transposed: bool, dims: int) -> None:
    for case in islice(cases(algorithm, transposed, dims), PART[dims]):
        check(case, native.levels())


@needs_native
@pytest.mark.sweep
@pytest.mark.parametrize(("algorithm", "transposed", "dims"), KINDS)
def test_the_sweep(algorithm: str, transposed: bool, dims: int) -> None:
    # Of more than one dimension in turn, as levels differ in their vectors alone.
    for case, level in zip(cases(algorithm, transposed, dims), cycle(native.levels()), strict=False):
        check(case, native.levels() if dims == 1 else [level])


@needs_native
def test_the_sweep_meets_every_algorithm() -> None:
    met = {forward_algorithm(case) for name in CHANNELS for kind in (True, False) for case in cases(name, kind, 2)}
    assert met >= {cpu.DIRECT, cpu.WINOGRAD, cpu.NARROW, cpu.COL2IM, cpu.DEPTHWISE}
