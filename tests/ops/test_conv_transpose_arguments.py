"""What convolutions take: types, integers, sizes that leave nothing, bad arguments."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from convolution_cases import PLAIN, TRANSPOSED, Convolution
from convolution_checks import every_gradient, functions

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import BackendError


@pytest.mark.parametrize("case", [TRANSPOSED[1], TRANSPOSED[9], PLAIN[1]], ids=str)
def test_empty_batch(case: Convolution, backend: str) -> None:
    if backend == "cpu":
        pytest.skip("a forced backend refuses with its own reasons")
    input, weight, bias = case.tensors()
    tensors = [input[:0], weight, bias]
    ours, theirs = functions(case)
    expected = theirs(*tensors, **case.arguments)
    found = every_gradient(ours, tensors, torch.ones_like(expected), **case.arguments)
    peer = every_gradient(theirs, tensors, torch.ones_like(expected), **case.arguments)
    for a, b in zip(found, peer, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_strings_for_padding(backend: str) -> None:
    input, weight, bias = torch.randn(2, 3, 9, 8), torch.randn(5, 3, 4, 3), torch.randn(5)
    for padding in ("valid", "same"):
        torch.testing.assert_close(
            AF.conv2d(input, weight, bias, padding=padding), TF.conv2d(input, weight, bias, padding=padding)
        )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"weight": torch.randn(5, 3, 3)}, RuntimeError, "weight"),
        ({"weight": None}, TypeError, "weight"),
        ({"input": torch.randn(9, 8)}, RuntimeError, "input"),
        ({"stride": (1, 1, 1)}, RuntimeError, "stride"),
        ({"dilation": ()}, RuntimeError, "dilation"),
        ({"dilation": -1}, RuntimeError, "dilation"),
        ({"stride": 0}, RuntimeError, "stride"),
    ],
)
def test_what_does_not_fit_beside_strings_for_padding(
    padding: str, changed: dict[str, Any], error: type[Exception], named: str
) -> None:
    given = {"input": torch.randn(2, 3, 9, 8), "weight": torch.randn(5, 3, 3, 3), "padding": padding, **changed}
    with pytest.raises(error):
        TF.conv2d(**given)
    with pytest.raises(error, match=named):
        AF.conv2d(**given)


IMPOSSIBLE = {
    "weight channels": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(4, 2, 3, 3)), {}, "input|weight|channel"),
    "rank of weight": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3)), {}, "weight"),
    "rank of input": (lambda: (torch.randn(5, 5), torch.randn(3, 2, 3, 3)), {}, "input"),
    "size of bias": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(3)), {}, "bias"),
    "stride zero": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"stride": 0}, "stride"),
    "stride below zero": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"stride": -1}, "stride"),
    "padding below zero": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"padding": -1}, "padding"),
    "dilation zero": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"dilation": 0}, "dilation"),
    "groups": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"groups": 2}, "groups"),
    "groups zero": (lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)), {"groups": 0}, "groups"),
    "output padding": (
        lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)),
        {"output_padding": 3, "stride": 2},
        "output_padding",
    ),
    "empty output": (lambda: (torch.randn(2, 3, 1, 1), torch.randn(3, 2, 1, 1)), {"padding": 2}, "output|padding|size"),
    "length of stride": (
        lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)),
        {"stride": (1, 2, 3)},
        "stride",
    ),
    "dtypes": (
        lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3, dtype=torch.float64)),
        {},
        "weight|dtype|type",
    ),
    "padding beyond 64 bits": (
        lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)),
        {"padding": 2**62},
        "padding",
    ),
    "dilation beyond 64 bits": (
        lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3)),
        {"dilation": 2**62},
        "dilation",
    ),
    "device": (
        lambda: (torch.randn(2, 3, 5, 5), torch.randn(3, 2, 3, 3, device="meta")),
        {},
        "weight|device",
    ),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_bad_arguments_name_the_argument(what: str, batch: int, backend: str) -> None:
    if (what, batch, backend) == ("device", 1, "auto"):
        pytest.skip("a small call is PyTorch's, which takes a weight on meta")
    make, kwargs, named = IMPOSSIBLE[what]
    input, *others = make()
    with pytest.raises((ValueError, RuntimeError, TypeError), match=f"(?i){named}"):
        AF.conv_transpose2d(input[:batch], *others, **kwargs)


@pytest.mark.parametrize("stride", [2**20, 2**40, 2**62])
def test_strides_beyond_the_input_take_no_longer(stride: int, backend: str) -> None:
    input, weight = torch.randn(2, 16, 9, 9, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
    expected = TF.conv2d(input, weight, stride=7)
    found = AF.conv2d(input, weight, stride=stride)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(found)
    ours = torch.autograd.grad(found, (input, weight), upstream) if backend == "cpu" else []
    for a, b in zip(ours, torch.autograd.grad(expected, (input, weight), upstream), strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_types_without_a_kernel_do_as_pytorch_does(dtype: torch.dtype, backend: str) -> None:
    if backend == "cpu":
        pytest.skip("a forced backend refuses with its own reasons")
    input, weight = torch.ones(1, 2, 4, 4).to(dtype), torch.ones(2, 3, 3, 3).to(dtype)
    try:
        expected = TF.conv_transpose2d(input, weight)
    except RuntimeError as error:
        with pytest.raises(type(error)):
            AF.conv_transpose2d(input, weight)
    else:
        torch.testing.assert_close(AF.conv_transpose2d(input, weight), expected)


def test_an_output_without_elements(backend: str) -> None:
    sizes = {"padding": 3, "dilation": (1, 2)}
    found = []
    for compute in (AF.conv_transpose2d, TF.conv_transpose2d):
        tensors = [torch.ones(shape, requires_grad=True) for shape in ((2, 7, 17, 2), (7, 31, 2, 3), (31,))]
        if backend == "cpu" and compute is AF.conv_transpose2d:
            with pytest.raises(BackendError, match="no elements"):
                compute(*tensors, **sizes)
            return
        output = compute(*tensors, **sizes)
        found.append([output, *torch.autograd.grad(output.sum(), tensors)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("stride", [np.int64(2), torch.tensor(2)])
def test_integers_of_other_types(stride: Any) -> None:
    input, weight = torch.randn(2, 32, 16, 16), torch.randn(32, 32, 4, 4)
    torch.testing.assert_close(
        AF.conv_transpose2d(input, weight, None, stride),
        TF.conv_transpose2d(input, weight, None, 2),
        rtol=1e-4,
        atol=1e-4,
    )


class Subclass(int):
    """An integer of another type."""


OF_OTHER_TYPES = {
    "float": 2.0,
    "bool": True,
    "string": "2",
    "none": None,
    "fraction": Fraction(2),
    "complex": 2 + 0j,
    "subclass": Subclass(2),
    "NumPy's integer": np.int64(2),
    "NumPy's float": np.float64(2),
    "NumPy's bool": np.bool_(True),
    "NumPy's array": np.array([2, 2]),
    "tensor": torch.tensor(2),
    "tensor of float": torch.tensor(2.0),
    "tensor of one": torch.tensor([2]),
    "tensor of two": torch.tensor([2, 2]),
    "list": [2, 2],
    "size": torch.Size([2, 2]),
    "one in a list": [2],
    "three": (2, 2, 2),
    "floats": (2.0, 2.0),
    "a float": (2, 2.0),
    "bools": (True, True),
    "a bool": (2, True),
    "NumPy's integers": [np.int64(2), np.int64(2)],
    "tensors": [torch.tensor(2), torch.tensor(2)],
    "range": range(1, 3),
    "set": {2},
    "nested": ((2, 2),),
}


@pytest.mark.parametrize(
    "shapes", [((1, 4, 9, 9), (4, 4, 3, 3)), ((2, 16, 9, 9), (16, 16, 4, 4))], ids=["small", "large"]
)
@pytest.mark.parametrize("argument", ["stride", "padding", "dilation", "groups", "output_padding"])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_integers_are_what_pytorch_takes_for_them(
    name: str, argument: str, shapes: tuple[tuple[int, ...], ...], backend: str
) -> None:
    if (name, argument) == ("conv2d", "output_padding"):
        pytest.skip("conv2d has none")
    ours, theirs = getattr(AF, name), getattr(TF, name)
    tensors = [torch.randn(shape) for shape in shapes]
    others = {"stride": 3} if argument == "output_padding" else {}
    # What is remembered of them must not answer for what is equal to them.
    integers = [value for value in (1, 2, (1, 1), (2, 2)) if argument != "groups" or value == 1]
    for given in [*OF_OTHER_TYPES.values(), *integers, *integers, *OF_OTHER_TYPES.values()]:
        arguments = {argument: given, **others}
        try:
            expected = theirs(*tensors, **arguments)
        except (TypeError, RuntimeError) as error:
            with pytest.raises(type(error)):
                ours(*tensors, **arguments)
        else:
            torch.testing.assert_close(ours(*tensors, **arguments), expected, rtol=1e-4, atol=1e-4)


def test_a_module_with_sizes_of_another_type_fails_as_pytorchs_after_one_with_integers() -> None:
    input = torch.randn(2, 16, 9, 9)
    for _ in range(2):
        aigc_fast.nn.FusedSequential(aigc_fast.nn.Conv2d(16, 16, 3, stride=2), torch.nn.ReLU())(input)
    for stride in (2.0, True):
        with pytest.raises(TypeError):
            torch.nn.Conv2d(16, 16, 3, stride=stride)(input)
        with pytest.raises(TypeError):
            aigc_fast.nn.Conv2d(16, 16, 3, stride=stride)(input)
    with pytest.raises(TypeError):
        aigc_fast.nn.FusedSequential(aigc_fast.nn.Conv2d(16, 16, 3, stride=2.0), torch.nn.ReLU())(input)


@pytest.mark.parametrize("arguments", [native.arguments, native._arguments], ids=["native", "python"])
def test_arguments_are_remembered_with_their_types(arguments: Callable[..., Any]) -> None:
    distinct = [0, 1, 2, True, 1.0, 2.0, "2", "", None, (2,), (2, 2), (2, True), np.int64(2), -1, 2**62]
    assert len({arguments(value) for value in distinct}) == len(distinct)
    assert len({arguments(1, (2, 3)), arguments(1, 2, 3), arguments((1, 2), 3), arguments((1, 2, 3))}) == 4
    assert arguments((2, 2), "same", None) == arguments((2, 2), "".join(["sa", "me"]), None)
    for value in ((2.0,), {2}, range(2), Fraction(2), np.float64(2), np.bool_(True), ((2,),)):
        with pytest.raises(TypeError):
            arguments(value)


TOO_SMALL = [
    (dims, batch, padding, axis) for dims in (1, 2, 3) for batch in (1, 2) for padding in (1, 2) for axis in (0, -1)
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("dims", "batch", "padding", "axis"), TOO_SMALL)
def test_outputs_without_size_are_pytorchs_or_refused_as_it_does(
    dims: int, batch: int, padding: int, axis: int, dtype: torch.dtype, device: str
) -> None:
    size, paddings = [6] * dims, [0] * dims
    size[axis], paddings[axis] = padding + 1, padding
    ours, theirs = (getattr(module, f"conv_transpose{dims}d") for module in (AF, TF))
    for bias, requires_grad in ((None, False), (torch.ones(16), True)):
        tensors = [torch.ones(batch, 8, *size), torch.ones(8, 16, *[1] * dims), bias]
        tensors = [tensor if tensor is None else tensor.to(device, dtype) for tensor in tensors]
        tensors[1].requires_grad_(requires_grad)
        for given in (tensors, [tensors[0][0], *tensors[1:]]):
            try:
                expected = theirs(*given, padding=paddings)
            except RuntimeError:
                with pytest.raises(RuntimeError, match=r"small|size|shape"):
                    ours(*given, padding=paddings)
            else:
                found = ours(*given, padding=paddings)
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["conv_transpose1d", "conv_transpose2d"])
def test_outputs_without_size_in_a_compiled_graph(name: str, batch: int) -> None:
    dims = int(name[-2])
    for padding in (1, 2):
        tensors = torch.ones(batch, 8, *[padding + 1] * dims), torch.ones(8, 16, *[1] * dims)
        shapes = []
        for module in (AF, TF):
            function = getattr(module, name)
            compiled = torch.compile(lambda x, w, f=function, p=padding: f(x, w, padding=p), backend="aot_eager")
            try:
                shapes.append(compiled(*tensors).shape)
            except Exception:
                shapes.append(None)
        assert shapes[0] == shapes[1]


def test_more_than_two_billion_elements_are_not_miscounted() -> None:
    """Nothing is allocated: shapes alone, on the meta device, in the op's own arithmetic."""
    input, weight = torch.empty(2, 1, 2**16, 2**15, device="meta"), torch.empty(1, 1, 2, 2, device="meta")
    assert AF.conv_transpose2d(input, weight, stride=2).shape == TF.conv_transpose2d(input, weight, stride=2).shape
