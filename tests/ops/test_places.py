"""Every op wherever it has a backend: the CPU's levels, the reference, a card, and Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from calls import CALLS, EXAMPLES, FIRST, Call, expected, results
from memory import far_apart
from parity import assert_parity, relative_error
from places import ELSEWHERE, EMULATOR, HERE, INTERPRETER, LEVELS, Place, moved, ops, there
from torch import Tensor
from watching import INTERPRETED

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.random import reference as numbers
from aigc_fast.ops.random.operators import DROPOUT, NORMAL, UNIFORM
from aigc_fast.ops.reparameterize.operators import KL_STANDARD_NORMAL, REPARAMETERIZE
from aigc_fast.ops.reparameterize.reference import reparameterize
from aigc_fast.runtime.backends import NOT_THERE, BackendError
from aigc_fast.runtime.operator import operators


def pairs(calls: list[Call], places: list[Place]) -> list:
    """Each call in each of the places where its function has a backend."""
    return [
        pytest.param(call, place, id=f"{call}-{place}", marks=place.marks)
        for call in calls
        for place in places
        if there(call.function, place) and (call.interpreted or place is not INTERPRETER)
    ]


# What a kernel for a part of the shapes says of others.
OF_FEW = "the kernel takes up to"
OF_SMALL_HEADS = "Triton's kernels take up to"


def check(call: Call, place: Place, lay: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
    """Errors are at most twice PyTorch's or the reference's; what is refused is a dtype, no float32, or a shape."""
    made, exact, theirs = expected(call)
    differentiated = call.differentiated and there(call.function, place, True)
    found, refusal = [], ""
    with place.in_force():
        try:
            found = results(made.ours, [lay(tensor) for tensor in moved(made.tensors, place)], call, differentiated)
        except BackendError as error:
            refusal = str(error)
    if refusal:
        of_shape = OF_FEW in refusal or (place.backend == "triton" and OF_SMALL_HEADS in refusal)
        assert of_shape or (call.dtype != torch.float32 and str(call.dtype) in refusal), refusal
        return
    assert len(found) == len(exact) or not differentiated
    for index, (ours, wanted) in enumerate(zip(found, exact, strict=False)):
        assert (ours.shape, ours.dtype, ours.device.type) == (wanted.shape, call.dtype, place.device)
        floor = place.floor(call.dtype)
        if not relative_error(ours.cpu(), wanted) <= floor:
            assert_parity(ours.cpu(), theirs()[index], wanted, f"{call}: result {index}", floor=floor)


@pytest.mark.parametrize(("call", "place"), pairs(CALLS, LEVELS))
def test_values_and_gradients_on_every_level(call: Call, place: Place) -> None:
    check(call, place)


@pytest.mark.parametrize(("call", "place"), pairs(CALLS, HERE + ELSEWHERE))
def test_values_and_gradients_of_every_backend(call: Call, place: Place) -> None:
    check(call, place)


# Large ones, which are emulated in one order.
FOR_EXAMPLES = [HERE[0], *(place for place in ELSEWHERE if place not in EMULATOR[1:])]


@pytest.mark.parametrize(("call", "place"), pairs(EXAMPLES, FOR_EXAMPLES))
def test_values_and_gradients_of_the_examples(call: Call, place: Place) -> None:
    check(call, place)


def transposed_memory(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize(("call", "place"), pairs(list(FIRST.values()), HERE + ELSEWHERE))
def test_values_and_gradients_of_tensors_that_lie_otherwise(call: Call, place: Place) -> None:
    check(call, place, transposed_memory)


def rows_far_apart(tensor: Tensor) -> Tensor:
    """The tensor, whose rows lie more than 2³¹ elements apart."""
    return far_apart(*tensor.shape, step=2**31 + 3).copy_(tensor) if tensor.dim() and len(tensor) > 1 else tensor


IN_ADDRESSES_ALONE = [HERE[0], *LEVELS, *(place for place in ELSEWHERE if place in (EMULATOR[0], INTERPRETER))]


@pytest.mark.skipif(sys.platform == "win32", reason="no memory of addresses alone")
@pytest.mark.parametrize(("call", "place"), pairs(list(FIRST.values()), IN_ADDRESSES_ALONE))
def test_values_and_gradients_of_tensors_whose_rows_lie_beyond_32_bits(call: Call, place: Place) -> None:
    check(call, place, rows_far_apart)


@pytest.mark.parametrize("place", [HERE[0], HERE[-1]], ids=str)
def test_threads_that_call_at_once_get_their_own_numbers(place: Place) -> None:
    calls = [call for call in FIRST.values() if there(call.function, place)]
    made = [expected(call).made for call in calls]

    def values(index: int) -> list[Tensor]:
        with place.in_force(), torch.no_grad():
            return results(made[index].ours, made[index].tensors, calls[index], False)

    alone, again = ([values(index) for index in range(len(calls))] for _ in range(2))
    # Others draw from the one generator.
    sure = [index for index, pair in enumerate(zip(alone, again, strict=True)) if all(map(torch.equal, *pair))]
    assert len(sure) > len(calls) / 2
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(values, 5 * sure))
    for index, given in zip(5 * sure, found, strict=True):
        for ours, wanted in zip(given, alone[index], strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6, msg=str(calls[index]))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "randn": lambda zeros: AF.randn(zeros.shape, device=zeros.device),
    "rand": lambda zeros: AF.rand(zeros.shape, device=zeros.device),
    "dropout": lambda zeros: AF.dropout(zeros + 1, 0.5),
    "reparameterize": lambda zeros: AF.reparameterize(zeros, zeros),
    "reparameterize_kl": lambda zeros: AF.reparameterize_kl(zeros, zeros)[0],
}


@pytest.mark.parametrize(
    ("function", "place"),
    [
        pytest.param(function, place, id=f"{function}-{place}", marks=place.marks)
        for function in DRAWS
        for place in HERE + LEVELS + ELSEWHERE
        if there(function, place)
    ],
)
def test_a_seed_gives_the_same_numbers_again(function: str, place: Place) -> None:
    zeros = torch.zeros(20, 50, device=place.device)
    with place.in_force():
        torch.manual_seed(3)
        first, second = (DRAWS[function](zeros) for _ in range(2))
        torch.manual_seed(3)
        assert torch.equal(DRAWS[function](zeros), first)
    assert not torch.equal(first, second)


EVERYWHERE = pytest.mark.parametrize(
    "place", [pytest.param(place, id=str(place), marks=place.marks) for place in HERE + LEVELS + ELSEWHERE]
)


@EVERYWHERE
def test_layouts_and_empty_tensors(place: Place) -> None:
    key = torch.tensor([1, 2], device=place.device)
    input = torch.randn(2, 3, 4, 5).to(place.device, memory_format=torch.channels_last)
    empty = torch.zeros(3, 0, device=place.device)
    with place.in_force():
        output = DROPOUT(input, key, 0.4)
        assert torch.equal(KL_STANDARD_NORMAL(empty, empty).cpu(), torch.zeros(3))
        assert NORMAL([0, 2], key, torch.float32).shape == (0, 2)
    assert output.stride() == input.stride()
    assert torch.equal(output.cpu(), numbers.dropout(input.cpu().contiguous(), key.cpu(), 0.4))


@EVERYWHERE
def test_counters_carry(place: Place) -> None:
    key, other = torch.tensor([5, 2**32 - 3]), torch.tensor([7, 2**33 - 1])
    there, input = key.to(place.device), torch.randn(2051)
    pair = torch.randn(2, 3, 101).unbind()
    with place.in_force():
        drawn = NORMAL([2051], there, torch.float32), UNIFORM([2051], there, torch.float32)
        dropped = DROPOUT(input.to(place.device), there, 0.3)
        sample = REPARAMETERIZE(*moved(pair, place), other.to(place.device))
    floor = place.floor(torch.float32)
    for found, function in zip(drawn, (numbers.normal, numbers.uniform), strict=True):
        assert relative_error(found.cpu(), function([2051], key, torch.float64)) <= floor
    assert relative_error(dropped.cpu(), numbers.dropout(input, key, 0.3)) <= floor
    assert relative_error(sample.cpu(), reparameterize(*(tensor.double() for tensor in pair), other)) <= floor


def test_there_is_a_call_of_every_op_and_function() -> None:
    assert {name for function in FIRST for name, _ in ops(function, True)} == set(operators())
    assert set(AF.__all__) <= set(FIRST)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("function", FIRST)
def test_a_backend_that_cannot_run_says_why(function: str, backend: str) -> None:
    made = expected(FIRST[function]).made
    if not there(function, Place(backend)):
        reason = NOT_THERE
    elif backend == "triton" and INTERPRETED:
        pytest.skip("runs in the interpreter")
    else:
        reason = "the tensors are on cpu"
    with aigc_fast.backend(backend), pytest.raises(BackendError, match=f"{backend}: {reason}"):
        made.ours(*made.tensors)


# With tests of Triton's kernels in its interpreter.
INTERPRETED_FILES = (
    "test_in_force.py",
    "test_attention_triton.py",
    "test_conv_transpose_triton.py",
    "test_recursion_triton.py",
    "../test_transforms.py",
)


@pytest.mark.skipif(INTERPRETED, reason="already in the interpreter")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
def test_triton_kernels_in_the_interpreter() -> None:
    here = Path(__file__).parent
    files = [__file__, *(str(here / name) for name in INTERPRETED_FILES)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "interpreted"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
