"""Packed weights, kept from call to call: every change of a weight is seen, whatever made it."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as TF
from cases import relative_error
from torch import Tensor, nn

import aigc_fast.functional as AF
from aigc_fast.ops.conv_transpose import packing
from aigc_fast.runtime import native

pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))

# (input, weight): many products with each element, and so few that a part of the weight stands for all of it.
MANY, FEW = ((8, 64, 16, 16), (64, 128, 4, 4)), ((1, 256, 4, 4), (256, 128, 4, 4))


def assert_sees(change: Callable[[Tensor], None], shapes: tuple[tuple[int, ...], ...]) -> None:
    input, weight = (torch.randn(shape) for shape in shapes)
    for _ in range(3):
        before = AF.conv_transpose2d(input, weight, None, 2, 1)
    change(weight)
    found = AF.conv_transpose2d(input, weight, None, 2, 1)
    expected = TF.conv_transpose2d(input, weight, None, 2, 1)
    assert not torch.equal(found, before)
    assert relative_error(found, expected) < 2e-6


def zero_an_output_channel(weight: Tensor) -> None:
    weight.data[:, 7] = 0


def clip(weight: Tensor) -> None:
    weight.data.clamp_(-2.5, 2.5)


def negate(weight: Tensor) -> None:
    weight.data.neg_()


def swap_two(weight: Tensor) -> None:
    flat = weight.numpy().reshape(-1)
    flat[[0, 4096]] = flat[[4096, 0]]


def nudge_one(weight: Tensor) -> None:
    weight.numpy().reshape(-1)[12345] += 100


@pytest.mark.parametrize("change", [zero_an_output_channel, clip, negate, swap_two, nudge_one])
def test_any_write(change: Callable[[Tensor], None]) -> None:
    assert_sees(change, MANY)


@pytest.mark.parametrize("change", [zero_an_output_channel, negate])
def test_writes_in_a_pattern_where_products_are_few(change: Callable[[Tensor], None]) -> None:
    assert_sees(change, FEW)


@pytest.mark.parametrize("bytes", [1, 6, 64, 4096, (1 << 18) - 4, (1 << 18) + 130, 3 << 18])
def test_a_fingerprint_reads_every_byte_on_every_level(bytes: int, isa: str) -> None:
    memory = torch.randint(0, 256, (bytes,), dtype=torch.uint8)
    before = packing.fingerprint(memory, packing.MANY_USES)
    assert packing.fingerprint(memory.clone(), packing.MANY_USES) == before
    for at in {0, bytes // 3, bytes - 1}:
        memory[at] += 1
        assert packing.fingerprint(memory, packing.MANY_USES) != before
        memory[at] -= 1


def test_a_called_weight_can_be_swapped() -> None:
    input, module = torch.randn(8, 64, 16, 16), nn.ConvTranspose2d(64, 128, 4, 2, 1)
    other = torch.randn(64, 128, 4, 4)
    with torch.no_grad():
        for _ in range(3):
            AF.conv_transpose2d(input, module.weight, None, 2, 1)
        torch.utils.swap_tensors(module.weight, nn.Parameter(other.clone()))
        found = AF.conv_transpose2d(input, module.weight, None, 2, 1)
    assert relative_error(found, TF.conv_transpose2d(input, other, None, 2, 1)) < 2e-6


def test_what_was_kept_goes_with_the_weight() -> None:
    gc.collect()
    before = len(packing._kept)
    input, weight = (torch.randn(shape) for shape in MANY)
    for _ in range(3):
        AF.conv_transpose2d(input, weight, None, 2, 1)
    assert len(packing._kept) == before + 1
    del weight
    gc.collect()
    assert len(packing._kept) == before
