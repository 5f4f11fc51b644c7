"""`aigc-fast train`: train a model on images, sounds, text or video."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from aigc_fast.cli.app import BAD_INPUT, INTERRUPTED, console
from aigc_fast.cli.options import (
    MEDIA,
    RUNS,
    Data,
    Device,
    all_settings,
    as_parameter,
    checked_seed,
    chosen,
    chosen_device,
    offering,
    with_default,
)
from aigc_fast.data import Dataset
from aigc_fast.errors import UserError
from aigc_fast.media import Medium, medium_of
from aigc_fast.models import MODELS, create
from aigc_fast.models import Model as Network
from aigc_fast.runtime.ranks import RankLostError, Ranks, joined
from aigc_fast.settings import Setting
from aigc_fast.training import TrainingConfig, TrainingInterrupted, TrainingResult, default_config
from aigc_fast.training import train as run_training
from aigc_fast.training.trainer import trainer_of
from aigc_fast.wording import counted, together

_MODEL, _FILES = "The model", "Files"

_SHAPE = (
    Setting("latent_dim", int, "Size of the latent vector.", least=1),
    Setting("width", int, "Feature maps.", least=1),
    Setting("hidden", int, "Hidden units.", least=1),
    Setting("dropout", float, "The share of hidden elements that training drops.", least=0),
)
_COMMON = (
    Setting("epochs", int, "Passes over the data.", least=1),
    Setting("steps", int, "Training steps in all, instead of epochs.", least=1),
    Setting(
        "batch_size",
        int,
        f"{' or '.join(medium.batch_unit or medium.unit for medium in MEDIA.values()).capitalize()} a step.",
        least=1,
    ),
    Setting("learning_rate", float, "Adam's step size."),
)
_INTERVALS = (
    Setting("sample_interval", int, "Steps between two files of samples; 0 for none.", least=0),
    Setting("checkpoint_interval", int, "Steps between two checkpoints; 0 for one at the end.", least=0),
)


def _of_models(setting: str) -> str:
    """The defaults of a setting, for the models that have it."""
    names: dict[Any, list[str]] = {}
    for name, model in MODELS.items():
        parameters = inspect.signature(model).parameters
        if setting in parameters:
            names.setdefault(parameters[setting].default, []).append(name)
    return ", ".join(f"{default} for {' and '.join(models)}" for default, models in names.items())


def _of_training(setting: str) -> str | None:
    """The defaults of a setting of the training: what all configurations agree on, and families that differ."""
    general, names = set(), {}
    for model in MODELS.values():
        config = TrainingConfig if hasattr(TrainingConfig, setting) else trainer_of(model).config_type
        if hasattr(config, setting):
            general.add(getattr(config, setting))
            families = names.setdefault(getattr(default_config(model), setting), {})
            families[model.family] = True
    common = general.pop() if len(general) == 1 else None
    told = [f"{default} for {' and '.join(families)}" for default, families in names.items() if default != common]
    return ", ".join(told) or None if common is None else "; ".join([str(common), *told])


def _panels() -> dict[str, tuple[Setting, ...]]:
    """The settings that some trainers alone have, by a heading that names their families."""
    families: dict[Setting, dict[str, bool]] = {}
    for model in MODELS.values():
        for setting in trainer_of(model).settings:
            families.setdefault(setting, {})[model.family] = True
    panels: dict[str, tuple[Setting, ...]] = {}
    for setting, names in families.items():
        heading = f"{together(list(names))} only"
        panels[heading] = (*panels.get(heading, ()), setting)
    return panels


def _options(settings: Iterable[Setting], panel: str | None = None) -> list[inspect.Parameter]:
    found = []
    for setting in settings:
        default = setting.default or _of_training(setting.name)
        if default is None and setting.kind is not bool:
            default = _of_models(setting.name) or None
        found.append(as_parameter(setting, default, panel or (_MODEL if setting.shapes_model else None)))
    return found


_OF_FAMILIES = _panels()

Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"One of: {', '.join(MODELS)}.")]
Out = Annotated[
    Path | None,
    typer.Option(help=with_default("Folder of the run.", f"{RUNS}/MODEL"), show_default=False, rich_help_panel=_FILES),
]
Resume = Annotated[
    str | None,
    typer.Option(
        help='Go on from "latest", or from a checkpoint file; "auto": from the latest, where there is one.',
        metavar="WHICH",
        rich_help_panel=_FILES,
    ),
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
Seed = Annotated[
    int, typer.Option(min=0, callback=checked_seed, help="Of the weights, the order of the data and the noise.")
]


@offering(
    seed=_options([*_COMMON, *all_settings("training_settings")]),
    out=[
        *_options(all_settings("data_settings")),
        *(as_parameter(setting, _of_models(setting.name), _MODEL) for setting in _SHAPE),
        *(option for panel, settings in _OF_FAMILIES.items() for option in _options(settings, panel)),
    ],
    tensorboard=_options(_INTERVALS, _FILES),
)
def train(
    model: Model,
    data: Data = None,
    seed: Seed = 42,
    conditional: Conditional = False,
    out: Out = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    tensorboard: Tensorboard = False,
    device: Device = None,
    **given: Any,
) -> None:
    """Train a model on the digits, sounds or clips of the package or Python's help, or on your own.

    The folder gets model.safetensors, samples as training goes, checkpoints and a log. Ctrl-C, SIGTERM, SIGHUP and
    SIGUSR1 (SLURM's warning, --signal=USR1@60) leave a checkpoint and end the run; --resume latest goes on from it.
    Under torchrun its processes share each batch.

    Example:  aigc-fast train dcgan --conditional --epochs 30
    """
    with joined(chosen_device(device)) as place, telling_once() as ranks:
        _train(ranks, place, model, data, seed, conditional, out, resume, overwrite, tensorboard, given)


def _train(
    ranks: Ranks,
    place: torch.device,
    model: str,
    data: Path | None,
    seed: int,
    conditional: bool,
    out: Path | None,
    resume: str | None,
    overwrite: bool,
    tensorboard: bool,
    given: dict[str, Any],
) -> None:
    of_families = [setting for settings in _OF_FAMILIES.values() for setting in settings]
    of_models = [setting for setting in of_families if setting.shapes_model]
    of_training = [setting for setting in of_families if not setting.shapes_model]
    dataset = _load(model, data, chosen(given, all_settings("data_settings")))
    network = _new_model(model, dataset, conditional, seed, chosen(given, [*_SHAPE, *of_models])).to(place)
    settings = chosen(given, [*_COMMON, *all_settings("training_settings"), *of_training, *_INTERVALS])
    config = default_config(network, seed=seed, tensorboard=tensorboard or None, **settings)
    folder = out or RUNS / model
    shown = console if ranks.is_first else None
    result = run_training(network, dataset, config, folder, resume=resume or False, overwrite=overwrite, console=shown)
    if ranks.is_first:
        _tell(result, dataset, folder)


@contextmanager
def telling_once() -> Iterator[Ranks]:
    """Tells why training ended early: of several processes, the first to whom it happens; the others end silently."""
    ranks = Ranks()
    try:
        yield ranks
    except TrainingInterrupted as interrupted:
        if ranks.claims("word"):
            typer.echo(f"aigc-fast: {interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except RankLostError:
        raise typer.Exit(INTERRUPTED) from None
    except UserError:
        if ranks.claims("word"):
            raise
        raise typer.Exit(BAD_INPUT) from None


def _load(name: str, path: Path | None, given: dict[str, Any]) -> Dataset:
    medium: Medium = medium_of(MODELS[name]) if name in MODELS else next(iter(MEDIA.values()))
    _check_options(name, given, {setting.name for setting in medium.data_settings})
    return medium.load(path, **{**(MODELS[name].data_defaults if name in MODELS else {}), **given})


def _new_model(name: str, dataset: Dataset, conditional: bool, seed: int, shape: dict[str, Any]) -> Network:
    if conditional and dataset.num_classes is None:
        raise UserError(f"--conditional: {dataset.name} has no classes")
    classes = {"num_classes": dataset.num_classes} if conditional else {}
    if name in MODELS:
        _check_options(name, shape, inspect.signature(MODELS[name]).parameters)
    torch.manual_seed(seed)
    return create(name, **classes, **dataset.shape, **{**dataset.suited, **shape})


def _check_options(name: str, given: Iterable[str], known: Collection[str]) -> None:
    for option in given:
        if option not in known:
            raise UserError(f"--{option.replace('_', '-')}: {name} has no such setting")


def _tell(result: TrainingResult, dataset: Dataset, folder: Path) -> None:
    trained = f"{counted(result.steps, 'steps')} on {counted(len(dataset), dataset.unit)} of {dataset.name}"
    if result.items_per_second:
        last = "  ".join(f"{name} {value:.3g}" for name, value in result.rows[-1].items() if name != "step")
        console.print(f"{trained}, {result.items_per_second:.0f} {result.unit}/s; {last}", soft_wrap=True)
    else:
        console.print(f"{trained}: the checkpoint had them all", soft_wrap=True)
    console.print(f"Model {result.model_path}, samples in {folder / 'samples'}", soft_wrap=True)
    console.print(f"Next:  aigc-fast generate {result.model_path}", soft_wrap=True)
