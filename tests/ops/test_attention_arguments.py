"""What scaled_dot_product_attention takes: dimensions, broadcasting, scales, types, empty and bad arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from attention_cases import Attention
from attention_checks import DTYPES_OF_THE_KERNELS, PRECISIONS, every_gradient
from parity import assert_parity, float32_precision
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import aigc_fast.functional as AF
from aigc_fast.ops.attention import reference


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_numbers_of_dimensions(dims: int, backend: str) -> None:
    lead = (2, 3, 2)[5 - dims :] if dims < 5 else (2, 3, 2)
    q, k, v = (torch.randn(*lead, length, 16) for length in (33, 40, 40))
    for mask in (None, torch.rand(33, 40) < 0.5, torch.rand(*lead, 33, 40) < 0.5):
        found = AF.scaled_dot_product_attention(q, k, v, mask)
        torch.testing.assert_close(found, TF.scaled_dot_product_attention(q, k, v, mask))


def test_batches_and_heads_that_are_broadcast(backend: str) -> None:
    q, k, v = torch.randn(3, 4, 60, 16), torch.randn(1, 1, 70, 16), torch.randn(3, 4, 70, 16)
    found = AF.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(found, TF.scaled_dot_product_attention(q, k.expand(3, 4, -1, -1), v))


LEADING = {
    "a query for all batches": ((4,), (3, 4), (3, 4)),
    "keys for all batches": ((3, 4), (4,), (4,)),
    "values of more batches": ((4,), (4,), (3, 4)),
    "a head for all": ((3, 1), (3, 4), (3, 4)),
    "keys of one head, values of all": ((3, 4), (1,), (1, 4)),
    "no heads": ((), (3, 4), (3, 4)),
    "no heads for keys": ((2, 3, 4), (), (3, 1)),
    "five dimensions and four": ((2, 1, 4), (3, 4), (2, 3, 1)),
    "two dimensions and three": ((), (4,), ()),
    "nothing": ((0, 4), (4,), (1, 4)),
}


def skip_what_the_kernels_leave(backend: str, dtype: torch.dtype) -> None:
    if backend == "cpu" and dtype not in DTYPES_OF_THE_KERNELS:
        pytest.skip("the reference's")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lead", LEADING)
def test_leading_sizes_are_broadcast(lead: str, dtype: torch.dtype, backend: str) -> None:
    skip_what_the_kernels_leave(backend, dtype)
    shapes = LEADING[lead]
    tensors = [torch.randn(*sizes, length, 8) for sizes, length in zip(shapes, (5, 9, 9), strict=True)]
    whole = torch.broadcast_shapes(*shapes[:2])
    masks = {"bool": torch.rand(5, 9) < 0.7, "float": torch.randn(1, 9), "batched": torch.rand(*whole, 5, 9) < 0.7}
    gradient = torch.randn(*torch.broadcast_shapes(*shapes), 5, 8)
    for arguments in ({}, {"is_causal": True}, *({"attn_mask": mask} for mask in masks.values())):
        assert_pytorchs_numbers([tensor.to(dtype) for tensor in tensors], arguments, gradient)


def assert_pytorchs_numbers(tensors: list[Tensor], arguments: dict[str, Any], gradient: Tensor) -> None:
    """Output and gradients beside those of PyTorch's function."""

    def compute(attention: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        mask = arguments.get("attn_mask")
        cast = {"attn_mask": mask.to(dtype)} if mask is not None and mask.is_floating_point() else {}
        attend = partial(attention, **arguments | cast)
        return every_gradient(attend, [tensor.to(dtype) for tensor in tensors], gradient)

    ours, theirs, exact = AF.scaled_dot_product_attention, TF.scaled_dot_product_attention, torch.float64
    results = compute(ours, tensors[0].dtype), compute(theirs, tensors[0].dtype), compute(theirs, exact)
    shown = [tuple(tensor.shape) for tensor in tensors]
    for index, values in enumerate(zip(*results, strict=True)):
        assert_parity(*values, f"{shown}, {', '.join(arguments)}: result {index}")


@pytest.mark.parametrize("window", [None, (2, 1)])
def test_grouped_heads_whose_batches_are_broadcast(window: tuple[int, int] | None, backend: str) -> None:
    q, k, v = torch.randn(4, 6, 8), torch.randn(3, 2, 6, 8), torch.randn(1, 4, 6, 8)
    found = AF.scaled_dot_product_attention(q, k, v, enable_gqa=True, window=window)
    whole = q.expand(3, -1, -1, -1), k.repeat_interleave(2, 1), v.expand(3, -1, -1, -1)
    seen = reference.band(6, 6, *(window or (-1, -1)), 0, q.device)
    torch.testing.assert_close(found, TF.scaled_dot_product_attention(*whole, seen))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pytorchs_own_samples(dtype: torch.dtype, backend: str) -> None:
    """What PyTorch's tests of its own function give it; dropout, whose numbers are other ones, apart."""
    skip_what_the_kernels_leave(backend, dtype)
    methods = pytest.importorskip("torch.testing._internal.common_methods_invocations", exc_type=ImportError)
    (info,) = (op for op in methods.op_db if op.name == "nn.functional.scaled_dot_product_attention")
    count = 0
    for sample in info.sample_inputs("cpu", dtype):
        arguments = dict(sample.kwargs)
        tensors = [sample.input, *sample.args, *(arguments.pop(n) for n in ("key", "value") if n in arguments)]
        if arguments.get("dropout_p", 0.0) == 0.0:
            output = AF.scaled_dot_product_attention(*tensors, **arguments)
            assert_pytorchs_numbers(tensors, arguments, torch.randn(output.shape))
            count += 1
    assert count > 10


class TestUnusualScales:
    @pytest.mark.parametrize("value_size", [16, 5])
    @pytest.mark.parametrize("dims", [3, 4])
    @pytest.mark.parametrize("kind", ["plain", "causal", "bool", "blind", "float"])
    @pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
    def test_what_pytorch_makes_of_no_number(self, scale: float, kind: str, dims: int, value_size: int) -> None:
        tensors, arguments = self.tensors(dims, value_size), self.arguments(kind) | {"scale": scale}
        gradient = torch.randn(2, 5, value_size).expand(*tensors[0].shape[:-1], -1)
        functions = AF.scaled_dot_product_attention, TF.scaled_dot_product_attention
        found, expected = (every_gradient(partial(f, **arguments), tensors, gradient) for f in functions)
        torch.testing.assert_close(found, expected, equal_nan=True)
        found, expected = (f(*tensors, **arguments) for f in functions)
        torch.testing.assert_close(found, expected, equal_nan=True)

    @pytest.mark.parametrize("dims", [3, 4])
    @pytest.mark.parametrize("kind", ["plain", "causal", "bool", "blind", "float"])
    @pytest.mark.parametrize("scale", [0.0, -2.0, -0.3])
    def test_of_zero_and_below(self, scale: float, kind: str, dims: int, backend: str) -> None:
        """Not every path of PyTorch's gives numbers for it where causality hides keys before they are scaled."""
        tensors, arguments = self.tensors(dims, 16), self.arguments(kind) | {"scale": scale}
        gradient = torch.randn(2, 5, 16).expand(tensors[0].shape)
        with sdpa_kernel(SDPBackend.MATH):
            expected = every_gradient(partial(TF.scaled_dot_product_attention, **arguments), tensors, gradient)
        ours = partial(AF.scaled_dot_product_attention, **arguments)
        torch.testing.assert_close(every_gradient(ours, tensors, gradient), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(*tensors), expected[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", ["plain", "causal", "float"])
    def test_no_number_and_dropout(self, kind: str) -> None:
        for attention in (AF.scaled_dot_product_attention, TF.scaled_dot_product_attention):
            assert attention(*self.tensors(4, 16), dropout_p=0.5, scale=math.nan, **self.arguments(kind)).isnan().all()

    def test_no_number_and_a_window(self, backend: str) -> None:
        assert AF.scaled_dot_product_attention(*self.tensors(4, 16), window=2, scale=math.nan).isnan().all()

    @staticmethod
    def tensors(dims: int, value_size: int) -> list[Tensor]:
        lead = (1, 2)[4 - dims :]
        return [torch.randn(*lead, *rows) for rows in ((5, 16), (7, 16), (7, value_size))]

    @staticmethod
    def arguments(kind: str) -> dict[str, Any]:
        mask = torch.randn(5, 7) if kind == "float" else torch.rand(5, 7) < 0.6
        if mask.dtype == torch.bool:
            mask[2] = kind == "bool"
        return {"is_causal": True} if kind == "causal" else {} if kind == "plain" else {"attn_mask": mask}


def test_pytorchs_causal_bias(backend: str) -> None:
    q, k, v = Attention(2, 4, 20, 70, 16).tensors()
    for bias, alignment in ((causal_upper_left, "upper_left"), (causal_lower_right, "lower_right")):
        found = AF.scaled_dot_product_attention(q, k, v, bias(20, 70))
        expected = AF.scaled_dot_product_attention(q, k, v, is_causal=True, alignment=alignment)
        assert type(found) is Tensor
        torch.testing.assert_close(found, expected)


def test_a_mask_of_float32_over_float64() -> None:
    q, k, v = (t.double() for t in Attention(1, 2, 16, 16, 100).tensors())
    mask = torch.randn(16, 16)
    found = AF.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(found, TF.scaled_dot_product_attention(q, k, v, mask.double()))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_are_pytorchs(layout: torch.layout) -> None:
    rows = [torch.randn(2, length, 8) for length in (3, 5)]
    if layout == torch.jagged:
        nested = torch.nested.nested_tensor([row.transpose(0, 1) for row in rows], layout=layout).transpose(1, 2)
    else:
        nested = torch.nested.nested_tensor(rows)
    found = AF.scaled_dot_product_attention(nested, nested, nested)
    for part, row in zip(found.unbind(), rows, strict=True):
        expected = TF.scaled_dot_product_attention(*[row[None]] * 3)[0]
        torch.testing.assert_close(part, expected)
    with pytest.raises(ValueError, match="window=2"):
        AF.scaled_dot_product_attention(nested, nested, nested, window=2)


def test_unlike_numbers_of_key_and_value_heads(backend: str) -> None:
    q, k, _ = Attention(2, 4, 20, 30, 16).tensors()
    v = torch.randn(2, 2, 30, 16)
    found = AF.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(found, TF.scaled_dot_product_attention(q, k, v.repeat_interleave(2, 1)))


def test_without_elements_to_compare_every_key_counts_alike(backend: str) -> None:
    q = torch.zeros(2, 2, 3, 0, requires_grad=True)
    v = torch.randn(2, 2, 3, 4, requires_grad=True)
    output = AF.scaled_dot_product_attention(q, q, v)
    torch.testing.assert_close(output, v.mean(2, keepdim=True).expand_as(v))
    output.sum().backward()
    torch.testing.assert_close(v.grad, torch.ones_like(v))


@pytest.mark.parametrize("shape", [(0, 2, 5, 7, 8), (2, 0, 5, 7, 8), (2, 2, 0, 7, 8), (2, 2, 5, 0, 8), (2, 2, 5, 7, 0)])
@pytest.mark.parametrize("precision", ["highest", *PRECISIONS])
@pytest.mark.parametrize("times", [1, 10], ids=["few", "many"])
def test_empty_sizes(shape: tuple[int, ...], precision: str, times: int, backend: str) -> None:
    batch, heads, queries, keys, size = shape
    queries *= times
    q, k = torch.randn(batch, heads, queries, size), torch.randn(batch, heads, keys, size)
    v = torch.randn(batch, heads, keys, 8)
    tensors = [t.requires_grad_() for t in (q, k, v)]
    with float32_precision(precision):
        found = AF.scaled_dot_product_attention(*tensors, scale=1.0)
    expected = TF.scaled_dot_product_attention(*(t.detach() for t in tensors), scale=1.0)
    torch.testing.assert_close(found.detach(), expected, rtol=PRECISIONS.get(precision), atol=PRECISIONS.get(precision))
    found.sum().backward()
    assert all(t.grad.shape == t.shape and not t.grad.isnan().any() for t in tensors)


def randn(*shape: int, **kwargs: Any) -> Tensor:
    return torch.randn(*shape, **kwargs)


IMPOSSIBLE = {
    "type": (lambda: (randn(1, 2, 5, 8), [1.0], randn(1, 2, 7, 8)), {}, "key is list"),
    "none": (lambda: (randn(1, 2, 5, 8), None, randn(1, 2, 7, 8)), {}, "key is NoneType"),
    "rank": (lambda: (randn(1, 2, 5, 8), randn(8), randn(1, 2, 7, 8)), {}, "key has shape"),
    "rank of query": (lambda: (randn(8), randn(8), randn(8)), {}, "query has shape"),
    "size": (lambda: (randn(1, 2, 5, 8), randn(1, 2, 7, 9), randn(1, 2, 7, 8)), {}, "key has size 9"),
    "length": (lambda: (randn(1, 2, 5, 8), randn(1, 2, 7, 8), randn(1, 2, 6, 8)), {}, "value has length 6"),
    "heads": (lambda: (randn(1, 4, 5, 8), randn(1, 2, 7, 8), randn(1, 2, 7, 8)), {}, "key has 2 heads"),
    "groups": (
        lambda: (randn(1, 4, 5, 8), randn(1, 3, 7, 8), randn(1, 3, 7, 8)),
        {"enable_gqa": True},
        "key has 3 heads",
    ),
    "batch": (lambda: (randn(2, 2, 5, 8), randn(3, 2, 7, 8), randn(3, 2, 7, 8)), {}, "batch"),
    "dtype": (lambda: (randn(1, 2, 5, 8), randn(1, 2, 7, 8).double(), randn(1, 2, 7, 8)), {}, "key has dtype"),
    "integers": (lambda: (torch.ones(1, 2, 5, 8, dtype=torch.int64),) * 3, {}, "query has dtype"),
    "device": (lambda: (randn(1, 2, 5, 8), randn(1, 2, 5, 8, device="meta"), randn(1, 2, 5, 8)), {}, "key is on meta"),
    "mask": (
        lambda: (randn(1, 2, 5, 8),) * 3,
        {"attn_mask": torch.ones(4, 5, dtype=torch.bool)},
        "attn_mask has shape",
    ),
    "mask's dtype": (lambda: (randn(1, 2, 5, 8),) * 3, {"attn_mask": torch.ones(5, 5, dtype=torch.int32)}, "attn_mask"),
    "mask's type": (lambda: (randn(1, 2, 5, 8),) * 3, {"attn_mask": 3}, "attn_mask is int"),
    "dropout": (lambda: (randn(1, 2, 5, 8),) * 3, {"dropout_p": 1.5}, "dropout_p"),
    "dropout's type": (lambda: (randn(1, 2, 5, 8),) * 3, {"dropout_p": "a"}, "dropout_p is str: expected a number"),
    "scale's type": (lambda: (randn(1, 2, 5, 8),) * 3, {"scale": "a"}, "scale is str: expected a number"),
    "causal": (lambda: (randn(1, 2, 5, 8),) * 3, {"is_causal": None}, "is_causal is NoneType: expected a bool"),
    "grouped": (lambda: (randn(1, 2, 5, 8),) * 3, {"enable_gqa": 1}, "enable_gqa is int: expected a bool"),
    "generator": (
        lambda: (randn(1, 2, 5, 8),) * 3,
        {"dropout_p": 0.5, "generator": 3},
        "generator is int: expected a torch.Generator",
    ),
    "window": (lambda: (randn(1, 2, 5, 8),) * 3, {"window": (-1, 3)}, "window"),
    "window's type": (lambda: (randn(1, 2, 5, 8),) * 3, {"window": 1.5}, "window=1.5"),
    "window of truth": (lambda: (randn(1, 2, 5, 8),) * 3, {"window": True}, "window=True"),
    "alignment": (lambda: (randn(1, 2, 5, 8),) * 3, {"alignment": "left"}, "alignment"),
}


@pytest.mark.parametrize("repeats", [1, 40])
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_bad_arguments_name_the_argument(what: str, repeats: int, backend: str) -> None:
    make, kwargs, named = IMPOSSIBLE[what]
    query, *others = make()
    if query.dim() == 4 and what not in ("device", "mask"):
        query = query.repeat(1, 1, repeats, 1)
    with pytest.raises((ValueError, RuntimeError, TypeError), match=named):
        AF.scaled_dot_product_attention(query, *others, **kwargs)
