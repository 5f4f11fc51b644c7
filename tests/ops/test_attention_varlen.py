"""varlen_attn against PyTorch's attention of each sequence by itself, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from cases import DTYPES, Attention, assert_parity, opcheck
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast import _native
from aigc_fast.ops.attention.varlen import VARLEN, VARLEN_BACKWARD

needs_native = pytest.mark.skipif(_native.cpu_reason() is not None, reason=str(_native.cpu_reason()))


@dataclass(frozen=True)
class Batch:
    """Sequences by their lengths.

    Attributes:
        queries, keys: the lengths.
        heads, kv_heads, size, value_size: sizes.
        window: (left, right).
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int = 2
    kv_heads: int = 2
    size: int = 16
    value_size: int = 16
    window: tuple[int, int] = (-1, -1)

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

    def ours(self, *tensors: Tensor) -> Tensor:
        grouped = self.heads != self.kv_heads
        return AF.varlen_attn(*tensors, *self.bounds(), window_size=self.window, enable_gqa=grouped)

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
                found = one.expected(*(part.transpose(0, 1).unsqueeze(0) for part in parts), None)
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
]


def gradients(compute: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    output = compute(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient.to(output.dtype))]


def second_gradients(compute: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in (*tensors, gradient.to(tensors[0].dtype))]
    first = torch.autograd.grad(compute(*inputs[:3]), inputs[:3], inputs[3], create_graph=True)
    return list(torch.autograd.grad(sum(grad.sin().sum() for grad in first), inputs))


def assert_all_parity(batch: Batch, tensors: list[Tensor], compute: Callable[..., list[Tensor]] = gradients) -> None:
    gradient = torch.randn(sum(batch.queries), batch.heads, batch.value_size)
    found = compute(batch.ours, tensors, gradient)
    theirs = compute(batch.expected, tensors, gradient)
    exact = compute(batch.expected, [tensor.double() for tensor in tensors], gradient)
    for index, (a, b, c) in enumerate(zip(found, theirs, exact, strict=True)):
        assert_parity(a, b, c, f"{batch}: result {index}")


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_forward_and_gradients(batch: Batch, backend: str) -> None:
    assert_all_parity(batch, batch.tensors())


@needs_native
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_dtypes_on_every_level(batch: Batch, dtype: str, isa: str) -> None:
    with aigc_fast.backend("cpu"):
        assert_all_parity(batch, batch.tensors(DTYPES[dtype]))


@pytest.mark.parametrize("batch", BATCHES[:4], ids=str)
def test_double_backward(batch: Batch, backend: str) -> None:
    assert_all_parity(batch, batch.tensors(), second_gradients)


def test_layouts(backend: str) -> None:
    batch = BATCHES[1]
    packed = torch.randn(sum(LENGTHS), 3, 2, 16)
    by_head = torch.randn(3, 2, sum(LENGTHS), 16).transpose(1, 2)
    for tensors in (packed.unbind(1), by_head.unbind(0), packed.transpose(2, 3).contiguous().transpose(2, 3).unbind(1)):
        torch.testing.assert_close(batch.ours(*tensors), batch.expected(*tensors), rtol=1e-5, atol=1e-5)


def test_arguments(backend: str) -> None:
    batch = BATCHES[0]
    tensors, bounds = batch.tensors(), batch.bounds(torch.int64)[0]
    expected = AF.varlen_attn(*tensors, bounds, bounds, 130, 130)
    assert torch.equal(AF.varlen_attn(*tensors, bounds), expected)
    assert torch.equal(AF.varlen_attn(*tensors, bounds, scale=0.25), expected)
    assert not torch.equal(AF.varlen_attn(*tensors, bounds, scale=0.5), expected)
    empty = torch.zeros(1, dtype=torch.int64)
    assert AF.varlen_attn(*(tensor[:0] for tensor in tensors), empty).shape == (0, 2, 16)


@needs_native
def test_threads_give_the_same_numbers() -> None:
    batch, before, runs = Batch((260, 3, 5, 9, 2), (260, 3, 5, 9, 2), window=(-1, 0)), torch.get_num_threads(), []
    tensors, gradient = batch.tensors(), torch.randn(279, 2, 16)
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            with aigc_fast.backend("cpu"):
                runs.append(gradients(batch.ours, tensors, gradient))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-5, atol=1e-6)


@needs_native
def test_ops_are_registered_as_torch_expects() -> None:
    batch = BATCHES[3]
    tensors = [tensor.requires_grad_() for tensor in batch.tensors()]
    rest = (*batch.bounds(), 30, 5, 0.2)
    opcheck(torch.ops.aigc_fast.attention_varlen.default, (*tensors, *rest))
    output, _ = VARLEN(*tensors, *rest)
    # Without a gradient of its own: the second derivative reads the lengths, which a traced graph does not have.
    saved = torch.randn_like(output), *(t.detach() for t in tensors), *rest
    opcheck(torch.ops.aigc_fast.attention_varlen_backward.default, saved)
    assert len(VARLEN_BACKWARD(*saved)) == 3


def test_compiles_whole() -> None:
    batch = BATCHES[1]
    tensors, bounds = batch.tensors(), batch.bounds()
    compiled = torch.compile(lambda q, k, v, cu: AF.varlen_attn(q, k, v, cu, window_size=(-1, 0)), fullgraph=True)
    torch.testing.assert_close(compiled(*tensors, bounds[0]), batch.ours(*tensors), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_training_compiles_whole(dtype: torch.dtype) -> None:
    batch = BATCHES[1]
    tensors, gradient = batch.tensors(dtype), torch.randn(sum(batch.queries), batch.heads, batch.value_size)
    found = gradients(torch.compile(batch.ours, fullgraph=True, backend="aot_eager"), tensors, gradient)
    torch.testing.assert_close(found, gradients(batch.expected, tensors, gradient), rtol=1e-4, atol=1e-5)


def test_nan_stays_in_its_sequence(backend: str) -> None:
    batch = BATCHES[0]
    tensors = batch.tensors()
    tensors[1][140, 1] = math.nan
    output = batch.ours(*tensors)
    assert output[135:152, 1].isnan().all()
    assert output.isnan().any(-1).sum() == 17


q, k, v = BATCHES[0].tensors()
cu = BATCHES[0].bounds()[0]
BAD = {
    "query is list": (TypeError, ([1.0], k, v, cu)),
    "key has shape": (RuntimeError, (q, k[0], v, cu)),
    "value has dtype": (RuntimeError, (q, k, v.double(), cu)),
    "query has dtype": (RuntimeError, (q.int(), k, v, cu)),
    "key is on meta": (RuntimeError, (q, k.to("meta"), v, cu)),
    "key has size 8": (RuntimeError, (q, k[..., :8], v, cu)),
    "value has shape": (RuntimeError, (q, k, v[1:], cu)),
    "key has 1 heads": (RuntimeError, (q, k[:, :1], v[:, :1], cu)),
    "cu_seq_q is list": (TypeError, (q, k, v, [0, 193])),
    "cu_seq_q has shape": (RuntimeError, (q, k, v, cu.float())),
    "cu_seq_k has shape": (RuntimeError, (q, k, v, cu, cu[1:])),
    "cu_seq_k is on meta": (RuntimeError, (q, k, v, cu, cu.to("meta"))),
    "cu_seq_q is .*expected to rise from 0": (RuntimeError, (q, k, v, cu + 1)),
    "cu_seq_k is .*the total length, 193": (RuntimeError, (q, k, v, cu, cu.flip(0))),
    "cu_seq_q is": (RuntimeError, (q[:-1], k, v, cu, cu)),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_name_the_argument(what: str, backend: str) -> None:
    error, arguments = BAD[what]
    with pytest.raises(error, match=what):
        AF.varlen_attn(*arguments)
    for window in ((-2, 0), 3, (None, 0), (1,)):
        with pytest.raises(ValueError, match="window_size"):
            AF.varlen_attn(q, k, v, cu, window_size=window)


def test_without_elements_to_compare_every_key_counts_alike(backend: str) -> None:
    q = torch.zeros(3, 2, 0, requires_grad=True)
    v = torch.randn(3, 2, 4, requires_grad=True)
    AF.varlen_attn(q, q, v, torch.tensor([0, 2, 3])).sum().backward()
    torch.testing.assert_close(v.grad, torch.ones_like(v))
