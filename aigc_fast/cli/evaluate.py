"""`aigc-fast evaluate`: how good, how varied and how original images or sounds are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

from aigc_fast import data as datasets
from aigc_fast.cli.app import console
from aigc_fast.cli.options import (
    MEDIA,
    Background,
    Class,
    Data,
    Device,
    MaxPixels,
    Overwrite,
    Seed,
    chosen_device,
    class_of,
    has_model,
    load_model,
    new_file,
    reading_options,
    tell,
    trained_on,
    training_data,
    with_default,
)
from aigc_fast.data import Dataset, SoundDataset
from aigc_fast.data.audio import WAV_SUFFIXES
from aigc_fast.data.folder import files_below
from aigc_fast.data.pictures import picture_suffixes
from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance, draw, provenance_of, write_png
from aigc_fast.metrics import (
    ImageReport,
    SoundReport,
    evaluate_images,
    evaluate_sounds,
    nearest_neighbours,
    pairing_grid,
)
from aigc_fast.wording import counted, listed

PAIRS = 30
_COUNTS = {"images": 1000, "sounds": 60}

ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("Fréchet distance", "frechet", "{:.1f}", "0; {frechet_of_training:.1f} between two halves of the training images"),
    ("Precision", "precision", "{:.2f}", "1: every image lies among the training images"),
    ("Recall", "recall", "{:.2f}", "1: every training image lies among these"),
    ("Density", "density", "{:.2f}", "about 1"),
    ("Coverage", "coverage", "{:.2f}", "1: every training image has one of these nearby"),
    (
        "Nearest training image",
        "nearest",
        "{:.2f}",
        "{nearest_of_training:.2f} from one training image to the next; near 0 would be copying",
    ),
    (
        "Effective classes",
        "effective_classes",
        "{:.1f}",
        "{training_effective_classes:.1f} in the training images; 1 is a collapsed model",
    ),
)
"""Name, attribute of `ImageReport`, its format, and what would be ideal."""

SOUND_ROWS: tuple[tuple[str, str, str, str], ...] = (
    (
        "To nearest training sound",
        "nearest",
        "{:.2f}",
        "{nearest_of_training:.2f} between training sounds; {nearest_of_noise:.2f} from noise",
    ),
    ("From training sounds to these", "reach", "{:.2f}", "{nearest_of_training:.2f}"),
    ("From one to the next", "spread", "{:.2f}", "{nearest_of_training:.2f}; near 0 is a collapsed model"),
)
"""The same for `SoundReport`."""

Measured = Annotated[
    Path,
    typer.Argument(
        metavar="SUBJECT",
        help=f"A model file, a run's folder, a medium ({' or '.join(MEDIA)}: its newest model), or a folder of images "
        "or WAV files.",
    ),
]
Count = Annotated[
    int | None,
    typer.Option(
        min=6,
        max=100_000,
        help=with_default("How many to draw from the model.", "1000 images, 60 sounds"),
        show_default=False,
    ),
]
NeighboursOut = Annotated[
    Path | None,
    typer.Option(
        "--neighbours", metavar="PNG", help="Also draw images above their nearest training images, to this PNG."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def evaluate(
    subject: Measured,
    data: Data = None,
    background: Background = None,
    max_pixels: MaxPixels = None,
    count: Count = None,
    seed: Seed = 0,
    label: Class = None,
    neighbours: NeighboursOut = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model's images or sounds, or a folder of them, against the training data.

    A model that was not trained on the digits or sounds of the package needs --data.
    Images by the features of a small digit classifier, sounds by the distance of their spectra at several resolutions:
    figures compare models on the same data, not across data.

    Example:  aigc-fast evaluate runs/dcgan/model.safetensors --neighbours out/nearest.png
    """
    if neighbours is not None:
        if neighbours.suffix.lower() != ".png":
            raise UserError(f"{neighbours}: expected the name of a PNG file")
        new_file(neighbours, overwrite)
    place, reading = chosen_device(device), reading_options(background, max_pixels)
    found, training, provenance = _items(subject, data, count, seed, label, place, **reading)
    sounds = isinstance(training, SoundDataset)
    for option, value in (("neighbours", neighbours), ("background", background), ("max-pixels", max_pixels)):
        if sounds and value is not None:
            raise UserError(f"--{option}: {subject} holds sounds, not images")
    report = _measured(subject, found, training)
    tell(training, err=as_json)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report, training, SOUND_ROWS if sounds else ROWS)
    if neighbours is not None:
        shown = found[:PAIRS]
        grid = pairing_grid(shown, training.batch(), nearest_neighbours(shown, training.batch()))
        write_png(neighbours, grid, provenance, scale=2)
        typer.echo(f"Wrote {neighbours}", err=as_json)


def _measured(subject: Path, found: Tensor, training: Dataset) -> ImageReport | SoundReport:
    try:
        if isinstance(training, SoundDataset):
            return evaluate_sounds(found, training.audio)
        return evaluate_images(found, training.batch())
    except ValueError as error:
        raise UserError(f"{subject}: {error}") from None


def _items(
    subject: Path,
    data: Path | None,
    count: int | None,
    seed: int,
    label: str | None,
    device: torch.device,
    **reading: Any,
) -> tuple[Tensor, Dataset, Provenance]:
    """The images or sounds to measure, the data to measure them against, and where the first come from."""
    if subject.is_dir() and not has_model(subject):
        return (
            *_items_of_folder(subject, data, **reading),
            Provenance("files of a folder", None, {"folder": subject.name}),
        )
    model = load_model(subject, device)
    chosen = class_of(model, label)
    training = training_data(model, data, **reading)
    known = trained_on(model)
    if known is not None and known.get("checksum") != training.checksum():
        typer.echo(f"Note: the model was trained on {known.get('name')}, not on this {training.name}", err=True)
    count = count or _COUNTS[training.unit]
    items = draw(model, count, seed=seed, labels=chosen).cpu()
    return items, training, provenance_of(model, seed, count=count, training_data=training.name)


def _items_of_folder(folder: Path, data: Path | None, **reading: Any) -> tuple[Tensor, Dataset]:
    """The items of a folder, and the data to measure them against, whose notes tell of both."""
    if _holds_sounds(folder):
        training = datasets.load_sounds(data)
        measured = datasets.load_sounds(folder, sample_rate=training.sample_rate)
        items = measured.audio
    else:
        training = datasets.load(data, **reading)
        channels, height, _ = training.image_shape
        measured = datasets.load(folder, size=height, channels=channels, **reading)
        items = measured.batch()
    notes = (*training.notes, *(f"{measured.name}: {note}" for note in measured.notes))
    return items, dataclasses.replace(training, notes=notes)


def _holds_sounds(folder: Path) -> bool:
    """Whether a folder is one of sounds, rather than of images.

    Raises:
        UserError: when it is one of both; a picture of a sound's name is its spectrogram.
    """
    files = files_below(folder)
    sounds = {path.with_suffix("") for path in files if path.suffix.lower() in WAV_SUFFIXES}
    images = [path for path in files if path.suffix.lower() in picture_suffixes()]
    others = [path.name for path in images if path.with_suffix("") not in sounds]
    if sounds and others:
        raise UserError(
            f"{folder}: expected images or sounds, got {counted(len(sounds), 'sounds')} and "
            f"{counted(len(others), 'images')} ({listed(others, 3)}): name a folder of one of them"
        )
    return bool(sounds)


def _show(report: ImageReport | SoundReport, training: Dataset, rows: tuple[tuple[str, str, str, str], ...]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "found", "ideal"):
        table.add_column(heading, justify="right" if heading == "found" else "left")
    facts = report.as_dict()
    for name, attribute, form, ideal in rows:
        table.add_row(name, form.format(facts[attribute]), ideal.format(**facts))
    measured = counted(report.count, training.unit)
    console.print(f"{measured} against {report.training_count} of {training.name}", soft_wrap=True, markup=False)
    console.print(table)
    if isinstance(report, ImageReport):
        shares = "  ".join(f"{index}: {share:.0%}" for index, share in enumerate(report.class_histogram))
        console.print(f"Classes, by the classifier:  {shares}", soft_wrap=True)
