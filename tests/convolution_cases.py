"""Shapes of convolutions, transposed and not, shared by the tests and by bench/."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def _each(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * dims


@dataclass(frozen=True)
class Convolution:
    """One geometry of a convolution or, with `transposed`, of a transposed one.

    Attributes:
        batch, channels_in, channels_out: sizes of the input and output.
        size: the input's spatial size.
        kernel, stride, padding, output_padding, dilation: one number for every dimension, or one for each.
    """

    batch: int
    channels_in: int
    channels_out: int
    size: tuple[int, ...]
    kernel: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    output_padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    transposed: bool = True

    @property
    def function(self) -> str:
        """The name in `torch.nn.functional` and `aigc_fast.functional`."""
        return f"conv{'_transpose' if self.transposed else ''}{len(self.size)}d"

    @property
    def axes(self) -> list[tuple[int, ...]]:
        """Size of the larger and of the smaller map, kernel, stride, padding and dilation along each dimension."""
        dims = len(self.size)
        values = (self.kernel, self.stride, self.padding, self.output_padding, self.dilation)
        found = []
        for n, k, s, p, o, d in zip(self.size, *(_each(value, dims) for value in values), strict=True):
            reach = d * (k - 1) + 1
            maps = ((n - 1) * s - 2 * p + reach + o, n) if self.transposed else (n, (n + 2 * p - reach) // s + 1)
            found.append((*maps, k, s, p, d))
        return found

    @property
    def padding_garbles(self) -> bool:
        """Whether oneDNN's weight gradient, which is PyTorch's, may leave garbage, write beyond its memory or hang."""

        def has_idle_tap(large: int, small: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
            starts = [pixel * stride - padding for pixel in range(small)]
            return any(all(not 0 <= start + tap * dilation < large for start in starts) for tap in range(kernel))

        padded = any(padding for *_, padding, _ in self.axes)
        return (len(self.size) == 3 and padded) or any(has_idle_tap(*axis) for axis in self.axes)

    @property
    def peer(self) -> Callable[..., Tensor]:
        """PyTorch's function; where its gradients must not be asked for, on a larger map that holds the padding."""
        function = getattr(torch.nn.functional, self.function)
        if not self.padding_garbles:
            return function
        sides = [side for *_, padding, _ in reversed(self.axes) for side in (padding, padding)]

        def on_padded_map(input: Tensor, *tensors: Tensor | None, padding: Any, **arguments: Any) -> Tensor:
            if not self.transposed:
                return function(torch.nn.functional.pad(input, sides), *tensors, **arguments)
            return torch.nn.functional.pad(function(input, *tensors, **arguments), [-side for side in sides])

        return on_padded_map

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the functional."""
        found = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return {**found, "output_padding": self.output_padding} if self.transposed else found

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """Input, weight (scaled so that outputs are of order one) and bias."""
        kernel = _each(self.kernel, len(self.size))
        first, second = self.channels_in, self.channels_out
        if not self.transposed:
            first, second = second, first
        weight = torch.randn(first, second // self.groups, *kernel)
        fan_in = self.channels_in // self.groups * math.prod(kernel)
        input = torch.randn(self.batch, self.channels_in, *self.size)
        bias = torch.randn(self.channels_out)
        return input.to(dtype), (weight / math.sqrt(fan_in)).to(dtype), bias.to(dtype)

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        text = f"{self.function}-{self.batch}.{self.channels_in}.{self.channels_out}.{size}"
        shown = {"k": self.kernel, "s": self.stride, "p": self.padding, "op": self.output_padding, "d": self.dilation}
        for name, value in {**shown, "g": self.groups}.items():
            text += f"-{name}{value}".replace("(", "").replace(")", "").replace(", ", ".")
        return text


TRANSPOSED = [
    # The layers that the kernels were written for, narrowed.
    Convolution(3, 17, 113, (1, 1), 4, 1, 0),
    Convolution(3, 32, 24, (8, 8), 4, 2, 1),
    Convolution(1, 113, 17, (4, 4), 4, 2, 1),
    Convolution(3, 17, 3, (16, 16), 4, 2, 1),
    Convolution(3, 64, 1, (7, 7), 5, 2, 2, 1),
    Convolution(3, 17, 32, (7, 7), 5, 2, 2, 1),
    Convolution(3, 33, 16, (4, 4), 3, 2, 1, 1),
    Convolution(1, 24, 16, (9, 9), 2, 2),
    Convolution(1, 17, 24, (40,), 16, 8, 4),
    Convolution(1, 16, 8, (113,), 4, 2, 1),
    Convolution(1, 17, 8, (3, 4, 5), 4, 2, 1),
    # Ugly ones.
    Convolution(1, 1, 1, (1,), 1),
    Convolution(3, 3, 1, (17,), 7, 3, 2, 1),
    Convolution(1, 113, 1, (3,), 5, 4, 0, 3, 1),
    Convolution(3, 1, 17, (5, 3), (3, 2), (1, 4), (2, 0), (0, 3)),
    Convolution(1, 3, 17, (6, 5), 3, 2, 1, 1, 2),
    Convolution(3, 12, 18, (5, 7), (4, 3), (2, 3), 1, (1, 0), 1, 3),
    Convolution(3, 17, 17, (6, 6), 4, 2, 1, groups=17),
    Convolution(1, 5, 10, (7, 4), 3, 1, 1, groups=5),
    Convolution(1, 3, 3, (2, 3, 2), (1, 2, 3), (2, 1, 2), (0, 1, 1), (1, 0, 1), (1, 1, 2)),
    Convolution(1, 17, 3, (2, 5, 3), 3, 1, 1),
    Convolution(3, 17, 3, (9, 1), 7, 1, 3),
    Convolution(3, 4, 6, (5, 5), 2, 4, 0, 3, groups=2),
    Convolution(2, 3, 5, (4, 3), 3, (1, 2), 1, (2, 2), (3, 3)),
    # Few output channels, in many bands and columns.
    Convolution(1, 9, 2, (70, 66), 4, 2, 1),
    Convolution(2, 200, 5, (6, 45), (7, 3), (2, 1), (3, 1)),
    Convolution(1, 19, 7, (5, 6, 9), 4, 2, 1),
    # Enough tiles and channels for Winograd windows, with tiles and panels that do not come out even.
    Convolution(1, 17, 24, (97,), 4, 2, 1),
    Convolution(1, 16, 17, (5, 6, 7), 4, 2, 1),
    Convolution(2, 17, 19, (13, 11), 6, 2, 2),
    Convolution(2, 36, 34, (9, 11), 4, 2, 0, 1, groups=2),
    # The same where the phases have unlike numbers of taps.
    Convolution(3, 33, 36, (14, 12), 5, 2, 2, 1),
    Convolution(3, 32, 33, (13, 16), 5, 2, 1),
    Convolution(3, 34, 32, (15, 14), 3, 2, 0),
    Convolution(1, 33, 32, (5, 8, 6), 3, 2, 1, 1),
    # Few output channels, whose lines read far beyond their ends or start inside.
    Convolution(2, 16, 4, (5, 100), (4, 9), (2, 1), (3, 0)),
    Convolution(1, 12, 2, (7, 41), 5, 2, 5, 1),
    # Windows along one dimension, while along another dilation drives the phases of a window apart.
    Convolution(2, 17, 24, (9, 16), 2, (2, 1), (0, 1), 0, (3, 1)),
    Convolution(2, 24, 17, (7, 13), (3, 4), (3, 2), (1, 0), 0, (2, 1)),
    # One channel per group, in several vectors, tiles and phases.
    Convolution(2, 70, 70, (9, 140), 4, 2, 1, groups=70),
    Convolution(1, 33, 33, (5, 7, 6), (3, 2, 5), (1, 2, 1), 1, dilation=(1, 3, 2), groups=33),
]

PLAIN = [
    Convolution(3, 1, 64, (28, 28), 5, 1, 2, transposed=False),
    Convolution(3, 17, 24, (14, 14), 5, 2, 2, transposed=False),
    Convolution(1, 113, 17, (8, 8), 4, 2, 1, transposed=False),
    Convolution(3, 32, 3, (9, 11), 3, 1, 1, transposed=False),
    Convolution(3, 17, 1, (7, 7), 3, 1, 1, transposed=False),
    Convolution(3, 24, 33, (5, 6), 1, transposed=False),
    Convolution(3, 12, 18, (9, 7), (4, 3), (2, 3), 1, dilation=(1, 2), groups=3, transposed=False),
    Convolution(1, 17, 17, (9, 9), 3, 2, 1, groups=17, transposed=False),
    Convolution(1, 17, 8, (113,), 7, 3, 2, dilation=2, transposed=False),
    Convolution(3, 1, 1, (1,), 1, transposed=False),
    Convolution(1, 3, 17, (4, 5, 6), (1, 2, 3), (2, 1, 2), (0, 1, 1), transposed=False),
    Convolution(2, 33, 17, (13, 11), 3, 1, 1, transposed=False),
    Convolution(2, 16, 24, (5, 9, 8), 3, 1, 1, transposed=False),
    Convolution(2, 34, 36, (12, 10), 4, 2, 1, groups=2, transposed=False),
    Convolution(1, 17, 16, (100,), 6, 3, 1, transposed=False),
    Convolution(3, 33, 36, (26, 25), 5, 2, 2, transposed=False),
    Convolution(3, 36, 33, (25, 26), 5, 2, 1, transposed=False),
    Convolution(3, 32, 34, (27, 25), 3, 2, 0, transposed=False),
    Convolution(1, 33, 32, (9, 12, 10), 3, 2, 1, transposed=False),
    # Enough for the weight gradient too, whose windows have to save more.
    Convolution(2, 146, 140, (13, 16), 3, 1, 1, groups=2, transposed=False),
    Convolution(1, 33, 32, (6, 8, 7), 3, 1, 1, transposed=False),
    Convolution(2, 72, 65, (23, 25), 5, 2, 2, transposed=False),
    Convolution(2, 90, 96, (36, 34), 4, 2, 1, transposed=False),
    Convolution(2, 40, 6, (3, 20, 33), 3, 1, 2, dilation=2, transposed=False),
    # One channel per group, in several vectors and tiles.
    Convolution(2, 70, 70, (150, 31), 7, 1, 3, groups=70, transposed=False),
    Convolution(1, 33, 33, (700,), 31, 1, 15, groups=33, transposed=False),
    Convolution(3, 64, 64, (21, 18), (5, 3), 2, (2, 1), groups=64, transposed=False),
    Convolution(2, 19, 19, (5, 9, 8), (3, 1, 4), (1, 3, 1), 1, dilation=(2, 1, 1), groups=19, transposed=False),
]

FEW_CONVOLUTIONS = [*(TRANSPOSED[i] for i in (1, 14, 16, 18, 22, 29, 30)), *(PLAIN[i] for i in (1, 6, 13))]

# In Triton's interpreter each tap of a block of pixels takes some milliseconds.
INTERPRETED_CONVOLUTIONS = [
    TRANSPOSED[14],
    TRANSPOSED[18],
    Convolution(1, 3, 3, (2, 3, 2), (1, 2, 3), (2, 1, 2), (0, 1, 1), (1, 0, 1), (1, 1, 2)),
    Convolution(2, 3, 5, (4, 3), 3, (1, 2), 1, (2, 2), (3, 3)),
    Convolution(2, 20, 3, (50,), 6, 4, 1, 3, 2),
    Convolution(1, 17, 8, (113,), 7, 3, 2, dilation=2, transposed=False),
    Convolution(3, 24, 33, (5, 6), 1, transposed=False),
    Convolution(1, 3, 17, (4, 5, 6), (1, 2, 3), (2, 1, 2), (0, 1, 1), transposed=False),
    Convolution(1, 3, 3, (9, 9), 3, 2, 1, groups=3, transposed=False),
]

# What bench/ times: generators, vocoders, decoders and U-Nets as they are met, and a discriminator's layers.
LAYERS = {
    "DCGAN 100 to 512, 1x1": Convolution(16, 100, 512, (1, 1), 4),
    "DCGAN 512 to 256, 4x4, batch 1": Convolution(1, 512, 256, (4, 4), 4, 2, 1),
    "DCGAN 512 to 256, 4x4": Convolution(16, 512, 256, (4, 4), 4, 2, 1),
    "DCGAN 256 to 128, 8x8": Convolution(16, 256, 128, (8, 8), 4, 2, 1),
    "DCGAN 128 to 64, 16x16": Convolution(16, 128, 64, (16, 16), 4, 2, 1),
    "DCGAN 64 to 3, 32x32": Convolution(16, 64, 3, (32, 32), 4, 2, 1),
    "digits 128 to 64, 7x7": Convolution(64, 128, 64, (7, 7), 5, 2, 2, 1),
    "digits 64 to 1, 14x14": Convolution(64, 64, 1, (14, 14), 5, 2, 2, 1),
    "HiFi-GAN 128 to 64, 5120": Convolution(1, 128, 64, (5120,), 4, 2, 1),
    "U-Net 256 to 128, 64x64": Convolution(1, 256, 128, (64, 64), 2, 2),
    "video 64 to 32, 8x16x16": Convolution(1, 64, 32, (8, 16, 16), 4, 2, 1),
    "discriminator 1 to 64, 28x28": Convolution(64, 1, 64, (28, 28), 5, 1, 2, transposed=False),
    "discriminator 64 to 128, 28x28": Convolution(64, 64, 128, (28, 28), 5, 2, 2, transposed=False),
}
