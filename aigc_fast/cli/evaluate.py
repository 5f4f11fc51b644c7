"""`aigc-fast evaluate`: how good, how varied and how original images are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from torch import Tensor

from aigc_fast import data as datasets
from aigc_fast.cli.app import console
from aigc_fast.cli.options import Class, Data, Overwrite, Seed, new_file
from aigc_fast.data import ImageDataset
from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance, draw, provenance_of, write_png
from aigc_fast.metrics import ImageReport, evaluate_images, nearest_neighbours, pairing_grid
from aigc_fast.models import ImageModel, load

PAIRS = 30

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

Subject = Annotated[Path, typer.Argument(metavar="SUBJECT", help="A model file, or a folder of images.")]
Count = Annotated[int, typer.Option(min=6, max=100_000, help="How many images to draw from the model.")]
NeighboursOut = Annotated[
    Path | None,
    typer.Option(
        "--neighbours", metavar="PNG", help="Also draw images above their nearest training images, to this PNG."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def evaluate(
    subject: Subject,
    data: Data = None,
    count: Count = 1000,
    seed: Seed = 0,
    label: Class = None,
    neighbours: NeighboursOut = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model's images, or a folder of images, against the training images.

    The features are a small digit classifier's: figures compare models on the same data, not across data.

    Example:  aigc-fast evaluate runs/dcgan/model.safetensors --neighbours out/nearest.png
    """
    if neighbours is not None:
        new_file(neighbours, overwrite)
    images, training, provenance = _images(subject, data, count, seed, label)
    try:
        report = evaluate_images(images, training.batch())
    except ValueError as error:
        raise UserError(f"{subject}: {error}") from None
    typer.echo(json.dumps(report.as_dict(), indent=2)) if as_json else _show(report, training)
    if neighbours is not None:
        shown = images[:PAIRS]
        grid = pairing_grid(shown, training.batch(), nearest_neighbours(shown, training.batch()))
        write_png(neighbours, grid, provenance, scale=2)
        typer.echo(f"Wrote {neighbours}", err=as_json)


def _images(
    subject: Path, data: Path | None, count: int, seed: int, label: int | None
) -> tuple[Tensor, ImageDataset, Provenance]:
    """The images to measure, those to measure them against, and where the first come from."""
    if subject.is_dir():
        training = datasets.load(data)
        channels, height, _ = training.image_shape
        found = datasets.load(subject, size=height, channels=channels)
        return found.batch(), training, Provenance("images of a folder", None, {"folder": subject.name})
    model = load(subject)
    training = _training_images(model, data)
    try:
        images = draw(model, count, seed=seed, labels=label)
    except ValueError as error:
        raise UserError(str(error)) from None
    return images, training, provenance_of(model, seed, count=count, nearest_training_images_of=training.name)


def _training_images(model: ImageModel, data: Path | None) -> ImageDataset:
    channels, height, width = model.image_shape
    training = datasets.load(data, size=height if height == width else None, channels=channels)
    if training.image_shape != model.image_shape:
        raise UserError(f"{training.name}: images are {training.image_shape}, the model's are {model.image_shape}")
    return training


def _show(report: ImageReport, training: ImageDataset) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "found", "ideal"):
        table.add_column(heading, justify="right" if heading == "found" else "left")
    facts = report.as_dict()
    for name, attribute, form, ideal in ROWS:
        table.add_row(name, form.format(facts[attribute]), ideal.format(**facts))
    console.print(f"{report.count} images against {report.training_count} of {training.name}")
    console.print(table)
    shares = "  ".join(f"{index}: {share:.0%}" for index, share in enumerate(report.class_histogram))
    console.print(f"Classes, by the classifier:  {shares}", soft_wrap=True)
