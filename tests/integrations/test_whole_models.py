"""Public architectures of whole models after `optimize`: as near float64 as stock ones, forward and gradients."""

from __future__ import annotations

import copy
import importlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import with_statistics
from parity import relative_error
from torch import Tensor, nn

import aigc_fast

Made = tuple[nn.Module, tuple[Any, ...]]


def dcgan() -> Made:
    """Radford et al. 2015."""
    layers: list[nn.Module] = []
    for before, after, stride, padding in ((10, 24, 1, 0), (24, 16, 2, 1), (16, 8, 2, 1)):
        layers += [nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False), nn.BatchNorm2d(after)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh()), (torch.randn(3, 10, 1, 1),)


class Pix2Pix(nn.Module):
    """The U-Net of Isola et al. 2017."""

    def __init__(self, widths: tuple[int, ...] = (3, 8, 12, 16)) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b)) for a, b in pairs
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.ConvTranspose2d(b * (1 if b == widths[-1] else 2), a, 4, 2, 1, bias=False),
                nn.BatchNorm2d(a),
            )
            for a, b in reversed(pairs)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for layer in self.down:
            x = layer(x)
            maps.append(x)
        x = self.up[0](x)
        for layer, skip in zip(self.up[1:], maps[-2::-1], strict=True):
            x = layer(torch.cat([x, skip], 1))
        return x


def pix2pix() -> Made:
    return Pix2Pix(), (torch.randn(2, 3, 32, 32),)


class Residual(nn.Module):
    """A block of CycleGAN's generator, Zhu et al. 2017."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels)]
        self.body = nn.Sequential(*half, nn.ReLU(), *copy.deepcopy(half))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def cyclegan() -> Made:
    def ended(channels: int) -> list[nn.Module]:
        return [nn.InstanceNorm2d(channels), nn.ReLU()]

    model = nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, 8, 7),
        *ended(8),
        nn.Conv2d(8, 12, 3, 2, 1),
        *ended(12),
        Residual(12),
        Residual(12),
        nn.ConvTranspose2d(12, 8, 3, 2, 1, 1),
        *ended(8),
        nn.ReflectionPad2d(3),
        nn.Conv2d(8, 3, 7),
        nn.Tanh(),
    )
    return model, (torch.randn(1, 3, 34, 32),)


def _library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


VOCODER = {
    "upsample_initial_channel": 32,
    "upsample_rates": [4, 2],
    "upsample_kernel_sizes": [8, 4],
    "resblock_kernel_sizes": [3, 7, 11],
}


def hifigan() -> Made:
    library = _library("transformers")
    config = library.SpeechT5HifiGanConfig(model_in_dim=12, **VOCODER)
    return library.SpeechT5HifiGan(config), (torch.randn(1, 20, 12),)


def vits() -> Made:
    library = _library("transformers")
    config = library.VitsConfig(flow_size=12, **VOCODER)
    decoder = importlib.import_module("transformers.models.vits.modeling_vits").VitsHifiGan
    return decoder(config), (torch.randn(1, 12, 20),)


def encodec() -> Made:
    library = _library("transformers")
    config = library.EncodecConfig(num_filters=4, hidden_size=16, upsampling_ratios=[4, 2], codebook_dim=16)
    return library.EncodecModel(config).decoder, (torch.randn(1, 16, 15),)


def _with_our_attention(model: nn.Module) -> None:
    importlib.import_module("aigc_fast.integrations.diffusers").use(model)


def sdvae() -> Made:
    library = _library("diffusers")
    model = library.AutoencoderKL(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
    )
    return model.decoder, (torch.randn(1, 4, 24, 22),)


def unet() -> Made:
    library = _library("diffusers")
    model = library.UNet2DModel(
        sample_size=32,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        layers_per_block=1,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return model, (torch.randn(1, 3, 64, 64), 10)


def vit() -> Made:
    library = _library("transformers")
    config = library.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    return library.ViTModel(config), (torch.randn(2, 3, 32, 32),)


def _in_place(model: nn.Module) -> None:
    importlib.import_module("aigc_fast.integrations.transformers")
    model.set_attn_implementation("aigc_fast")


MODELS = (dcgan, pix2pix, cyclegan, hifigan, vits, encodec, sdvae, unet, vit)
# What a user calls besides `optimize`.
INTEGRATIONS: dict[Callable[[], Made], Callable[[nn.Module], None]] = {
    sdvae: _with_our_attention,
    unet: _with_our_attention,
    vit: _in_place,
}


def _output(found: Any) -> Tensor:
    if isinstance(found, Tensor):
        return found
    return found.sample if hasattr(found, "sample") else found.last_hidden_state


def _twins(maker: Callable[[], Made]) -> tuple[nn.Module, nn.Module, nn.Module, tuple[Any, ...], tuple[Any, ...]]:
    torch.manual_seed(0)
    stock, inputs = maker()
    with_statistics(stock)
    exact = copy.deepcopy(stock).double()
    fast = aigc_fast.optimize(copy.deepcopy(stock))
    INTEGRATIONS.get(maker, lambda model: None)(fast)
    doubles = tuple(value.double() if isinstance(value, Tensor) else value for value in inputs)
    return fast, stock, exact, inputs, doubles


@pytest.mark.parametrize("maker", MODELS, ids=lambda maker: maker.__name__)
def test_what_it_computes_is_as_near_float64_as_stock(maker: Callable[[], Made]) -> None:
    fast, stock, exact, inputs, doubles = _twins(maker)
    with torch.no_grad():
        right, theirs = _output(exact.eval()(*doubles)), _output(stock.eval()(*inputs))
        for _ in range(3):  # the second and third call have kept weights
            ours = _output(fast.eval()(*inputs))
            assert ours.shape == theirs.shape
            assert relative_error(ours, right) <= max(2 * relative_error(theirs, right), 2e-6)


@pytest.mark.parametrize("maker", MODELS, ids=lambda maker: maker.__name__)
def test_gradients_are_as_near_float64_as_stock(maker: Callable[[], Made]) -> None:
    twins = _twins(maker)
    found = []
    for model, inputs in ((twins[0], twins[3]), (twins[1], twins[3]), (twins[2], twins[4])):
        # Dropped elements are others.
        for module in model.train().modules():
            module.train(not isinstance(module, nn.Dropout))
        output = _output(model(*inputs))
        weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found.append(torch.autograd.grad((output * weight).sum(), wanted, allow_unused=True))
    norms = [right.norm() for right in found[2] if right is not None]
    for ours, theirs, right in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        # A norm takes the mean away: the gradient to a bias before it is what rounding leaves.
        if right is not None and right.norm() > 1e-6 * max(norms):
            assert relative_error(ours, right) <= max(2 * relative_error(theirs, right), 5e-6)
