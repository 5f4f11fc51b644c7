"""`aigc-fast evaluate`: how good, how varied and how original images, sounds, texts or clips are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from aigc_fast.cli.app import console
from aigc_fast.cli.options import (
    MEDIA,
    Class,
    Data,
    Device,
    Overwrite,
    Seed,
    all_settings,
    as_parameter,
    chosen,
    chosen_device,
    class_of,
    has_model,
    load_model,
    new_file,
    offering,
    tell,
    training_data,
    with_default,
)
from aigc_fast.data import Dataset
from aigc_fast.data.folder import files_below
from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance, provenance_of, write_png
from aigc_fast.media import Medium, medium_of
from aigc_fast.media.images import IMAGES
from aigc_fast.media.medium import Report, trained_on
from aigc_fast.media.text import weights_kept
from aigc_fast.models import Model, TextModel
from aigc_fast.runtime.weights import WEIGHTS
from aigc_fast.wording import counted, listed

Measured = Annotated[
    Path,
    typer.Argument(
        metavar="SUBJECT",
        help=f"A model file, a run's folder, a Hugging Face folder or GGUF file, a medium ({' or '.join(MEDIA)}: its "
        "newest model), or a folder of images, WAV files, texts or animations.",
    ),
]
Count = Annotated[
    int | None,
    typer.Option(
        min=6,
        max=100_000,
        help=with_default(
            "How many to draw from the model.",
            ", ".join(f"{medium.evaluated} {medium.unit}" for medium in MEDIA.values()),
        ),
        show_default=False,
    ),
]
NeighboursOut = Annotated[
    Path | None,
    typer.Option(
        "--neighbours", metavar="PNG", help="Also draw images above their nearest training images, to this PNG."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Keep a character model's or transformer's weights as {', '.join(WEIGHTS)}, and show what that changes.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


_READING, _MEASURING = all_settings("reading_settings"), all_settings("measuring_settings")


@offering(
    count=[as_parameter(setting, setting.default) for setting in _READING],
    weights=[as_parameter(setting, setting.default) for setting in _MEASURING],
)
def evaluate(
    subject: Measured,
    data: Data = None,
    count: Count = None,
    seed: Seed = 0,
    label: Class = None,
    neighbours: NeighboursOut = None,
    weights: Weights = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Measure a model's images, sounds, texts or clips, or a folder of them, against the training data.

    A model that was not trained on the digits, sounds or clips of the package, or on Python's help, needs --data.
    Images by the features of a small digit classifier, sounds by the distance of their spectra at several resolutions,
    texts by how often they repeat themselves and the training text, clips by the features of a small network that sees
    what moves; a text or video model besides by how well it foretells what was held out, answers by how near they come
    to what was wanted. Figures compare models on the same data, not across data.

    Example:  aigc-fast evaluate runs/dcgan/model.safetensors --neighbours out/nearest.png
    """
    if neighbours is not None:
        if neighbours.suffix.lower() != ".png":
            raise UserError(f"{neighbours}: expected the name of a PNG file")
        new_file(neighbours, overwrite, "--neighbours")
    place, reading, measuring = chosen_device(device), chosen(given, _READING), chosen(given, _MEASURING)
    if subject.is_dir() and not has_model(subject):
        medium = _medium_of_folder(subject)
        _check_options(subject, medium, neighbours, [*reading, *measuring])
        model = None
        if weights is not None:
            raise UserError(f"--weights: {subject} is no model of texts")
        found, training = _items_of_folder(medium, subject, data, **reading)
        provenance = Provenance("files of a folder", None, {"folder": subject.name})
    else:
        model = load_model(subject, place)
        medium = medium_of(model)
        chosen_class = class_of(model, label)
        _check_options(subject, medium, neighbours, [*reading, *measuring])
        training = _training_of(model, data, **reading)
        if weights is not None:
            _keep_weights(subject, model, weights)
        count = count or medium.evaluated
        found = medium.draw_to_measure(model, training, count, seed, chosen_class, **measuring)
        provenance = provenance_of(model, seed, count=count, training_data=training.name)
    report = _measured(subject, medium, found, training, model)
    tell(training, err=as_json)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report, training, medium)
    if neighbours is not None:
        write_png(neighbours, medium.beside_nearest(found, training), provenance, scale=2)
        typer.echo(f"Wrote {neighbours}", err=as_json)


def _keep_weights(subject: Path, model: Model, weights: str) -> None:
    if not isinstance(model, TextModel):
        raise UserError(f"--weights: {subject} is no model of texts")
    weights_kept(model, weights)


def _check_options(subject: Path, medium: Medium, neighbours: Path | None, names: Iterable[str]) -> None:
    """Refuses options that are of another medium."""
    if neighbours is not None and not medium.pictured:
        raise _not_of(medium, subject, "neighbours", IMAGES)
    for name in names:
        owner = next(other for other in MEDIA.values() if _takes(other, name))
        if not _takes(medium, name):
            raise _not_of(medium, subject, name, owner)


def _takes(medium: Medium, name: str) -> bool:
    return any(setting.name == name for setting in (*medium.reading_settings, *medium.measuring_settings))


def _not_of(medium: Medium, subject: Path, option: str, owner: Medium) -> UserError:
    return UserError(f"--{option.replace('_', '-')}: {subject} holds {medium.unit}, not {owner.unit}")


def _measured(subject: Path, medium: Medium, found: Any, training: Dataset, model: Model | None) -> Report:
    try:
        return medium.measure(found, training, model)
    except ValueError as error:
        raise UserError(f"{subject}: {error}") from None


def _training_of(model: Model, data: Path | None, **reading: Any) -> Dataset:
    """The data to measure a model's items against."""
    training = training_data(model, data, **reading)
    known = trained_on(model)
    if known and known.get("checksum") != training.checksum():
        typer.echo(f"Note: the model was trained on {known.get('name')}, not on this {training.name}", err=True)
    return training


def _items_of_folder(medium: Medium, folder: Path, data: Path | None, **reading: Any) -> tuple[Any, Dataset]:
    """The items of a folder, and the data to measure them against, whose notes tell of both."""
    training = medium.load(data, **reading)
    measured = medium.load_like(training, folder, **reading)
    notes = (*training.notes, *(f"{measured.name}: {note}" for note in measured.notes))
    return medium.items(measured), dataclasses.replace(training, notes=notes)


def _medium_of_folder(folder: Path) -> Medium:
    """The medium of a folder's files; the first where it has none.

    Raises:
        UserError: when it is one of several; a picture of another file's name shows that file.
    """
    files = files_below(folder)
    of_media = {medium: [path for path in files if medium.is_item(path)] for medium in MEDIA.values()}
    shown = {path.with_suffix("") for medium, paths in of_media.items() if medium is not IMAGES for path in paths}
    of_media[IMAGES] = [path for path in of_media[IMAGES] if path.with_suffix("") not in shown]
    there = {medium: paths for medium, paths in of_media.items() if paths}
    if not all(medium.companion for medium in there):
        there = {medium: paths for medium, paths in there.items() if not medium.companion}
    if len(there) > 1:
        *others, (last, paths) = reversed(there.items())
        counts = ", ".join(counted(len(found), medium.unit) for medium, found in others)
        raise UserError(
            f"{folder}: expected {' or '.join(medium.unit for medium in there)}, got {counts} and "
            f"{counted(len(paths), last.unit)} ({listed([path.name for path in paths], 3)}): name a folder of one of "
            "them"
        )
    return next(iter(there), IMAGES)


def _show(report: Report, training: Dataset, medium: Medium) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "found", "ideal"):
        table.add_column(heading, justify="right" if heading == "found" else "left")
    facts = report.as_dict()
    for name, attribute, form, ideal in medium.rows:
        if facts[attribute] is not None:
            table.add_row(name, form.format(facts[attribute]), ideal.format(**facts))
    measured = counted(report.count, training.unit)
    console.print(f"{measured} against {report.training_count} of {training.name}", soft_wrap=True)
    console.print(table)
    for line in medium.remarks(report):
        console.print(line, soft_wrap=True)
