"""Shapes, dtypes and tolerances of every op, shared by the tests and by bench/."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import aigc_fast.functional as AF
from aigc_fast.runtime.activations import FUNCTIONS, name_and_slope

# Relative error below which two results are the same in that format, whatever PyTorch's own error is.
FLOORS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
# How many roundings of its inputs a result may be off.
ROUNDINGS = 8
# Of a gradient of fewer most may cancel out, or roundings be lucky: its error is that of all gradients together.
FEW_NUMBERS = 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def relative_error(value: Tensor, reference: Tensor) -> float:
    """The Frobenius norm of the difference over the reference's, in float64."""
    value, reference = value.detach().double(), reference.detach().double()
    return ((value - reference).norm() / reference.norm().clamp_min(1e-30)).item()


def assert_parity(
    ours: Tensor,
    theirs: Tensor,
    reference: Tensor,
    name: str = "output",
    nearby: Tensor | None = None,
    floor: float | None = None,
) -> None:
    """Ours may be at most twice as far from float64 as PyTorch is, with a floor at the format's own rounding.

    Args:
        ours, theirs, reference: results; the reference's in float64.
        name: for the message.
        nearby: the reference of inputs that are a rounding of float32 away, where results are ill-conditioned: ours
            may be some such roundings off.
        floor: in place of FLOORS.
    """
    assert ours.shape == theirs.shape, f"{name}: shape {tuple(ours.shape)}, PyTorch's is {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype}, PyTorch's is {theirs.dtype}"
    if not ours.numel():
        return
    found, allowed = relative_error(ours, reference), relative_error(theirs, reference)
    limit = max(2 * allowed, FLOORS[ours.dtype] if floor is None else floor)
    if nearby is not None:
        limit = max(limit, ROUNDINGS * relative_error(nearby, reference))
    assert found <= limit, f"{name}: error {found:.2e} against float64, PyTorch's own is {allowed:.2e}"


@contextmanager
def float32_precision(level: str) -> Iterator[None]:
    """Sets PyTorch's switch inside a `with` block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def opcheck(op: torch._ops.OpOverload, arguments: tuple[Any, ...]) -> None:
    """`torch.library.opcheck`, whose own warnings, other ones in every version of torch, are no faults of the op."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(op, arguments)


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


@dataclass(frozen=True)
class Attention:
    """One call of scaled_dot_product_attention.

    Attributes:
        batch, heads, queries, keys, size: sizes.
        value_size: of a value, `size` by default.
        kv_heads: heads of key and value, `heads` by default.
        causal, window, alignment: as the function takes them.
        mask: a key of `MASKS`.
        scale: of the scores; 1 with wide heads makes rows in which one key has nearly all.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    size: int
    value_size: int | None = None
    kv_heads: int | None = None
    causal: bool = False
    window: int | tuple[int | None, int | None] | None = None
    alignment: str = "upper_left"
    mask: str = "none"
    scale: float | None = None

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Query, key and value."""
        groups = self.kv_heads or self.heads
        shapes = (
            (self.batch, self.heads, self.queries, self.size),
            (self.batch, groups, self.keys, self.size),
            (self.batch, groups, self.keys, self.value_size or self.size),
        )
        return [torch.randn(shape).to(dtype) for shape in shapes]

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments, a random mask among them."""
        return {
            "attn_mask": MASKS[self.mask](self),
            "is_causal": self.causal,
            "enable_gqa": self.kv_heads is not None,
            "window": self.window,
            "alignment": self.alignment,
            "scale": self.scale,
        }

    def expected(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None
    ) -> Tensor:
        """PyTorch's attention under one mask that holds everything."""
        offset = self.keys - self.queries if self.alignment == "lower_right" else 0
        distance = torch.arange(self.keys) - torch.arange(self.queries)[:, None] - offset
        left, right = self.window if isinstance(self.window, tuple) else (self.window, self.window)
        seen = torch.ones(self.queries, self.keys, dtype=torch.bool)
        seen &= distance <= 0 if self.causal else seen
        seen &= distance >= -left if left is not None else seen
        seen &= distance <= right if right is not None else seen
        whole = torch.zeros(self.batch, self.heads, self.queries, self.keys, dtype=query.dtype)
        if mask is not None:
            whole = whole.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else whole + mask.to(query.dtype)
        whole = whole.masked_fill(~seen, -math.inf)
        key, value = (t.repeat_interleave(self.heads // t.shape[1], dim=1) for t in (key, value))
        # Of PyTorch's kernels this one alone has a second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            scale = self.scale if scale is None else scale
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=whole, scale=scale)

    def __str__(self) -> str:
        text = f"{self.batch}.{self.heads}.{self.queries}.{self.keys}.{self.size}"
        shown = {"v": self.value_size, "kv": self.kv_heads, "w": self.window, "mask-": self.mask, "scale": self.scale}
        for name, value in shown.items():
            text += f"-{name}{value}".replace(" ", "") if value not in (None, "none") else ""
        return text + ("-causal" if self.causal else "") + ("-lower_right" if self.alignment == "lower_right" else "")


def _padding(a: Attention) -> Tensor:
    lengths = torch.arange(a.batch) * a.keys // max(1, a.batch)
    return (torch.arange(a.keys) < (a.keys - lengths)[:, None])[:, None, None]


# Every kind of mask, by how it is broadcast; "blind" hides all keys from some queries, "blocks" from whole blocks.
MASKS = {
    "none": lambda a: None,
    "bool": lambda a: torch.rand(a.batch, a.heads, a.queries, a.keys) < 0.7,
    "rows": lambda a: torch.rand(a.queries, a.keys) < 0.7,
    "padding": _padding,
    "padding, expanded": lambda a: _padding(a).expand(a.batch, a.heads, a.queries, a.keys),
    "head": lambda a: torch.rand(a.heads, 1, a.keys) < 0.5,
    "query": lambda a: (torch.arange(a.queries) % 3 > 0)[:, None],
    "blind": lambda a: (torch.rand(a.batch, 1, a.queries, a.keys) < 0.5) & (torch.arange(a.queries) % 4 > 0)[:, None],
    "blocks": lambda a: torch.arange(a.queries)[:, None] // 50 == torch.arange(a.keys) // 50,
    "strided": lambda a: torch.rand(a.keys, a.queries).t() < 0.7,
    "float": lambda a: torch.randn(a.heads, a.queries, a.keys),
    "float, -inf": lambda a: torch.randn(a.queries, a.keys).masked_fill(torch.rand(a.queries, a.keys) < 0.3, -math.inf),
    "float row": lambda a: torch.randn(a.batch, 1, 1, a.keys),
}

ATTENTIONS = [
    Attention(2, 3, 17, 23, 16),
    Attention(1, 2, 113, 130, 64, causal=True),
    Attention(1, 1, 200, 150, 40, causal=True),
    Attention(1, 2, 70, 300, 24, causal=True, alignment="lower_right"),
    Attention(2, 6, 67, 67, 8, kv_heads=2, causal=True),
    Attention(1, 8, 5, 301, 64, kv_heads=2, causal=True, alignment="lower_right"),
    Attention(1, 4, 150, 150, 33, window=20),
    Attention(1, 2, 700, 700, 16, window=(63, 0)),
    Attention(1, 2, 90, 40, 16, window=(None, 5), alignment="lower_right"),
    Attention(2, 3, 65, 129, 17, value_size=5),
    Attention(1, 2, 31, 33, 1, value_size=300),
    Attention(1, 1, 20, 50, 1000),
    *(Attention(2, 2, 120, 140, 16, mask=mask) for mask in MASKS if mask != "none"),
    Attention(2, 4, 100, 100, 16, kv_heads=2, causal=True, mask="bool"),
    Attention(1, 2, 90, 110, 16, window=(10, 30), mask="float, -inf"),
    Attention(2, 4, 45, 45, 16, kv_heads=1, mask="head"),
    # Few queries: decoding.
    Attention(2, 3, 1, 1, 64),
    Attention(1, 2, 1, 1500, 64),
    Attention(2, 8, 1, 333, 128, kv_heads=2),
    Attention(1, 3, 1, 130, 17, value_size=5, kv_heads=1, mask="padding"),
    Attention(2, 2, 2, 600, 40, causal=True, alignment="lower_right"),
    Attention(1, 4, 1, 300, 32, kv_heads=1, window=(100, 0), alignment="lower_right", mask="bool"),
    Attention(2, 2, 3, 140, 16, mask="float"),
    Attention(2, 2, 4, 140, 16, mask="blind"),
]

FEW_ATTENTIONS = [ATTENTIONS[i] for i in (0, 1, 4, 5, 9, 12, 16, 25, -7, -3)]

# What bench/ times: prefill, vision, masks, windows and decoding with a cache as language models meet them.
ATTENTION_CALLS = {
    "prefill of 128": Attention(1, 12, 128, 128, 64, causal=True),
    "prefill of 1024": Attention(1, 12, 1024, 1024, 64, causal=True),
    "prefill of 2048, grouped heads": Attention(1, 32, 2048, 2048, 128, kv_heads=8, causal=True),
    "vision, 256": Attention(4, 6, 256, 256, 64),
    "padded batch of 1024": Attention(4, 12, 1024, 1024, 64, mask="padding, expanded"),
    "window of 256 in 4096": Attention(1, 12, 4096, 4096, 64, window=(255, 0)),
    "decoding at 1024": Attention(1, 12, 1, 1024, 64),
    "decoding at 8192, grouped heads": Attention(1, 32, 1, 8192, 128, kv_heads=8),
}


@dataclass(frozen=True)
class Batch:
    """One call of varlen_attn, of sequences by their lengths.

    Attributes:
        queries, keys: the lengths.
        heads, kv_heads, size, value_size: sizes.
        window: (left, right).
        scale: of the scores.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int = 2
    kv_heads: int = 2
    size: int = 16
    value_size: int = 16
    window: tuple[int, int] = (-1, -1)
    scale: float | None = None

    def __str__(self) -> str:
        lengths = ("-".join(map(str, lengths)) for lengths in (self.queries, self.keys))
        text = f"{'.'.join(lengths)}-h{self.heads}.{self.kv_heads}-{self.size}.{self.value_size}"
        return text + f"-w{self.window[0]}.{self.window[1]}" + ("" if self.scale is None else f"-scale{self.scale}")

    def bounds(self, dtype: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
        return tuple(torch.tensor([0, *accumulate(lengths)], dtype=dtype) for lengths in (self.queries, self.keys))

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        queries, keys = sum(self.queries), sum(self.keys)
        shapes = (
            (queries, self.heads, self.size),
            (keys, self.kv_heads, self.size),
            (keys, self.kv_heads, self.value_size),
        )
        return [torch.randn(shape).to(dtype) for shape in shapes]

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `varlen_attn`."""
        return {"window_size": self.window, "enable_gqa": self.heads != self.kv_heads, "scale": self.scale}

    def ours(self, *tensors: Tensor) -> Tensor:
        bounds = (bound.to(tensors[0].device) for bound in self.bounds())
        return AF.varlen_attn(*tensors, *bounds, **self.arguments())

    def expected(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        left, right = (None if side < 0 else side for side in self.window)
        outputs, first, first_key = [], 0, 0
        for queries, keys in zip(self.queries, self.keys, strict=True):
            one = Attention(
                1,
                self.heads,
                queries,
                keys,
                self.size,
                self.value_size,
                self.kv_heads,
                window=(left, right),
                alignment="lower_right",
            )
            parts = (
                query[first : first + queries],
                key[first_key : first_key + keys],
                value[first_key : first_key + keys],
            )
            if queries:
                found = one.expected(*(part.transpose(0, 1).unsqueeze(0) for part in parts), None, self.scale)
                outputs.append(found.squeeze(0).transpose(0, 1))
            first, first_key = first + queries, first_key + keys
        return torch.cat(outputs)


LENGTHS = (5, 0, 130, 17, 1, 40)
BATCHES = [
    Batch(LENGTHS, LENGTHS),
    Batch(LENGTHS, LENGTHS, window=(-1, 0)),
    Batch((1, 1, 4, 1), (70, 300, 9, 1), heads=6, window=(-1, 0)),
    Batch((3, 60, 8), (3, 60, 80), heads=6, window=(-1, 0)),
    Batch((40, 3, 90), (20, 200, 90), heads=4, size=24, value_size=40, window=(30, 5)),
    Batch((260, 3, 5, 9, 2), (260, 3, 5, 9, 2), window=(-1, 0)),
    Batch((7, 33), (7, 0)),
    Batch((50,), (50,), heads=1, kv_heads=1, size=5, value_size=3),
    # Rows in which one key has nearly all the weight.
    Batch((1, 2, 5), (100, 257, 64), heads=6, size=80, value_size=24, window=(-1, 0), scale=1.0),
    Batch((3, 1), (64, 7), size=193, value_size=1, scale=1.0),
]


@dataclass(frozen=True)
class Recursion:
    """One shape of an all-pole recursion.

    Attributes:
        batch, length, order: B, T and p.
        kind: of the coefficients: "shared" (p,), "series" (B, p) or "varying" (B, T, p).
        state: whether there are values before the first step.
    """

    batch: int
    length: int
    order: int
    kind: str = "shared"
    state: bool = False

    def __str__(self) -> str:
        return f"{self.batch}.{self.length}.{self.order}-{self.kind}" + ("-state" if self.state else "")

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """x, the coefficients and, where there is one, the state."""
        lead = {"shared": (), "series": (self.batch,), "varying": (self.batch, self.length)}[self.kind]
        shapes = [(self.batch, self.length), (*lead, self.order), *([(self.batch, self.order)] if self.state else [])]
        x, coeffs, *state = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
        if self.kind == "varying":
            # Poles that stay near each other: a product of steps that have nothing in common grows.
            coeffs = coeffs[:, :1] + 0.02 * coeffs
        return [tensor.to(dtype) for tensor in (x, stable_coeffs(coeffs), *state)]


def stable_coeffs(seeds: Tensor, radius: float = 0.9) -> Tensor:
    """Coefficients (..., p) of poles within the radius, in pairs, and their mean where the order is odd."""
    order = seeds.shape[-1]
    angles = 0.2 + 2.8 * torch.sigmoid(seeds[..., : order // 2])
    radii = radius * torch.sigmoid(2 * seeds[..., order // 2 : order // 2 * 2] + 1)
    polynomial = torch.ones(*seeds.shape[:-1], 1, dtype=seeds.dtype)
    factors = [
        torch.stack([torch.ones_like(r), -2 * r * a.cos(), r * r], -1)
        for r, a in zip(radii.unbind(-1), angles.unbind(-1), strict=True)
    ]
    if order % 2:
        factors.append(torch.stack([torch.ones_like(seeds[..., 0]), seeds[..., 0].tanh() * 0.5], -1))
    for factor in factors:
        grown = polynomial.shape[-1] + factor.shape[-1] - 1
        product = polynomial.new_zeros(*seeds.shape[:-1], grown)
        for i in range(factor.shape[-1]):
            product[..., i : i + polynomial.shape[-1]] += factor[..., i : i + 1] * polynomial
        polynomial = product
    return -polynomial[..., 1:]


RECURSIONS = [
    Recursion(1, 1, 1),
    Recursion(3, 17, 2, state=True),
    Recursion(2, 113, 3, "series"),
    Recursion(5, 130, 6, "series", True),
    Recursion(64, 300, 7),
    Recursion(9, 64, 24, state=True),
    Recursion(19, 257, 8, "series", True),
    Recursion(2, 5, 9, state=True),
    # Long enough to be cut into parts.
    Recursion(1, 5000, 2, state=True),
    Recursion(1, 20_011, 16),
    Recursion(2, 9000, 30, "series", True),
    Recursion(3, 4097, 5, "series"),
    Recursion(1, 3000, 70, state=True),
    # Of every step.
    Recursion(1, 1, 1, "varying"),
    Recursion(2, 5, 9, "varying", True),
    Recursion(3, 83, 1, "varying", True),
    Recursion(2, 700, 7, "varying"),
    Recursion(4, 301, 22, "varying", True),
    Recursion(1, 1000, 40, "varying", True),
]

# Random numbers: around the width of a vector, of a step and of a tile.
RANDOM_SIZES = [1, 3, 17, 31, 32, 113, 1023, 1025, 100_003]

# mu and logvar: rows shorter and longer than a vector and a tile, and not a multiple of a Philox block.
LATENTS = [(1, 17), (113,), (64, 2), (128, 20), (7, 113), (3, 1023), (2, 3, 5, 7), (1, 3000), (2, 5001), (1025, 1)]

# What bench/ times: a discriminator's feature maps, a Transformer's residual, a small hidden layer; latents of
# variational auto-encoders from two dimensions to an image's.
DROPOUTS = {"feature maps": ((64, 64, 28, 28), 0.3), "residual": ((4, 256, 768), 0.1), "small": ((64, 128), 0.5)}
BENCH_LATENTS = {"latent2": (64, 2), "mlp20": (128, 20), "wide512": (64, 512), "sd64": (16, 4, 64, 64)}


@dataclass(frozen=True)
class Norm:
    """A norm and the activation that follows.

    Attributes:
        function: "group_norm", "instance_norm" or "layer_norm".
        shape: of the input.
        sizes: the number of groups, or the dimensions at the end that share a mean.
        affine: how many of weight and bias there are.
        activation: as the functions take it.
    """

    function: str
    shape: tuple[int, ...]
    sizes: int = 1
    affine: int = 2
    activation: Any = None

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return self.shape[-self.sizes :] if self.function == "layer_norm" else self.shape[1:2]

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Input, weight and bias, the first off zero by more than its deviation."""
        parameters = [torch.randn(self.parameter_shape) for _ in range(self.affine)]
        return [tensor.to(dtype) for tensor in (torch.randn(self.shape) + 3, *parameters)]

    def call(self, home: Any, input: Tensor, *affine: Tensor, **more: Any) -> Tensor:
        """The function of this name in a module, with its further arguments."""
        options = {**dict(zip(("weight", "bias"), affine, strict=False)), "eps": 1e-3, **more}
        if self.function == "instance_norm":
            return home.instance_norm(input, **options)
        if self.function == "layer_norm":
            return home.layer_norm(input, self.parameter_shape, **options)
        return home.group_norm(input, self.sizes, **options)

    def ours(self, *tensors: Tensor) -> Tensor:
        return self.call(AF, *tensors, activation=self.activation)

    def theirs(self, *tensors: Tensor) -> Tensor:
        name, slope = name_and_slope(self.activation)
        return FUNCTIONS[name](self.call(torch.nn.functional, *tensors), slope)

    def __str__(self) -> str:
        activation = str(self.activation).strip("()").replace("'", "").replace(", ", "-")
        return f"{'x'.join(map(str, self.shape))}-{self.sizes}-{self.affine}-{activation}"


# Whole vectors and parts of them, one pixel, planes and groups beyond a block, few groups of many elements; every
# activation.
NORMS = [
    Norm("group_norm", (2, 6, 5, 3), 3, 2, "silu"),
    Norm("group_norm", (3, 32), 4, 2, "gelu"),
    Norm("group_norm", (2, 17, 113), 1, 1, "tanh"),
    Norm("group_norm", (1, 4, 1, 1023), 2, 0, ("leaky_relu", 0.2)),
    Norm("group_norm", (1, 3, 70, 97), 1, 2, "gelu_tanh"),
    Norm("group_norm", (2, 40, 3, 5, 4), 8, 2, "sigmoid"),
    Norm("group_norm", (5, 64, 8, 8), 32),
    Norm("instance_norm", (2, 6, 5, 3), 1, 2, "relu"),
    Norm("instance_norm", (3, 2, 1023), 1, 0),
    Norm("instance_norm", (1, 5, 65, 67), 1, 0, ("elu", 0.7)),
    Norm("instance_norm", (2, 3, 4, 5, 3), 1, 2, "silu"),
    Norm("layer_norm", (3, 2, 5, 7), 2, 2, ("elu", 0.5)),
    Norm("layer_norm", (70, 17), 1, 2, "gelu"),
    Norm("layer_norm", (1, 1023), 1, 1),
    Norm("layer_norm", (113, 1), 1, 2),
    Norm("layer_norm", (2, 9000), 1, 2, "silu"),
    Norm("layer_norm", (2, 3, 300, 250), 3, 0, "gelu_tanh"),
]
FEW_NORMS = [NORMS[i] for i in (0, 2, 4, 7, 11, 12)]


@dataclass(frozen=True)
class Linear:
    """A linear layer and the activation that follows.

    Attributes:
        lead: the input's dimensions but the last.
        inputs, outputs: features.
        biased: whether there is a bias.
        activation: as the function takes it.
    """

    lead: tuple[int, ...]
    inputs: int
    outputs: int
    biased: bool = True
    activation: Any = None

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Input, weight and, where there is one, bias, that make outputs of order one."""
        input, weight = torch.randn(*self.lead, self.inputs), torch.randn(self.outputs, self.inputs)
        bias = [torch.randn(self.outputs)] if self.biased else []
        return [tensor.to(dtype) for tensor in (input, weight / math.sqrt(self.inputs), *bias)]

    def ours(self, *tensors: Tensor) -> Tensor:
        return AF.linear(*tensors, activation=self.activation)

    def theirs(self, *tensors: Tensor) -> Tensor:
        name, slope = name_and_slope(self.activation)
        return FUNCTIONS[name](torch.nn.functional.linear(*tensors), slope)

    def __str__(self) -> str:
        activation = str(self.activation).strip("()").replace("'", "").replace(", ", "-")
        return f"{'x'.join(map(str, self.lead))}-{self.inputs}-{self.outputs}-{self.biased}-{activation}"


# One row, fewer rows than a tile, blocks of rows and a rest; depths of one number, odd, and beyond a block; columns of
# parts of vectors and of panels.
LINEARS = [
    Linear((3, 7), 5, 6, True, "silu"),
    Linear((1,), 113, 130, True, "gelu"),
    Linear((), 17, 33),
    Linear((17,), 1, 65, False),
    Linear((50,), 513, 64, True, "gelu_tanh"),
    Linear((2, 113), 64, 1, True, "tanh"),
    Linear((100,), 96, 259, True, ("leaky_relu", 0.1)),
    Linear((6,), 1023, 17, True, ("elu", 0.4)),
    Linear((2, 3, 4), 32, 48, False, "sigmoid"),
]
FEW_LINEARS = [LINEARS[i] for i in (0, 1, 4, 6)]
