"""Calls of random shapes against PyTorch's own in the same memory format: where does the automatic choice lose?

    python bench/random_shapes.py conv --seconds 240 --seed 99
    python bench/random_shapes.py norm --dtype bfloat16

Shapes that lose by a call's cost alone, up to 3 microseconds, are counted apart. The limits that the choices of
`aigc_fast.ops` take were found by such samples, with a backend forced instead of chosen (--backend cpu).
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as TF
import typer
from torch import Tensor, nn

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast import nn as fast_nn
from aigc_fast.runtime.backends import BackendError
from aigc_fast.runtime.timing import rounds_of

CHANNELS = 1, 3, 8, 16, 17, 24, 32, 48, 64, 96, 113, 128, 192, 256
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
SLOWER, CALL_MS = 0.95, 3e-3
SECONDS_PER_SHAPE = 0.15


class Pair(NamedTuple):
    """The same call of both packages, and what it is given."""

    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    tensors: list[Tensor]
    name: str


class Found(NamedTuple):
    """How often as fast as PyTorch's a call was, by how many milliseconds it took longer, and which it was."""

    speed: float
    longer: float
    name: str


def conv(draw: random.Random, dtype: torch.dtype) -> Pair | None:
    """A convolution, transposed or not, of one to three dimensions."""
    dims, transposed, groups = draw.choice([1, 2, 2, 2, 3]), draw.random() < 0.4, draw.choice([1, 1, 1, 1, 2, 4])
    inputs, outputs = (groups * draw.choice(CHANNELS) for _ in "io")
    batch, kernel, stride = draw.choice([1, 1, 2, 4, 8, 16]), draw.choice([1, 3, 3, 3, 4, 5, 7]), draw.choice([1, 1, 2])
    side = draw.choice({1: [50, 200, 1000, 8000], 2: [7, 14, 23, 28, 32, 56, 64, 100], 3: [8, 12, 16]}[dims])
    work = batch * inputs * outputs // groups * (kernel * side) ** dims
    if not 2e5 < work < 1e9 or batch * max(inputs, outputs) * side**dims > 2e7 or kernel > side:
        return None
    last = draw.random() < 0.5 and dims > 1
    input = torch.randn(batch, inputs, *[side] * dims, dtype=dtype)
    size = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    weight = (torch.randn(*size, *[kernel] * dims) / math.sqrt(inputs * kernel)).to(dtype)
    if last:
        input, weight = (tensor.contiguous(memory_format=FORMATS[dims]) for tensor in (input, weight))
    function = f"conv{'_transpose' * transposed}{dims}d"
    sizes = {"stride": stride, "padding": kernel // 2, "groups": groups}
    name = f"{function} {tuple(input.shape)} by {tuple(weight.shape)} {sizes} {'channels_last' * last}"
    return _pair(function, [input, weight, torch.randn(outputs, dtype=dtype)], name, **sizes)


def linear(draw: random.Random, dtype: torch.dtype) -> Pair | None:
    """A linear layer."""
    rows = draw.choice([1, 2, 4, 8, 16, 32, 77, 128, 197, 394, 512, 1024, 2048, 4096])
    inputs, outputs = (draw.choice([16, 48, 64, 128, 256, 320, 512, 768, 1000, 1024, 2048, 3072]) for _ in "io")
    if rows * inputs * outputs > 2e9:
        return None
    weight = torch.randn(outputs, inputs, dtype=dtype) / math.sqrt(inputs)
    tensors = [torch.randn(rows, inputs, dtype=dtype), weight, torch.randn(outputs, dtype=dtype)]
    return _pair("linear", tensors, f"linear {rows} rows, {inputs} to {outputs}")


def norm(draw: random.Random, dtype: torch.dtype) -> Pair | None:
    """A group norm, also of single channels."""
    batch, channels = draw.choice([1, 2, 4, 8, 32]), draw.choice([16, 32, 48, 64, 96, 128, 256, 320, 512])
    dims = draw.choice([1, 2, 2, 2, 3])
    side = draw.choice({1: [64, 250, 1000, 8000], 2: [4, 8, 14, 16, 28, 32, 56, 64, 128], 3: [4, 8, 12]}[dims])
    if not 2000 < batch * channels * side**dims < 6e6:
        return None
    groups = draw.choice([count for count in (1, 2, 4, 8, 16, 32, channels) if channels % count == 0])
    last = draw.random() < 0.5 and dims > 1
    input = torch.randn(batch, channels, *[side] * dims, dtype=dtype)
    if last:
        input = input.contiguous(memory_format=FORMATS[dims])
    name = f"group_norm {tuple(input.shape)}, {groups} groups {'channels_last' * last}"
    ours, theirs = (lambda x, w, b, of=of: of.group_norm(x, groups, w, b) for of in (AF, TF))
    return Pair(ours, theirs, [input, *(torch.randn(channels, dtype=dtype) for _ in "wb")], name)


def attention(draw: random.Random, dtype: torch.dtype) -> Pair | None:
    """Attention of heads of various sizes, causal or masked or neither."""
    batch, heads = draw.choice([1, 1, 2, 4, 8]), draw.choice([1, 4, 6, 8, 12, 16])
    size, queries = draw.choice([16, 32, 40, 64, 80, 96, 128]), draw.choice([1, 8, 16, 77, 197, 256, 512, 1024])
    keys = draw.choice([queries, queries, queries, 77, 256, 1024])
    if batch * heads * queries * keys * size > 6e8 or batch * heads * max(queries, keys) * size > 2e7:
        return None
    hidden = draw.choice(["", "", "causal", "mask"]) if queries == keys else draw.choice(["", "", "mask"])
    options: dict[str, Any] = {"is_causal": hidden == "causal"}
    if hidden == "mask":
        options["attn_mask"] = torch.rand(queries, keys) < 0.8
    tensors = [torch.randn(batch, heads, length, size, dtype=dtype) for length in (queries, keys, keys)]
    name = f"attention {tuple(tensors[0].shape)}, {keys} keys {hidden}"
    return _pair("scaled_dot_product_attention", tensors, name, **options)


def recurrent(draw: random.Random, dtype: torch.dtype) -> Pair | None:
    """A recurrent network, of one or two layers and directions."""
    kind, inputs, hidden = (
        draw.choice(["LSTM", "GRU", "RNN"]),
        draw.choice([16, 64, 256]),
        draw.choice([16, 64, 100, 256]),
    )
    batch, steps, layers = draw.choice([1, 4, 8, 32, 64]), draw.choice([1, 2, 8, 32, 200]), draw.choice([1, 1, 2])
    both = draw.random() < 0.3
    theirs = getattr(nn, kind)(inputs, hidden, layers, bidirectional=both).to(dtype)
    ours = getattr(fast_nn, kind)(inputs, hidden, layers, bidirectional=both).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    name = f"{kind} {inputs} to {hidden}, {layers} layers{', both ways' * both}, {batch} sequences of {steps}"
    input = torch.randn(steps, batch, inputs, dtype=dtype)
    return Pair(lambda x: ours(x)[0], lambda x: theirs(x)[0], [input], name)


def _pair(function: str, tensors: list[Tensor], name: str, **options: Any) -> Pair:
    ours, theirs = (lambda *given, of=of: getattr(of, function)(*given, **options) for of in (AF, TF))
    return Pair(ours, theirs, tensors, name)


OPS = {sample.__name__: sample for sample in (conv, linear, norm, attention, recurrent)}
Op = Enum("Op", {name: name for name in OPS}, type=str)
Dtype = Enum("Dtype", {"float32": "float32", "bfloat16": "bfloat16"}, type=str)


def _pairs(op: str, seed: int, dtype: torch.dtype) -> Iterator[Pair]:
    draw = random.Random(seed)
    while True:
        pair = OPS[op](draw, dtype)
        if pair is not None:
            yield pair


def _compared(pair: Pair, training: bool, backend: str) -> Found:
    tensors = [tensor.requires_grad_() for tensor in pair.tensors] if training else pair.tensors
    with torch.no_grad():
        gradient = torch.randn_like(pair.theirs(*tensors))

    def run(function: Callable[..., Tensor]) -> object:
        if training:
            return torch.autograd.grad(function(*tensors), tensors, gradient)
        with torch.no_grad():
            return function(*tensors)

    def forced() -> object:
        with aigc_fast.backend(backend) if backend != "auto" else contextlib.nullcontext():
            return run(pair.ours)

    rounds = rounds_of({"ours": forced, "theirs": lambda: run(pair.theirs)}, SECONDS_PER_SHAPE, least=5)
    ours, theirs = (min(statistics.median(samples) for samples in rounds[name]) for name in ("ours", "theirs"))
    name = f"{'training' if training else 'forward'} {theirs:.3f} ms {pair.name}"
    return Found(theirs / ours, ours - theirs, name)


def main(
    op: Annotated[Op, typer.Argument(help="What to call.")],
    seconds: Annotated[float, typer.Option(help="About how long it takes.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the shapes.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Of the tensors.")] = Dtype.float32,
    backend: Annotated[str, typer.Option(help="Which computes ours.")] = "auto",
    slowest: Annotated[int, typer.Option(help="How many are listed.")] = 20,
) -> None:
    """Prints how fast random calls of an op are beside PyTorch's own, and the slowest of them."""
    torch.manual_seed(seed)
    until, found = time.monotonic() + seconds, []
    for index, pair in enumerate(_pairs(op.value, seed, getattr(torch, dtype.value))):
        if time.monotonic() > until:
            break
        with contextlib.suppress(BackendError):
            found.append(_compared(pair, index % 2 == 1, backend))
    speeds = [each.speed for each in found]
    late = [each for each in found if each.speed < SLOWER]
    beyond = sum(each.longer > CALL_MS for each in late)
    print(
        f"{op.value} {dtype.value}: {len(found)} calls, geometric mean {statistics.geometric_mean(speeds):.2f} of "
        f"PyTorch's speed, {len(late)} below {SLOWER}, {beyond} of them by more than {1e3 * CALL_MS:.0f} microseconds"
    )
    for each in sorted(late)[:slowest]:
        print(f"{each.speed:5.2f} {each.name}")


if __name__ == "__main__":
    typer.run(main)
