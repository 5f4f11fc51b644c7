"""Stock PyTorch against the same model after `aigc_fast.optimize`: first the numbers, then the time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast.bench import decoders, stock
from aigc_fast.bench.parity import comparable, in_float64, relative_error, worst_error
from aigc_fast.optimize import Report, optimize, report
from aigc_fast.runtime.timing import Timing, interleaved


@dataclass(frozen=True)
class Parity:
    """How the optimised model's numbers compare.

    Attributes:
        error: largest relative error of aigc_fast's images, logits and gradients against float64; the gradients with
            smooth activations and without dropout.
        stock_error: the same for stock PyTorch in float32.
        difference: largest absolute difference between the pixels of both.
        same_keys: whether the state_dict has the same names in the same order.
        same_values: whether every tensor in it is equal, bit for bit.
        loads_back: whether stock PyTorch loads the optimised model's state_dict, strictly.
    """

    error: float
    stock_error: float
    difference: float
    same_keys: bool
    same_values: bool
    loads_back: bool


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: what kind of work.
        name: what was timed.
        stock: PyTorch, contiguous.
        channels_last: PyTorch, channels_last; None where a layout makes no difference.
        fast: aigc_fast.
        error: aigc_fast's relative error against float64.
        stock_error: PyTorch's.
    """

    group: str
    name: str
    stock: Timing
    channels_last: Timing | None
    fast: Timing
    error: float
    stock_error: float

    @property
    def ratio(self) -> float:
        """How many times faster aigc_fast is than the better of PyTorch's layouts."""
        best = min(timing.median for timing in (self.stock, self.channels_last) if timing)
        return best / self.fast.median


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: the proof of parity, what `optimize` did, and the table."""

    parity: Parity
    report: Report
    rows: tuple[Row, ...]


def _gan_outputs(model: stock.StockDCGAN, images: Tensor, z: Tensor) -> list[Tensor]:
    """Images, logits and every gradient of one training step."""
    smooth = comparable(model)
    loss, generator_loss = stock.gan_losses(smooth, images, z)
    of_discriminator = torch.autograd.grad(loss, list(smooth.discriminator.parameters()))
    of_generator = torch.autograd.grad(generator_loss(), list(smooth.generator.parameters()))
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        drawn = model.generator(z)
        return [drawn, model.discriminator(drawn), *of_discriminator, *of_generator]


def prove_parity(plain: stock.StockDCGAN, fast: stock.StockDCGAN, images: Tensor, z: Tensor) -> Parity:
    """Compares images, logits, gradients and state_dicts of a model and its optimised copy."""
    exact = _gan_outputs(in_float64(plain), images.cpu().double(), z.cpu().double())
    theirs, ours = _gan_outputs(plain, images, z), _gan_outputs(fast, images, z)
    before, after = plain.state_dict(), fast.state_dict()
    same_keys = list(before) == list(after)
    missing, unexpected = stock.StockDCGAN().load_state_dict(after, strict=False)
    return Parity(
        error=worst_error(ours, exact),
        stock_error=worst_error(theirs, exact),
        difference=(ours[0] - theirs[0]).abs().max().item(),
        same_keys=same_keys,
        same_values=same_keys and all(torch.equal(before[name], after[name]) for name in before),
        loads_back=not missing and not unexpected,
    )


def _channels_last(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def _model_row(
    group: str, name: str, calls: dict[str, Callable[[], object]], errors: tuple[float, float], seconds: float
) -> Row:
    times = interleaved(calls, seconds)
    return Row(group, name, times["stock"], times.get("channels_last"), times["fast"], *errors)


def _step_rows(
    plain: stock.StockDCGAN, fast: stock.StockDCGAN, images: Tensor, parity: Parity, seconds: float
) -> Iterator[Row]:
    models = {"stock": plain, "channels_last": _channels_last(plain), "fast": fast}
    models = {name: copy.deepcopy(model).train() for name, model in models.items()}
    optimisers = {name: torch.optim.Adam(model.parameters(), 1e-4) for name, model in models.items()}
    calls = {
        name: lambda model=model, name=name: stock.gan_step(model, optimisers[name], images)
        for name, model in models.items()
    }
    errors = parity.error, parity.stock_error
    yield _model_row("Whole model", f"DCGAN training step, batch {len(images)}", calls, errors, seconds)


def _generate(model: nn.Module, z: Tensor) -> Tensor:
    with torch.no_grad():
        return model(z)


def _generation_rows(plain: stock.StockDCGAN, fast: stock.StockDCGAN, z: Tensor, seconds: float) -> Iterator[Row]:
    models = {"stock": plain, "channels_last": _channels_last(plain), "fast": fast}
    generators = {name: copy.deepcopy(model.generator).eval() for name, model in models.items()}
    exact = in_float64(generators["stock"])
    for count in (len(z), 1):
        calls = {name: lambda g=g, n=count: _generate(g, z[:n]) for name, g in generators.items()}
        reference = _generate(exact, z[:count].cpu().double())
        errors = relative_error(calls["fast"](), reference), relative_error(calls["stock"](), reference)
        plural = "s" if count > 1 else ""
        yield _model_row("Whole model", f"DCGAN, generate {count} image{plural}", calls, errors, seconds)


def _vae_row(images: Tensor, seconds: float) -> Row:
    plain = stock.StockConvVAE().to(images.device)
    fast = optimize(copy.deepcopy(plain))
    models = {"stock": plain, "channels_last": _channels_last(plain), "fast": fast}
    samplers = {"fast": functional.reparameterize_kl}
    optimisers = {name: torch.optim.Adam(model.parameters(), 1e-4) for name, model in models.items()}

    def gradients(model: stock.StockConvVAE, images: Tensor) -> list[Tensor]:
        # With z = μ there is nothing random to differ in.
        model = comparable(model)
        loss = model(images, lambda mu, logvar: (mu, stock.sample_and_kl(mu, logvar)[1]))
        return list(torch.autograd.grad(loss, list(model.parameters())))

    exact = gradients(in_float64(plain), images.cpu().double())
    errors = worst_error(gradients(fast, images), exact), worst_error(gradients(plain, images), exact)
    calls = {
        name: lambda m=model, n=name: stock.vae_step(m, optimisers[n], images, samplers.get(n, stock.sample_and_kl))
        for name, model in models.items()
    }
    return _model_row("Whole model", f"ConvVAE training step, batch {len(images)}", calls, errors, seconds)


def _decoder_rows(device: torch.device, seconds: float, small: bool) -> Iterator[Row]:
    """A vocoder and a decoder of latent images, as their users call them."""
    vocoder = decoders.StockHiFiGAN(32) if small else decoders.StockHiFiGAN()
    yield _decoder_row("HiFi-GAN, a second of sound", vocoder, (decoders.MELS, decoders.FRAMES), device, seconds)
    decoder = decoders.StockLatentDecoder((32, 16, 8, 8)) if small else decoders.StockLatentDecoder()
    yield _decoder_row("VAE decoder, a 256×256 image", decoder, decoders.LATENT_SHAPE, device, seconds)


def _decoder_row(name: str, plain: nn.Module, shape: tuple[int, ...], device: torch.device, seconds: float) -> Row:
    """Of ours the faster layout, as of PyTorch's; of both the larger error of theirs."""
    plain = plain.to(device).eval()
    x = torch.randn(1, *shape, device=device)
    models = {"stock": plain, "fast": optimize(copy.deepcopy(plain))}
    if x.dim() == 4:
        models |= {"channels_last": _channels_last(plain), "fast channels_last": optimize(_channels_last(plain))}
    calls = {way: lambda model=model: _generate(model, x) for way, model in models.items()}
    exact = _generate(in_float64(plain), x.cpu().double())
    errors = {way: relative_error(call(), exact) for way, call in calls.items()}
    times = interleaved(calls, seconds)
    ours = [way for way in models if way.startswith("fast")]
    best = min((times[way] for way in ours), key=lambda timing: timing.median)
    error, stock_error = (max(errors[way] for way in errors if (way in ours) == mine) for mine in (True, False))
    return Row("Whole model", name, times["stock"], times.get("channels_last"), best, error, stock_error)


def _inputs_of(model: stock.StockDCGAN, images: Tensor, z: Tensor) -> dict[str, Tensor]:
    """What each layer of the generator and the discriminator is called with, by the layer's name."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0].detach()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.ConvTranspose2d | nn.Conv2d | nn.Dropout)
    ]
    with torch.no_grad():
        model.generator(z)
        model.discriminator(images)
    for hook in hooks:
        hook.remove()
    return found


def _layer_text(layer: nn.Module, x: Tensor) -> str:
    size = "×".join(map(str, x.shape[1:]))
    if isinstance(layer, nn.Dropout):
        return f"Dropout({layer.p}) on {size}"
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    kind = type(layer).__name__
    return f"{kind} {layer.in_channels}→{layer.out_channels}, {kernel}×{kernel} stride {stride}, on {size}"


def _train_call(layer: nn.Module, x: Tensor) -> Callable[[], list[Tensor]]:
    """Forward, and backward to the input and the parameters."""
    x = x.detach().requires_grad_()
    with torch.no_grad():
        gradient = torch.ones_like(layer(x))

    def call() -> list[Tensor]:
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], gradient)]

    return call


def _forward_call(layer: nn.Module, x: Tensor) -> Callable[[], list[Tensor]]:
    def call() -> list[Tensor]:
        with torch.no_grad():
            return [layer(x)]

    return call


def _dropout_error(y: Tensor, x: Tensor, p: float) -> float:
    """Kept elements are x / (1 − p); which are kept is random."""
    kept = y != 0
    return relative_error(y[kept], x[kept].cpu().double() / (1 - p))


def _layer_row(plain: nn.Module, fast: nn.Module, x: Tensor, train: bool, seconds: float) -> Row:
    make = _train_call if train else _forward_call
    calls = {"stock": make(plain, x), "fast": make(fast, x)}
    if isinstance(plain, nn.Dropout):
        errors = tuple(_dropout_error(calls[name]()[0], x, plain.p) for name in ("fast", "stock"))
    else:
        calls["channels_last"] = make(_channels_last(plain), x.to(memory_format=torch.channels_last))
        exact = make(in_float64(plain), x.cpu().double())()
        errors = worst_error(calls["fast"](), exact), worst_error(calls["stock"](), exact)
    times = interleaved(calls, seconds)
    group = "One layer, forward and backward" if train else "One layer, forward"
    return Row(group, _layer_text(plain, x), times["stock"], times.get("channels_last"), times["fast"], *errors)


def _layer_rows(
    plain: stock.StockDCGAN, fast: stock.StockDCGAN, images: Tensor, z: Tensor, seconds: float
) -> Iterator[Row]:
    plain, fast = copy.deepcopy(plain).train(), copy.deepcopy(fast).train()
    for train in (False, True):
        for name, x in _inputs_of(plain, images, z).items():
            layer = plain.get_submodule(name)
            if train or not isinstance(layer, nn.Dropout):
                yield _layer_row(layer, fast.get_submodule(name), x, train, seconds)


def _sampling_row(device: torch.device, seconds: float) -> Row:
    mu, logvar = torch.randn(2, stock.BATCH, 512, device=device)

    def call(sampler: stock.SampleAndKl) -> Callable[[], tuple[Tensor, ...]]:
        leaves = [mu.clone().requires_grad_(), logvar.clone().requires_grad_()]

        def run() -> tuple[Tensor, ...]:
            z, kl = sampler(*leaves)
            return kl.detach(), *torch.autograd.grad(z.sum() + kl.sum(), leaves)

        return run

    calls = {"stock": call(stock.sample_and_kl), "fast": call(functional.reparameterize_kl)}
    exact = stock.sample_and_kl(mu.cpu().double(), logvar.cpu().double())[1]
    errors = relative_error(calls["fast"]()[0], exact), relative_error(calls["stock"]()[0], exact)
    times = interleaved(calls, seconds)
    name = f"VAE sampling and KL, {stock.BATCH}×512"
    return Row("One layer, forward and backward", name, times["stock"], None, times["fast"], *errors)


def compare(
    images: Tensor, seconds: float, on_row: Callable[[Row], None] = lambda row: None, small: bool = False
) -> Comparison:
    """Optimises a stock DCGAN, proves parity, and times both; then other models and layers.

    Args:
        images: (N, 1, 28, 28) training images in [-1, 1], on the device that is timed; N is the batch size.
        seconds: about how long each line of the table is measured.
        on_row: called with each line as it is ready.
        small: whether the vocoder and the decoder of latent images have few channels.
    """
    torch.manual_seed(0)
    plain = stock.StockDCGAN().to(images.device)
    z = torch.randn(len(images), stock.LATENT, device=images.device)
    fast = optimize(copy.deepcopy(plain))
    parity = prove_parity(plain, fast, images, z)
    rows = []
    for source in (
        _step_rows(plain, fast, images, parity, seconds),
        _generation_rows(plain, fast, z, seconds),
        (_vae_row(images, seconds) for _ in range(1)),
        _decoder_rows(images.device, seconds, small),
        _layer_rows(plain, fast, images, z, seconds),
        (_sampling_row(images.device, seconds) for _ in range(1)),
    ):
        for row in source:
            rows.append(row)
            on_row(row)
    return Comparison(parity, report(fast), tuple(rows))
