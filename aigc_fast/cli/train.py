"""`aigc-fast train`: train a model on images or sounds."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from aigc_fast import data as datasets
from aigc_fast.cli.app import INTERRUPTED, console
from aigc_fast.cli.options import (
    RUNS,
    Background,
    Data,
    Device,
    MaxPixels,
    checked_seed,
    chosen_device,
    with_default,
)
from aigc_fast.data import Dataset
from aigc_fast.data.readers import DEFAULT_SIZE
from aigc_fast.data.sounds import DEFAULT_RATE
from aigc_fast.errors import UserError
from aigc_fast.models import MODELS, LatentModel, SoundModel, create
from aigc_fast.models.vae import LIKELIHOODS
from aigc_fast.training import (
    LOSSES,
    GANConfig,
    TrainingConfig,
    TrainingInterrupted,
    TrainingResult,
    VAEConfig,
    default_config,
)
from aigc_fast.training import train as run_training
from aigc_fast.training.config import SOUND_SETTINGS
from aigc_fast.wording import counted

_MODEL, _GAN, _VAE, _FILES = "The model", "GANs only", "VAEs and vocoder only", "Files"


def _option(kind: Any, help_text: str, panel: str | None = None, default: Any = None, **kwargs: Any) -> Any:
    """An option that is the model's or the configuration's own when it is not given; `default` says which that is."""
    text = help_text if default is None else with_default(help_text, default)
    return Annotated[kind | None, typer.Option(help=text, show_default=False, rich_help_panel=panel, **kwargs)]


def _of_models(setting: str) -> str:
    """The defaults of a setting, for the models that have it."""
    names: dict[Any, list[str]] = {}
    for name, model in MODELS.items():
        parameters = inspect.signature(model).parameters
        if setting in parameters:
            names.setdefault(parameters[setting].default, []).append(name)
    return ", ".join(f"{default} for {' and '.join(models)}" for default, models in names.items())


Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"One of: {', '.join(MODELS)}.")]
Out = Annotated[
    Path | None,
    typer.Option(help=with_default("Folder of the run.", f"{RUNS}/MODEL"), show_default=False, rich_help_panel=_FILES),
]
Resume = Annotated[
    str | None,
    typer.Option(help='Go on from "latest", or from a checkpoint file.', metavar="WHICH", rich_help_panel=_FILES),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace a run that the folder holds, once the new one has a checkpoint.",
        rich_help_panel=_FILES,
    ),
]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write losses and samples for TensorBoard.", rich_help_panel=_FILES)
]
Conditional = Annotated[
    bool,
    typer.Option("--conditional", help="Teach it the classes, so that generate --class works.", rich_help_panel=_MODEL),
]
SpectralNorm = Annotated[
    bool, typer.Option("--spectral-norm", help="Bound the discriminator's slope.", rich_help_panel=_GAN)
]
Seed = Annotated[
    int, typer.Option(min=0, callback=checked_seed, help="Of the weights, the order of the data and the noise.")
]

Size = _option(
    int,
    "Scale the images to this many pixels a side; a multiple of 4 for dcgan and conv-vae.",
    _MODEL,
    f"{DEFAULT_SIZE}; an array's own for an npz and for IDX files",
    min=1,
)
Seconds = _option(float, "Length of the sounds (vocoder).", _MODEL, "1.0")
SampleRate = _option(int, "Bring the sounds to this many Hz (vocoder).", _MODEL, DEFAULT_RATE, min=1)
Channels = _option(int, "1 for grey images, 3 for colour.", _MODEL, "what the images are", min=1, max=3)
LatentDim = _option(int, "Size of the latent vector.", _MODEL, _of_models("latent_dim"), min=1)
Width = _option(int, "Feature maps.", _MODEL, _of_models("width"), min=1)
Hidden = _option(int, "Hidden units.", _MODEL, _of_models("hidden"), min=1)
Epochs = _option(int, "Passes over the data.", None, TrainingConfig.epochs, min=1)
Steps = _option(int, "Training steps in all, instead of epochs.", min=1)
BatchSize = _option(
    int,
    "Images or sounds a step.",
    None,
    f"{TrainingConfig.batch_size}; {SOUND_SETTINGS['batch_size']} for vocoder",
    min=1,
)
LearningRate = _option(
    float,
    "Adam's step size.",
    None,
    f"{GANConfig.learning_rate:g} for GANs, {VAEConfig.learning_rate:g} for VAEs, "
    f"{SOUND_SETTINGS['learning_rate']:g} for vocoder",
)
Shift = _option(int, "Move each image at random by up to so many pixels.", None, TrainingConfig.shift, min=0)
SampleInterval = _option(
    int, "Steps between two files of samples; 0 for none.", _FILES, TrainingConfig.sample_interval, min=0
)
CheckpointInterval = _option(
    int, "Steps between two checkpoints; 0 for one at the end.", _FILES, TrainingConfig.checkpoint_interval, min=0
)
Loss = _option(str, f"One of: {', '.join(LOSSES)}.", _GAN, GANConfig.loss)
CriticSteps = _option(
    int, "Discriminator steps for each generator step.", _GAN, f"{GANConfig.critic_steps}; 5 for wgan-gp", min=1
)
GradientPenalty = _option(float, "Weight of wgan-gp's gradient penalty.", _GAN, GANConfig.gradient_penalty)
Likelihood = _option(str, f"How output and image are compared: {' or '.join(LIKELIHOODS)}.", _VAE, LIKELIHOODS[0])
Beta = _option(float, "Weight of the KL divergence.", _VAE, VAEConfig.beta)
Warmup = _option(
    int,
    "Steps over which that weight grows from 0.",
    _VAE,
    f"{VAEConfig.warmup}; {SOUND_SETTINGS['warmup']} for vocoder",
    min=0,
)
FreeBits = _option(float, "Nats of KL that each latent dimension has for free.", _VAE, VAEConfig.free_bits)


def train(
    model: Model,
    data: Data = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    shift: Shift = None,
    seed: Seed = 42,
    conditional: Conditional = False,
    size: Size = None,
    channels: Channels = None,
    background: Background = None,
    max_pixels: MaxPixels = None,
    seconds: Seconds = None,
    sample_rate: SampleRate = None,
    latent_dim: LatentDim = None,
    width: Width = None,
    hidden: Hidden = None,
    loss: Loss = None,
    critic_steps: CriticSteps = None,
    gradient_penalty: GradientPenalty = None,
    spectral_norm: SpectralNorm = False,
    likelihood: Likelihood = None,
    beta: Beta = None,
    warmup: Warmup = None,
    free_bits: FreeBits = None,
    out: Out = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    sample_interval: SampleInterval = None,
    checkpoint_interval: CheckpointInterval = None,
    tensorboard: Tensorboard = False,
    device: Device = None,
) -> None:
    """Train a model on the embedded digits or sounds, or on your own images or sounds.

    The folder gets model.safetensors, samples as training goes, checkpoints and a log. Ctrl-C, SIGTERM, SIGHUP and
    SIGUSR1 (SLURM's warning, --signal=USR1@60) leave a checkpoint and end the run; --resume latest goes on from it.

    Example:  aigc-fast train dcgan --conditional --epochs 30
    """
    given = dict(locals())
    shape = {name: given[name] for name in ("latent_dim", "width", "hidden", "likelihood") if given[name] is not None}
    shape.update({"spectral_norm": True} if spectral_norm else {})
    settings = {name: given[name] for name in _SETTINGS}
    place = chosen_device(device)
    dataset = _load(model, data, {name: given[name] for name in (*_OF_IMAGES, *_OF_SOUNDS)})
    network = _new_model(model, dataset, conditional, seed, shape).to(place)
    config = default_config(network, seed=seed, tensorboard=tensorboard or None, **settings)
    folder = out or RUNS / model
    try:
        result = run_training(
            network, dataset, config, folder, resume=resume or False, overwrite=overwrite, console=console
        )
    except TrainingInterrupted as interrupted:
        typer.echo(f"aigc-fast: {interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _tell(result, dataset, folder)


_OF_IMAGES = ("size", "channels", "background", "max_pixels")
_OF_SOUNDS = ("seconds", "sample_rate")
_SETTINGS = (
    "epochs",
    "steps",
    "batch_size",
    "learning_rate",
    "shift",
    "loss",
    "critic_steps",
    "gradient_penalty",
    "beta",
    "warmup",
    "free_bits",
    "sample_interval",
    "checkpoint_interval",
)


def _load(name: str, path: Path | None, given: dict[str, Any]) -> Dataset:
    sounds = name in MODELS and issubclass(MODELS[name], SoundModel)
    chosen = {option: value for option, value in given.items() if value is not None}
    _check_options(name, chosen, _OF_SOUNDS if sounds else _OF_IMAGES)
    return datasets.load_sounds(path, **chosen) if sounds else datasets.load(path, **chosen)


def _new_model(name: str, dataset: Dataset, conditional: bool, seed: int, shape: dict[str, Any]) -> LatentModel:
    classes = dataset.num_classes if conditional else None
    if conditional and classes is None:
        raise UserError(f"--conditional: {dataset.name} has no classes")
    if name in MODELS:
        _check_options(name, shape, inspect.signature(MODELS[name]).parameters)
    torch.manual_seed(seed)
    return create(name, num_classes=classes, **dataset.shape, **shape)


def _check_options(name: str, given: Iterable[str], known: Collection[str]) -> None:
    for option in given:
        if option not in known:
            raise UserError(f"--{option.replace('_', '-')}: {name} has no such setting")


def _tell(result: TrainingResult, dataset: Dataset, folder: Path) -> None:
    trained = f"{counted(result.steps, 'steps')} on {counted(len(dataset), dataset.unit)} of {dataset.name}"
    if result.items_per_second:
        last = "  ".join(f"{name} {value:.3g}" for name, value in result.rows[-1].items() if name != "step")
        console.print(f"{trained}, {result.items_per_second:.0f} {dataset.unit}/s; {last}", soft_wrap=True)
    else:
        console.print(f"{trained}: the checkpoint had them all", soft_wrap=True)
    console.print(f"Model {result.model_path}, samples in {folder / 'samples'}", soft_wrap=True)
    console.print(f"Next:  aigc-fast generate {result.model_path}", soft_wrap=True)
