"""varlen_attn against PyTorch's attention of each sequence by itself, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_cases import BATCHES, LENGTHS, Batch
from parity import assert_parity, opcheck
from torch import Tensor

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.runtime import native

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


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


@pytest.mark.parametrize("batch", BATCHES[:4], ids=str)
def test_double_backward(batch: Batch, backend: str) -> None:
    assert_all_parity(batch, batch.tensors(), second_gradients)


class TestCaches:
    """Keys and values that lie in slots with room left, or in pages: what they hold, in order, is attended to."""

    batch = Batch((1, 3, 2, 1), (70, 9, 0, 300), heads=4, size=24, value_size=40, window=(-1, 0))

    def slots(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
        """Tensors and arguments with 7 keys to spare after each sequence, and the tensors without them."""
        query, key, value = self.batch.tensors(dtype)
        slots = [
            torch.cat([torch.cat([part, part.new_full((7, *part.shape[1:]), math.nan)]) for part in parts])
            for parts in (tensor.split(self.batch.keys) for tensor in (key, value))
        ]
        bounds = torch.tensor([0, *accumulate(length + 7 for length in self.batch.keys)])
        arguments = {"cu_seq_q": self.batch.bounds()[0], "cu_seq_k": bounds.int()}
        arguments["seqused_k"] = torch.tensor(self.batch.keys, dtype=torch.int32)
        return [query, key, value], [query, *slots], arguments

    def pages(self, dtype: torch.dtype, size: int) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
        """Tensors and arguments with pages in an order of chance, and the tensors without them."""
        query, key, value = self.batch.tensors(dtype)
        counts = [-(-length // size) for length in self.batch.keys]
        order = torch.randperm(sum(counts) + 3)
        table = torch.full((len(counts), max(counts) + 1), -1, dtype=torch.int32)
        pools = [torch.full((len(order), size, *t.shape[1:]), math.nan, dtype=dtype) for t in (key, value)]
        for number, (length, pages) in enumerate(zip(self.batch.keys, order.split([*counts, 3]), strict=False)):
            table[number, : len(pages)] = pages
            for pool, tensor in zip(pools, (key, value), strict=True):
                part = tensor.split(self.batch.keys)[number]
                for page, rows in zip(pages, part.split(size) if length else (), strict=True):
                    pool[page, : len(rows)] = rows
        arguments = {"cu_seq_q": self.batch.bounds()[0], "block_table": table}
        arguments["seqused_k"] = torch.tensor(self.batch.keys, dtype=torch.int32)
        return [query, key, value], [query, *pools], arguments

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("kind", ["slots", 1, 16, 300])
    def test_numbers(self, kind: str | int, dtype: torch.dtype, backend: str) -> None:
        plain, given, arguments = self.slots(dtype) if kind == "slots" else self.pages(dtype, kind)
        found = AF.varlen_attn(*given, **arguments, **self.batch.arguments())
        exact = self.batch.expected(*(tensor.double() for tensor in plain))
        assert_parity(found, self.batch.expected(*plain), exact)

    def test_compiles_whole(self) -> None:
        for _, given, arguments in (self.slots(torch.float32), self.pages(torch.float32, 16)):
            compiled = torch.compile(AF.varlen_attn, fullgraph=True, backend="aot_eager")
            options = arguments | self.batch.arguments()
            torch.testing.assert_close(compiled(*given, **options), AF.varlen_attn(*given, **options))

    def test_bad_arguments_name_the_argument(self, backend: str) -> None:
        _, slots, of_slots = self.slots(torch.float32)
        _, pages, of_pages = self.pages(torch.float32, 16)
        cases = {
            "seqused_k is None": (pages, of_pages | {"seqused_k": None}),
            "seqused_k is list": (slots, of_slots | {"seqused_k": [1, 2, 3, 4]}),
            "seqused_k has shape": (slots, of_slots | {"seqused_k": of_slots["seqused_k"][1:]}),
            "seqused_k is .*above": (slots, of_slots | {"seqused_k": of_slots["seqused_k"] + 8}),
            "seqused_k is .*below 0": (pages, of_pages | {"seqused_k": of_pages["seqused_k"] - 1}),
            "block_table has shape": (pages, of_pages | {"block_table": of_pages["block_table"][0]}),
            "block_table has .*float32": (pages, of_pages | {"block_table": of_pages["block_table"].float()}),
            "block_table holds": (pages, of_pages | {"block_table": of_pages["block_table"] + 99}),
            "key has shape .*page size": (slots, of_pages),
            "key has shape": (pages, of_slots),
        }
        for message, (tensors, arguments) in cases.items():
            with pytest.raises((RuntimeError, TypeError), match=message):
                AF.varlen_attn(*tensors, **arguments, **self.batch.arguments())

    def test_for_inference_only(self) -> None:
        for (_, tensors, arguments), name in (
            (self.slots(torch.float32), "seqused_k"),
            (self.pages(torch.float32, 16), ""),
        ):
            tensors[1].requires_grad_()
            with pytest.raises(RuntimeError, match=f"{name}.*inference only"):
                AF.varlen_attn(*tensors, **arguments, **self.batch.arguments())
            with torch.no_grad():
                AF.varlen_attn(*tensors, **arguments, **self.batch.arguments())


def test_the_log_sum_exp(backend: str) -> None:
    batch = Batch((7, 3), (5, 0), heads=4, size=24, window=(-1, 0))
    tensors = batch.tensors()
    aux = SimpleNamespace(lse=True)
    output, found = AF.varlen_attn(*tensors, *batch.bounds(), return_aux=aux, **batch.arguments())
    assert torch.equal(output, batch.ours(*tensors))
    assert not found.requires_grad
    query, key = (tensor.double().transpose(0, 1) for tensor in tensors[:2])
    scores = query[:, :7] @ key.repeat_interleave(2, 0).mT * 24**-0.5
    hidden = torch.arange(5) > torch.arange(7)[:, None] - 2
    expected = torch.full((4, 10), -math.inf)
    expected[:, :7] = scores.masked_fill(hidden, -math.inf).logsumexp(-1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for nothing in (None, SimpleNamespace(lse=False)):
        assert isinstance(AF.varlen_attn(*tensors, *batch.bounds(), return_aux=nothing, **batch.arguments()), Tensor)
    with pytest.raises(TypeError, match="return_aux is dict"):
        AF.varlen_attn(*tensors, *batch.bounds(), return_aux={"lse": True}, **batch.arguments())


def test_the_signature_is_torchs() -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    ours, theirs = (signature(f).parameters for f in (AF.varlen_attn, varlen.varlen_attn))
    assert set(theirs) <= set(ours)
    assert [name for name in ours if name in theirs] == list(theirs)
    assert all(ours[name].kind == theirs[name].kind for name in theirs)


@needs_native
def test_a_sequence_has_the_same_bits_beside_others_without_splits() -> None:
    batch = Batch((1, 1, 1), (3000, 1100, 70), heads=1, kv_heads=1)
    tensors = batch.tensors()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with aigc_fast.backend("cpu"):
            together = AF.varlen_attn(*tensors, *batch.bounds(), num_splits=1)
            alone = AF.varlen_attn(
                tensors[0][:1],
                *(t[:3000] for t in tensors[1:]),
                *replace(batch, queries=(1,), keys=(3000,)).bounds(),
                num_splits=1,
            )
            for splits in (None, 0, 2, 100):
                found = AF.varlen_attn(*tensors, *batch.bounds(), num_splits=splits)
                torch.testing.assert_close(found, together, rtol=1e-5, atol=1e-6)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together[:1], alone)
    for wrong in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match="num_splits"):
            AF.varlen_attn(*tensors, *batch.bounds(), num_splits=wrong)


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


class TestDropout:
    """Of each sequence its own part of one draw, which backward makes again."""

    batches = BATCHES[:4]

    @staticmethod
    def seeded(batch: Batch, share: float) -> Callable[..., Tensor]:
        def compute(*tensors: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(11)
            return AF.varlen_attn(*tensors, *batch.bounds(), **batch.arguments(), dropout_p=share, generator=generator)

        return compute

    @pytest.mark.parametrize("batch", batches, ids=str)
    @pytest.mark.parametrize("compute", [gradients, second_gradients])
    def test_numbers(self, batch: Batch, compute: Callable[..., list[Tensor]], backend: str) -> None:
        tensors, gradient = batch.tensors(), torch.randn(sum(batch.queries), batch.heads, batch.value_size)
        ours = self.seeded(batch, 0.3)
        found = compute(ours, tensors, gradient)
        with aigc_fast.backend("reference"):
            theirs = compute(ours, tensors, gradient)
            exact = compute(ours, [tensor.double() for tensor in tensors], gradient)
        for index, (a, b, c) in enumerate(zip(found, theirs, exact, strict=True)):
            assert_parity(a, b, c, f"{batch}: result {index}")

    def test_equal_sequences_lose_different_shares(self, backend: str) -> None:
        q, k, v = (torch.randn(64, 2, 16).repeat(2, 1, 1) for _ in range(3))
        cu = torch.tensor([0, 64, 128])
        found = AF.varlen_attn(q, k, v, cu, dropout_p=0.4)
        assert not torch.allclose(found[:64], found[64:])
        # Of values that are ones what is kept is a share of one, and scaled so that the mean stays.
        found = AF.varlen_attn(q, k, torch.ones_like(v), cu, dropout_p=0.4)
        assert abs(float(found.mean()) - 1) < 0.05
        assert not AF.varlen_attn(q, k, v, cu, dropout_p=1.0).any()

    def test_one_sequence_is_scaled_dot_product_attention(self, backend: str) -> None:
        q, k, v = (torch.randn(9, 2, 16) for _ in range(3))
        found = []
        for function in (
            lambda **options: AF.varlen_attn(q, k, v, torch.tensor([0, 9]), **options),
            lambda **options: AF.scaled_dot_product_attention(*(t.transpose(0, 1)[None] for t in (q, k, v)), **options)[
                0
            ].transpose(0, 1),
        ):
            found.append(function(dropout_p=0.5, generator=torch.Generator().manual_seed(3)))
        torch.testing.assert_close(*found)

    def test_the_seed_says_what_is_dropped(self, backend: str) -> None:
        batch, found = self.batches[0], []
        tensors = batch.tensors()
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(AF.varlen_attn(*tensors, *batch.bounds(), **batch.arguments(), dropout_p=0.2))
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_training_compiles_whole(self) -> None:
        batch = BATCHES[1]
        tensors, gradient = batch.tensors(), torch.randn(sum(batch.queries), batch.heads, batch.value_size)

        def dropped(*given: Tensor) -> Tensor:
            return AF.varlen_attn(*given, *batch.bounds(), **batch.arguments(), dropout_p=0.5)

        found = gradients(torch.compile(dropped, fullgraph=True, backend="aot_eager"), tensors, gradient)
        assert [tensor.shape for tensor in found[1:]] == [tensor.shape for tensor in tensors]
        assert not torch.allclose(found[0], batch.ours(*tensors))

    def test_bad_arguments_name_the_argument(self, backend: str) -> None:
        tensors, bounds = self.batches[0].tensors(), self.batches[0].bounds()
        for share in (-0.1, 1.5, math.nan):
            with pytest.raises(ValueError, match=f"dropout_p={share}: expected a probability"):
                AF.varlen_attn(*tensors, *bounds, dropout_p=share)
        used = torch.tensor(self.batches[0].keys)
        with pytest.raises(ValueError, match=r"dropout_p=0\.1: expected 0 with seqused_k"):
            AF.varlen_attn(*tensors, *bounds, seqused_k=used, dropout_p=0.1)


@needs_native
def test_the_op_is_registered_as_torch_expects_with_dropout() -> None:
    batch = BATCHES[3]
    rest = (*batch.bounds(), torch.tensor([3, 5]), 0.2, 30, 5, 0.2, 0, None, None)
    opcheck(torch.ops.aigc_fast.attention_varlen.default, (*batch.tensors(), *rest))


@needs_native
def test_the_op_is_registered_as_torch_expects_where_fewer_keys_are_used() -> None:
    batch = BATCHES[3]
    rest = (*batch.bounds(), None, 0.0, 30, 5, 0.2)
    used = torch.tensor([2, 60, 70])
    opcheck(torch.ops.aigc_fast.attention_varlen.default, (*batch.tensors(), *rest, 1, used, None))


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
