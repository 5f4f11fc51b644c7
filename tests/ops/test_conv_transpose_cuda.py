"""The CUDA kernel of convolutions to few output channels, as the CPU emulates it."""

from __future__ import annotations

import pytest
import torch
from convolution_cases import Convolution
from convolution_checks import channels_last
from memory import far_apart
from parity import relative_error
from places import EMULATOR, Place

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.conv_transpose.operators import conv_activation
from aigc_fast.ops.conv_transpose.reference import ACTIVATIONS
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import BackendError

pytestmark = pytest.mark.skipif(
    not native.is_emulated or native.cuda is None, reason="AIGC_FAST_CUDA_HOST=1 is not set"
)
IMAGES = Convolution(2, 19, 3, (9, 7), 4, 2, 1)


@pytest.mark.parametrize("place", EMULATOR, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_emulated_images_in_any_layout(dtype: torch.dtype, place: Place) -> None:
    input, weight, bias = IMAGES.tensors(dtype)
    exact = torch.conv_transpose2d(input.double(), weight.double(), bias.double(), 2, 1)
    layouts = channels_last, torch.clone, lambda tensor: torch.stack([tensor, tensor], -1)[..., 0]
    for of_input in layouts:
        for of_weight in layouts:
            with place.in_force():
                found = AF.conv_transpose2d(of_input(input), of_weight(weight), bias[:, None].expand(3, 2)[:, 0], 2, 1)
            assert relative_error(found, exact) < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_emulated_activations(activation: str) -> None:
    input, weight, bias = Convolution(2, 40, 2, (30,), 5, transposed=False).tensors()
    with aigc_fast.backend("cuda"):
        found = conv_activation(input, weight, bias, (1,), (2,), (1,), 1, activation, 0.2)
    plain = torch.conv1d(input.double(), weight.double(), bias.double(), padding=2)
    assert relative_error(found, ACTIVATIONS[activation](plain, 0.2)) < 1e-6


def test_emulated_weights_that_shared_memory_holds_in_parts() -> None:
    input, weight, bias = Convolution(1, 70, 1, (40,), 300, transposed=False, padding=150).tensors()
    with aigc_fast.backend("cuda"):
        found = AF.conv1d(input, weight, bias, padding=150)
    assert native.cuda.last_launch()["shared"] <= 32 << 10
    assert relative_error(found, torch.conv1d(input.double(), weight.double(), bias.double(), padding=150)) < 1e-6


def test_emulated_offsets_beyond_32_bits() -> None:
    input, weight = far_apart(2, 2, 9, step=2**31 + 3), far_apart(2, 3, 4, step=2**31 + 3)
    with aigc_fast.backend("cuda"):
        found = AF.conv_transpose1d(input, weight, stride=2)
    assert relative_error(found, torch.conv_transpose1d(input.double(), weight.double(), stride=2)) < 1e-6


def test_emulated_shapes_of_others() -> None:
    input, weight = torch.ones(1, 2, 9), torch.ones(2, 5, 3)
    with aigc_fast.backend("cuda"):
        with pytest.raises(BackendError, match="cuda: 5 output channels in a group: the kernel takes up to 4"):
            AF.conv_transpose1d(input, weight)
        with pytest.raises(BackendError, match="cuda: 3000 taps: the kernel takes up to 2048"):
            AF.conv_transpose1d(input, weight[:, :1, :1].expand(2, 1, 3000))
        told = aigc_fast.explain("conv_transpose1d", input, weight[:, :3])
    assert (told.chosen, told.detail) == ("cuda", "few output channels: all of a pixel's by one thread")
    assert "cuDNN is the choice until" in aigc_fast.explain("conv_transpose1d", input, weight[:, :3]).reasons["cuda"]
