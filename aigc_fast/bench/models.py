"""Whole models: stock PyTorch, in both of its layouts, against the same after `optimize`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast.bench import decoders, stock
from aigc_fast.bench.calls import Case, WholeModel
from aigc_fast.bench.contest import CHANNELS_LAST, OURS, PYTORCH, Contest
from aigc_fast.bench.parity import check_parity, comparable, in_float64
from aigc_fast.bench.video import video_model
from aigc_fast.optimize import optimize
from aigc_fast.training import gradient_penalty

_PENALTY = 10.0
_KINDS: dict[str, type[nn.Module]] = {"dcgan": stock.StockDCGAN, "vae": stock.StockConvVAE}
# What is decoded, but for the batch.
_DECODERS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "hifigan": (decoders.StockHiFiGAN, (decoders.MELS, decoders.FRAMES)),
    "latent decoder": (decoders.StockLatentDecoder, decoders.LATENT_SHAPE),
}

Loss = Callable[[nn.Module, Tensor, Tensor], Sequence[Tensor]]


def whole_model(case: Case) -> Contest:
    """A step of training, or a batch generated or decoded."""
    call: WholeModel = case.call
    if call.model in _DECODERS:
        return _decoding(call)
    if call.model not in _KINDS:
        return video_model(case)
    plain = _KINDS[call.model]()
    fast = optimize(copy.deepcopy(plain))
    images = torch.rand(call.batch, 1, 28, 28) * 2 - 1
    z = torch.randn(call.batch, stock.LATENT if call.model == "dcgan" else 2)
    layouts = {"": images, CHANNELS_LAST: images.to(memory_format=torch.channels_last)}
    ways = [
        {name + layout: _way(call, _in_layout(model, layout), shown, z, ours) for layout, shown in layouts.items()}
        for name, model, ours in ((OURS, fast, True), (PYTORCH, plain, False))
    ]
    return Contest(ways[0], ways[1], partial(_gate, call, plain, fast, images, z))


def _decoding(call: WholeModel) -> Contest:
    kind, shape = _DECODERS[call.model]
    plain = kind().eval()
    fast, z = optimize(copy.deepcopy(plain)), torch.randn(call.batch, *shape)
    layouts = ("", CHANNELS_LAST) if z.dim() == 4 else ("",)
    ways = [
        {name + layout: partial(_decoded, _in_layout(model, layout), z) for layout in layouts}
        for name, model in ((OURS, fast), (PYTORCH, plain))
    ]

    def gate() -> tuple[float, float]:
        exact = _decoded(in_float64(plain), z.double())
        return check_parity([_decoded(fast, z)], [_decoded(plain, z)], [exact], torch.float32)

    return Contest(ways[0], ways[1], gate)


def _decoded(model: nn.Module, z: Tensor) -> Tensor:
    with torch.no_grad():
        return model(z)


def _in_layout(model: nn.Module, layout: str) -> nn.Module:
    model = copy.deepcopy(model)
    return model.to(memory_format=torch.channels_last) if layout else model


def _way(call: WholeModel, model: nn.Module, images: Tensor, z: Tensor, ours: bool) -> Callable[[], object]:
    if call.work == "generate":
        return partial(_drawn, model.eval(), z)
    if call.model == "vae":
        sampler = functional.reparameterize_kl if ours else stock.sample_and_kl
        optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        return partial(stock.vae_step, model, optimiser, images, sampler)
    optimiser = torch.optim.Adam(model.parameters(), 2e-4, (0.5, 0.999), fused=True)
    if call.work == "step":
        return partial(stock.gan_step, model, optimiser, images)
    return partial(_penalised_step, model, optimiser, images, z)


def _drawn(model: stock.StockDCGAN, z: Tensor) -> Tensor:
    with torch.no_grad():
        return model.generator(z)


def _penalised_step(model: stock.StockDCGAN, optimiser: torch.optim.Optimizer, images: Tensor, z: Tensor) -> None:
    optimiser.zero_grad()
    _critic_loss(model, images, z).backward()
    optimiser.step()


def _critic_loss(model: stock.StockDCGAN, images: Tensor, z: Tensor) -> Tensor:
    """WGAN-GP's, of the critic (Gulrajani et al. 2017)."""
    fake = _drawn(model, z)
    penalty = gradient_penalty(lambda between: model.discriminator(between).squeeze(1), images, fake)
    return model.discriminator(fake).mean() - model.discriminator(images).mean() + _PENALTY * penalty


def _gate(call: WholeModel, plain: nn.Module, fast: nn.Module, images: Tensor, z: Tensor) -> tuple[float, float]:
    """What is drawn, or every gradient of a step, with the same noise, smooth activations and without dropout."""
    if call.work == "generate":
        models = [plain.eval(), fast.eval(), in_float64(plain).eval()]
        found = [(_drawn(model, z.to(next(model.parameters()).dtype)),) for model in models]
    else:
        models = [comparable(plain), comparable(fast), in_float64(comparable(plain))]
        found = [_gradients(call, model, images, z) for model in models]
    return check_parity(found[1], found[0], found[2], torch.float32)


def _gradients(call: WholeModel, model: nn.Module, images: Tensor, z: Tensor) -> list[Tensor]:
    dtype = next(model.parameters()).dtype
    images, z = images.to(dtype), z.to(dtype)
    parts = model.discriminator if call.model == "dcgan" else model
    if call.model == "vae":
        loss = model(images, lambda mu, logvar: (mu + z * (logvar / 2).exp(), stock.sample_and_kl(mu, logvar)[1]))
    elif call.work == "step":
        loss, generator_loss = stock.gan_losses(model, images, z)
        of_generator = torch.autograd.grad(generator_loss(), list(model.generator.parameters()))
        return [*torch.autograd.grad(loss, list(parts.parameters())), *of_generator]
    else:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            loss = _critic_loss(model, images, z)
    asked = [parameter for parameter in parts.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, asked, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]
