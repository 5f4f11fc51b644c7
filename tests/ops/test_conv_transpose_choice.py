"""Which calls of convolutions are PyTorch's, and what is remembered of those that are not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from convolution_checks import needs_native
from parity import relative_error

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.conv_transpose import choice, cpu
from aigc_fast.ops.conv_transpose.plan import make_plan
from aigc_fast.runtime import native, precision
from aigc_fast.runtime.backends import BackendError


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_a_repeated_call_sees_new_values_dtypes_and_strides(name: str, backend: str) -> None:
    ours, theirs = getattr(AF, name), getattr(TF, name)
    torch.manual_seed(0)
    input, weight, bias = torch.randn(2, 16, 9, 9), torch.randn(16, 16, 4, 4), torch.randn(32)[::2]
    for _ in range(3):
        weight.data.mul_(-2)
        bias.add_(1)
        for tensors in (
            (input, weight, bias),
            (input.to(memory_format=torch.channels_last), weight, bias),
            (input.transpose(2, 3), weight.flip(0), None),
            (input.bfloat16(), weight.bfloat16(), bias.bfloat16()),
            (input.double(), weight.double(), bias.double()) if backend != "cpu" else (input, weight, None),
        ):
            expected = theirs(*tensors, stride=2)
            found = ours(*tensors, stride=2)
            assert found.dtype == expected.dtype
            assert relative_error(found, expected) < (1e-2 if found.dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize(
    ("level", "processor", "batch", "dtype", "layout", "left"),
    [
        ("avx512_bf16", "AMD EPYC", 16, torch.bfloat16, torch.channels_last, True),
        ("avx512_bf16", "Intel Xeon", 16, torch.bfloat16, torch.channels_last, False),
        ("avx512_bf16", "AMD EPYC", 16, torch.bfloat16, torch.contiguous_format, False),
        ("avx512_bf16", "AMD EPYC", 1, torch.bfloat16, torch.channels_last, False),
        ("avx512_bf16", "AMD EPYC", 16, torch.float32, torch.channels_last, False),
        ("avx2", "AMD EPYC", 16, torch.bfloat16, torch.channels_last, False),
        ("amx", "Intel Xeon", 16, torch.bfloat16, torch.channels_last, False),
    ],
)
def test_large_bfloat16_convolutions_in_channels_last_are_pytorchs_where_pairs_are_fast_without_tiles(
    level: str,
    processor: str,
    batch: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
    left: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "level", lambda: level)
    monkeypatch.setattr(precision, "is_intels", lambda: processor.startswith("Intel"))
    input = torch.empty(batch, 256, 8, 8, dtype=dtype, device="meta", memory_format=layout)
    weight = torch.empty(256, 128, 4, 4, dtype=dtype, device="meta")
    plan = make_plan(tuple(input.shape), tuple(weight.shape), None, (2, 2), (1, 1), (0, 0), (1, 1), 1, True)
    assert (choice.forward_slower(input, weight, plan, "other") is not None) == left


@pytest.mark.parametrize(
    ("side", "kernel", "transposed", "left"),
    [(32, 3, True, False), (32, 1, True, True), (8, 3, True, True), (32, 3, False, True)],
)
def test_one_channel_is_pytorchs_but_where_it_is_spread_over_many(
    side: int, kernel: int, transposed: bool, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512")
    input = torch.empty(64, 1, side, side, device="meta")
    weight = torch.empty(*((1, 16) if transposed else (16, 1)), kernel, kernel, device="meta")
    around = (kernel // 2,) * 2
    plan = make_plan(tuple(input.shape), tuple(weight.shape), None, (1, 1), around, (0, 0), (1, 1), 1, transposed)
    assert (choice.forward_slower(input, weight, plan, "other") is not None) == left


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "layout", "algorithm", "left_by_intels", "left_elsewhere"),
    [
        ((8, 16, 32, 32), 4, 2, torch.contiguous_format, "direct", True, False),
        ((8, 32, 64, 64), 3, 1, torch.channels_last, "direct", False, True),
        ((8, 32, 64, 64), 3, 1, torch.contiguous_format, "direct", False, False),
        ((8, 3, 64, 64), 3, 1, torch.contiguous_format, "narrow", False, False),
        ((8, 3, 32, 32), 3, 1, torch.contiguous_format, "narrow", False, True),
        ((8, 3, 16, 16, 16), 3, 1, torch.contiguous_format, "narrow", False, True),
        ((8, 4, 16, 16, 16), 3, 2, torch.contiguous_format, "direct", True, True),
        ((8, 5, 16, 16, 16), 3, 1, torch.contiguous_format, "direct", False, False),
        ((8, 3, 64, 64), 3, 1, torch.channels_last, "narrow", True, True),
        ((8, 3, 112, 112), 7, 2, torch.contiguous_format, "narrow", True, True),
        ((2, 3, 224, 224), 16, 16, torch.contiguous_format, "narrow", True, True),
        ((1, 32, 16, 16, 16), 5, 1, torch.contiguous_format, "direct", True, True),
        ((1, 32, 16, 16, 16), 3, 1, torch.contiguous_format, "winograd", False, False),
    ],
)
def test_what_is_pytorchs_depends_on_the_processors_maker(
    shape: tuple[int, ...],
    kernel: int,
    stride: int,
    layout: torch.memory_format,
    algorithm: str,
    left_by_intels: bool,
    left_elsewhere: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512")
    dims = len(shape) - 2
    input = torch.empty(shape, device="meta").to(memory_format=layout)
    weight = torch.empty(32, shape[1], *(kernel,) * dims, device="meta")
    sizes = (stride,) * dims, (kernel // 2,) * dims, (0,) * dims, (1,) * dims
    plan = make_plan(shape, tuple(weight.shape), None, *sizes, 1, False)
    for intels, left in ((True, left_by_intels), (False, left_elsewhere)):
        monkeypatch.setattr(choice, "is_intels", lambda intels=intels: intels)
        assert (choice.forward_slower(input, weight, plan, algorithm) is not None) == left


@pytest.mark.parametrize(
    ("size", "outputs", "layout", "transposed", "left"),
    [
        (36, 64, torch.channels_last, False, True),
        (35, 64, torch.channels_last, False, False),
        (64, 64, torch.channels_last, True, True),
        (32, 32, torch.contiguous_format, False, True),
        (31, 32, torch.contiguous_format, False, False),
        (64, 48, torch.contiguous_format, False, False),
        (64, 32, torch.contiguous_format, True, False),
    ],
)
def test_groups_are_pytorchs_by_other_makers_processors(
    size: int,
    outputs: int,
    layout: torch.memory_format,
    transposed: bool,
    left: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512")
    input = torch.empty(1, 64, size, size, device="meta").to(memory_format=layout)
    shape = (64, outputs // 4, 3, 3) if transposed else (outputs, 16, 3, 3)
    sizes = (1, 1), (1, 1), (0, 0), (1, 1)
    plan = make_plan(tuple(input.shape), shape, None, *sizes, 4, transposed)
    weight = torch.empty(shape, device="meta")
    for intels, expected in ((False, left), (True, False)):
        monkeypatch.setattr(choice, "is_intels", lambda intels=intels: intels)
        assert (choice.forward_slower(input, weight, plan, "direct") is not None) == expected


@pytest.mark.parametrize(
    ("stride", "kernel", "layout", "left_by_intels", "left_elsewhere"),
    [
        (3, 3, torch.channels_last, True, False),
        (9, 9, torch.contiguous_format, True, False),
        (10, 11, torch.channels_last, True, True),
        (2, 2, torch.channels_last, True, True),
        (2, 3, torch.channels_last, False, False),
    ],
)
def test_transposed_convolutions_of_many_phases_depend_on_the_processors_maker(
    stride: int,
    kernel: int,
    layout: torch.memory_format,
    left_by_intels: bool,
    left_elsewhere: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512")
    input = torch.empty(2, 64, 52, 52, device="meta").to(memory_format=layout)
    weight = torch.empty(64, 32, kernel, kernel, device="meta")
    sizes = (stride, stride), (0, 0), (0, 0), (1, 1)
    plan = make_plan(tuple(input.shape), tuple(weight.shape), None, *sizes, 1, True)
    for intels, left in ((True, left_by_intels), (False, left_elsewhere)):
        monkeypatch.setattr(choice, "is_intels", lambda intels=intels: intels)
        assert (choice.forward_slower(input, weight, plan, "direct") is not None) == left


@pytest.mark.parametrize(
    ("per_group", "transposed", "left_by_intels", "left_elsewhere"),
    [((16, 4), False, True, False), ((16, 4), True, True, True), ((1, 16), False, True, False)],
)
def test_few_channels_per_group_depend_on_the_processors_maker(
    per_group: tuple[int, int],
    transposed: bool,
    left_by_intels: bool,
    left_elsewhere: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512")
    inputs, outputs = per_group
    input = torch.empty(2, 4 * inputs, 32, 32, device="meta")
    shape = (4 * inputs, outputs, 3, 3) if transposed else (4 * outputs, inputs, 3, 3)
    plan = make_plan(tuple(input.shape), shape, None, (1, 1), (1, 1), (0, 0), (1, 1), 4, transposed)
    weight = torch.empty(shape, device="meta")
    for intels, left in ((True, left_by_intels), (False, left_elsewhere)):
        monkeypatch.setattr(choice, "is_intels", lambda intels=intels: intels)
        assert (choice.forward_slower(input, weight, plan, "direct") is not None) == left


@pytest.mark.parametrize(
    ("batch", "layout", "level", "left"),
    [
        (8, torch.channels_last, "avx512_bf16", True),
        (1, torch.channels_last, "avx512_bf16", False),
        (8, torch.contiguous_format, "avx512_bf16", False),
        (8, torch.channels_last, "avx512", False),
    ],
)
def test_many_pixels_in_bfloat16_and_channels_last_are_pytorchs_by_other_makers_processors(
    batch: int, layout: torch.memory_format, level: str, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "level", lambda: level)
    for room in (choice, precision):
        monkeypatch.setattr(room, "is_intels", lambda: False)
    input = torch.empty(batch, 16, 32, 32, dtype=torch.bfloat16, device="meta").to(memory_format=layout)
    weight = torch.empty(16, 16, 3, 3, dtype=torch.bfloat16, device="meta")
    plan = make_plan(tuple(input.shape), tuple(weight.shape), None, (1, 1), (1, 1), (0, 0), (1, 1), 1, False)
    assert (choice.forward_slower(input, weight, plan, "other") is not None) == left


@pytest.mark.parametrize(
    ("kernel", "stride", "layout", "left"),
    [
        (1, 1, torch.channels_last, True),
        (1, 1, torch.contiguous_format, False),
        (1, 2, torch.channels_last, False),
        (3, 1, torch.channels_last, False),
    ],
)
def test_gradients_of_one_pixels_kernel_in_channels_last_are_pytorchs_by_other_makers_processors(
    kernel: int, stride: int, layout: torch.memory_format, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512")
    input = torch.empty(4, 256, 28, 28, device="meta").to(memory_format=layout)
    weight = torch.empty(64, 256, kernel, kernel, device="meta")
    sizes = (stride, stride), (kernel // 2,) * 2, (0, 0), (1, 1)
    plan = make_plan(tuple(input.shape), tuple(weight.shape), None, *sizes, 1, False)
    for intels, expected in ((False, left), (True, False)):
        monkeypatch.setattr(choice, "is_intels", lambda intels=intels: intels)
        assert (choice.leave_gradients(input, weight, plan) is not None) == expected


@pytest.mark.parametrize(
    ("channels", "side", "kernel", "groups", "layout", "left"),
    [
        ((2, 32), 64, 4, 1, torch.channels_last, True),
        ((2, 32), 64, 4, 1, torch.contiguous_format, False),
        ((16, 2), 32, 4, 1, torch.contiguous_format, False),
        ((256, 128), 8, 1, 1, torch.contiguous_format, True),
        ((256, 128), 8, 4, 1, torch.contiguous_format, False),
        ((16, 8), 64, 3, 4, torch.channels_last, True),
        ((16, 8), 16, 3, 4, torch.channels_last, False),
        ((16, 8), 64, 3, 4, torch.contiguous_format, False),
        ((128, 128), 64, 1, 4, torch.contiguous_format, True),
        ((128, 128), 16, 1, 4, torch.contiguous_format, False),
    ],
)
def test_weight_gradients_left_to_pytorch_by_other_makers_processors(
    channels: tuple[int, int],
    side: int,
    kernel: int,
    groups: int,
    layout: torch.memory_format,
    left: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512")
    monkeypatch.setattr(choice, "is_intels", lambda: False)
    large = torch.empty(8, channels[0], side, side, device="meta").to(memory_format=layout)
    shape = (channels[1], channels[0] // groups, kernel, kernel)
    plan = make_plan(tuple(large.shape), shape, None, (1, 1), (0, 0), (0, 0), (1, 1), groups, False)
    small = torch.empty(plan.output_shape, device="meta").to(memory_format=layout)
    assert (choice.weight_gradient_slower(large, small, plan, "direct") is not None) == left


@pytest.mark.parametrize(
    ("channels", "side", "kernel", "layout", "left"),
    [
        ((32, 32), 16, 3, torch.contiguous_format, False),
        ((256, 8), 32, 3, torch.contiguous_format, False),
        ((128, 128), 8, 3, torch.contiguous_format, True),
        ((64, 32), 32, 3, torch.contiguous_format, True),
        ((64, 16), 64, 3, torch.contiguous_format, False),
        ((64, 16), 64, 3, torch.channels_last, True),
    ],
)
def test_weight_gradients_in_bfloat16_left_to_pytorch_by_other_makers_processors(
    channels: tuple[int, int],
    side: int,
    kernel: int,
    layout: torch.memory_format,
    left: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512_bf16")
    large = torch.empty(8, channels[0], side, side, dtype=torch.bfloat16, device="meta").to(memory_format=layout)
    shape = (channels[1], channels[0], kernel, kernel)
    plan = make_plan(tuple(large.shape), shape, None, (1, 1), (1, 1), (0, 0), (1, 1), 1, False)
    small = torch.empty(plan.output_shape, dtype=torch.bfloat16, device="meta").to(memory_format=layout)
    for room in (choice, precision):
        monkeypatch.setattr(room, "is_intels", lambda: False)
    assert (choice.weight_gradient_slower(large, small, plan, "direct") is not None) == left


@pytest.mark.parametrize(
    ("shape", "groups", "transposed", "layout", "left"),
    [
        ((2, 32, 16, 16, 16), 1, False, torch.contiguous_format, True),
        ((2, 32, 16, 16, 16), 1, True, torch.contiguous_format, False),
        ((2, 32, 16, 16, 16), 4, False, torch.contiguous_format, True),
        ((2, 8, 20, 20), 1, False, torch.contiguous_format, True),
        ((2, 32, 20, 20), 4, False, torch.contiguous_format, True),
        ((2, 36, 20, 20), 4, False, torch.contiguous_format, False),
        ((2, 36, 22, 22), 4, False, torch.channels_last, False),
        ((2, 36, 23, 23), 4, False, torch.channels_last, True),
        ((2, 36, 23, 23), 1, False, torch.channels_last, False),
    ],
)
def test_what_is_pytorchs_in_bfloat16_by_other_makers_processors(
    shape: tuple[int, ...],
    groups: int,
    transposed: bool,
    layout: torch.memory_format,
    left: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "level", lambda: "avx512_bf16")
    for room in (choice, precision):
        monkeypatch.setattr(room, "is_intels", lambda: False)
    dims = len(shape) - 2
    input = torch.empty(shape, dtype=torch.bfloat16, device="meta").to(memory_format=layout)
    size = (shape[1], 32 // groups) if transposed else (32, shape[1] // groups)
    weight = torch.empty(*size, *(3,) * dims, dtype=torch.bfloat16, device="meta")
    sizes = (1,) * dims, (1,) * dims, (0,) * dims, (1,) * dims
    plan = make_plan(shape, tuple(weight.shape), None, *sizes, groups, transposed)
    assert (choice.forward_slower(input, weight, plan, "direct") is not None) == left


@pytest.mark.parametrize(
    ("input", "weight", "groups", "transposed", "light", "light_with_gradients"),
    [
        ((1, 4, 4, 4), (4, 4, 3, 3), 1, False, True, True),
        ((1, 4, 4, 4), (4, 4, 3, 3), 1, True, True, True),
        ((1, 16, 16, 16), (16, 16, 3, 3), 1, False, False, True),
        ((1, 16, 16, 16), (16, 16, 3, 3), 1, True, False, False),
        ((1, 64, 16, 16), (64, 64, 3, 3), 1, False, False, False),
        ((2, 4, 4, 4), (4, 4, 3, 3), 1, False, False, False),
        ((1, 4, 6, 6), (4, 4, 4, 4), 1, False, False, False),
        ((1, 4, 6, 6), (4, 4, 4, 3), 1, True, True, True),
        ((1, 4, 9), (4, 4, 5), 1, False, True, True),
        ((1, 4, 4, 4), (4, 1, 3, 3), 4, False, False, False),
        ((1, 0, 4, 4), (0, 4, 3, 3), 1, True, True, True),
    ],
)
def test_small_calls_are_pytorchs(
    input: tuple[int, ...],
    weight: tuple[int, ...],
    groups: int,
    transposed: bool,
    light: bool,
    light_with_gradients: bool,
) -> None:
    tensors = torch.empty(input), torch.empty(weight)
    assert choice.is_light(*tensors, groups, transposed) == light
    assert choice.is_light(tensors[0], tensors[1].requires_grad_(), groups, transposed) == light_with_gradients
    with torch.no_grad():
        assert choice.is_light(*tensors, groups, transposed) == light


@needs_native
def test_few_channels_of_three_axes_take_the_direct_way() -> None:
    """Their phases' weights outgrow the caches where a block holds few tiles of wide vectors."""
    if not native.has_wide_vectors():
        pytest.skip("narrow vectors fit more tiles")

    def taken(channels: int) -> int:
        shapes = (1, 2 * channels, 8, 16, 16), (2 * channels, channels, 4, 4, 4)
        plan = make_plan(*shapes, None, (2,) * 3, (1,) * 3, (0,) * 3, (1,) * 3, 1, True)
        return cpu.forward_algorithm(*(torch.empty(shape) for shape in shapes), plan)

    assert taken(32) == cpu.DIRECT
    assert taken(64) == cpu.WINOGRAD


@pytest.mark.parametrize(("channels", "chosen"), [(16, "reference"), (32, "cpu")])
def test_a_panel_half_empty_on_three_axes_is_pytorchs_by_intels(
    channels: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native.has_wide_vectors():
        pytest.skip("narrow vectors have narrower panels")
    monkeypatch.setattr(choice, "is_intels", lambda: True)
    tensors = torch.randn(1, 32, 8, 16, 16), torch.randn(32, channels, 4, 4, 4)
    assert aigc_fast.explain("conv_transpose3d", *tensors, stride=2, padding=1).chosen == chosen


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_a_small_call_is_explained_and_can_be_forced(name: str) -> None:
    tensors = torch.randn(1, 4, 4, 4), torch.randn(4, 4, 3, 3)
    assert "small" in aigc_fast.explain(name, *tensors).reasons["cpu"]
    with aigc_fast.backend("triton"), pytest.raises(BackendError):
        getattr(AF, name)(*tensors)


class TestRemembered:
    """The second plain call of a kind goes straight to what ran the first."""

    @pytest.mark.parametrize("channels", [4, 24], ids=["packed for the call", "packed once"])
    @pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
    def test_sees_what_changed_since(self, name: str, channels: int) -> None:
        ours, theirs = getattr(AF, name), getattr(TF, name)
        x, weight, bias = torch.randn(2, channels, 9, 9), torch.randn(channels, channels, 4, 4), torch.randn(channels)

        def check(*args: Any) -> None:
            torch.testing.assert_close(ours(*args), theirs(*args), rtol=1e-4, atol=1e-3, equal_nan=True)

        for stride in (2, (2, 1), [1, 2]):
            for _ in range(3):
                check(x, weight, bias, stride, 1)
                check(x, weight, None, stride, 1)
                check(x[0], weight, bias, stride, 1)
                check(x.to(memory_format=torch.channels_last), weight, bias, stride, 1)
                weight.mul_(0.9)
                bias.add_(1.0)
        weight[0, 0, 1, 2] = math.inf
        check(x, weight, bias, 2, 1)
        x[0, 0, 3, 3] = math.nan
        check(x, weight, bias, 2, 1)

    def test_other_calls_are_looked_at(self) -> None:
        x, weight = torch.randn(1, 4, 9, 9), torch.randn(4, 4, 4, 4)
        for _ in range(2):
            AF.conv_transpose2d(x, weight, None, 2)
        with pytest.raises(RuntimeError, match="input has shape"):
            AF.conv_transpose1d(x, weight, None, 2)
        assert AF.conv_transpose2d(x, weight.requires_grad_(), None, 2).requires_grad
        weight.requires_grad_(False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert AF.conv_transpose2d(x, weight, None, 2).dtype == torch.bfloat16
        with pytest.raises(BackendError), aigc_fast.backend("cuda"):
            AF.conv_transpose2d(x, weight, None, 2)

    @needs_native
    def test_signatures_tell_tensors_apart(self) -> None:
        x = torch.randn(2, 3, 4)
        others = [x.transpose(0, 1), x.double(), x[:1], x[..., ::2], x.to("meta"), x.unsqueeze(0), x.view(torch.int32)]
        found = [native.signature(tensor) for tensor in (x, *others)]
        assert len(set(found)) == len(found)
        assert native.signature(x, None) != native.signature(None, x) != native.signature(x)
        assert native.signature(torch.randn(2, 3, 4)) == found[0]


@needs_native
@pytest.mark.parametrize(
    ("size", "kernel", "dtype", "layout", "left", "left_with_gradients"),
    [
        ((2, 64, 56, 56), 3, torch.float32, torch.contiguous_format, False, False),
        ((2, 64, 56, 56), 3, torch.float32, torch.channels_last, True, True),
        ((2, 64, 56, 56), 7, torch.float32, torch.channels_last, False, False),
        ((8, 512, 7, 7), 7, torch.float32, torch.contiguous_format, True, False),
        ((2, 64, 56, 56), 7, torch.bfloat16, torch.contiguous_format, True, False),
        ((2, 64, 560), 3, torch.bfloat16, torch.contiguous_format, False, False),
        ((1, 32, 8, 28, 28), 3, torch.float32, torch.contiguous_format, False, False),
    ],
)
def test_depthwise_is_left_where_pytorchs_is_as_fast(
    size: tuple[int, ...],
    kernel: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
    left: bool,
    left_with_gradients: bool,
) -> None:
    input = torch.randn(size, dtype=dtype).contiguous(memory_format=layout)
    dims, channels = len(size) - 2, size[1]
    weight = torch.randn(channels, 1, *[kernel] * dims, dtype=dtype)
    arguments = {"padding": kernel // 2, "groups": channels}
    for wanted, expected in ((False, left), (True, left_with_gradients)):
        found = aigc_fast.explain(f"conv{dims}d", input, weight.requires_grad_(wanted), **arguments)
        assert (found.chosen == "reference") == (expected or left), found
        output = getattr(AF, f"conv{dims}d")(input, weight, **arguments)
        assert not wanted or output.grad_fn.name().startswith("Conv" if expected else "conv")


@needs_native
@pytest.mark.parametrize("transposed", [False, True])
def test_calls_that_want_gradients_are_remembered_for_whom_they_are(
    transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "is_intels", lambda: True)
    function = AF.conv_transpose2d if transposed else AF.conv2d
    input = torch.randn(2, 64, 14, 14)
    for groups in (32, 1):
        weight = torch.randn(64, 64 // groups, 3, 3, requires_grad=True)
        first, again = (function(input, weight, padding=1, groups=groups) for _ in range(2))
        assert again.grad_fn.name() == first.grad_fn.name()
        assert groups == 1 or first.grad_fn.name().startswith("Convolution")
        with torch.no_grad():
            plain = function(input, weight, padding=1, groups=groups)
        assert plain.grad_fn is None
        torch.testing.assert_close(again, plain)
        with aigc_fast.backend("cpu"):
            forced = function(input, weight, padding=1, groups=groups)
        assert forced.grad_fn.name().startswith("conv")
        torch.testing.assert_close(forced, plain)
        gradients = [torch.autograd.grad(output.square().sum(), weight) for output in (first, again, forced)]
        torch.testing.assert_close(gradients[1], gradients[0])
        torch.testing.assert_close(gradients[2], gradients[0], rtol=1e-4, atol=1e-4)
