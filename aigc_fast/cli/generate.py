"""`aigc-fast generate`: images or sounds from a model file, each with its provenance."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from aigc_fast.cli.app import console
from aigc_fast.cli.options import (
    Class,
    Device,
    Overwrite,
    Seed,
    Subject,
    chosen_device,
    class_names,
    class_of,
    load_model,
    model_file,
    new_file,
    with_default,
)
from aigc_fast.data.audio import WAV_SUFFIXES
from aigc_fast.errors import UserError
from aigc_fast.files import make_folder
from aigc_fast.generation import (
    class_columns,
    draw,
    image_grid,
    interpolate,
    latent_manifold,
    provenance_of,
    sound_sequence,
    write_png,
    write_sound,
)
from aigc_fast.models import LatentModel, SoundModel
from aigc_fast.training import MODEL_FILE
from aigc_fast.wording import counted, listed


class What(str, Enum):
    """What to make."""

    grid = "grid"
    sequence = "sequence"
    single = "single"
    interpolation = "interpolation"
    manifold = "manifold"


_OF_SOUNDS = {What.sequence: 6, What.single: 6, What.interpolation: 1}
_OF_IMAGES = {What.grid: 64, What.single: 8, What.interpolation: 8, What.manifold: 15}
"""How many by default, for what can be made of each medium; the first is made unless asked otherwise."""
_SQUARE, _STEPS = 8, 10

_SUFFIXES = {".png": (".png",), ".wav": WAV_SUFFIXES}

Kind = Annotated[
    What | None,
    typer.Option(
        help=with_default(
            "grid: one PNG of many images, a class in each column. sequence: one WAV of many sounds. single: one file "
            "each. interpolation: walks between random latents, and from each class to the next or from --class to "
            "--to-class. manifold: the map of a 2-d latent (conv-vae).",
            "grid, or sequence for audio",
        ),
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help=with_default(
            "PNG or WAV file to write; a folder for single.",
            "out/RUN-WHAT.png or .wav, with the options given that change it",
        ),
        show_default=False,
    ),
]
Count = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100_000,
        help=with_default(
            "Images in the grid, sounds in the sequence, files, walks, or images per side of the manifold.",
            "8 of each class, or 64; one of each class, or 6, for a sequence; 8 files, or 6 for audio; 8 walks, or 1 "
            "for audio; 15",
        ),
        show_default=False,
    ),
]
ToClass = Annotated[
    str | None,
    typer.Option(
        "--to-class",
        metavar="NAME",
        help=with_default("The class in which the walks of an interpolation end.", "--class, or the next"),
        show_default=False,
    ),
]
Columns = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=with_default(
            "Images per row of the grid, or steps of each walk.", "one for each class up to 16, or square; 10"
        ),
        show_default=False,
    ),
]
Scale = Annotated[int, typer.Option(min=1, max=64, help="Draw each pixel as a square of this side.")]


@dataclass(frozen=True)
class Wanted:
    """What is to be made.

    Attributes:
        kind: grid, sequence, ...
        count: how many.
        columns: images per row, or steps of each walk; None for a square.
        label: the class, None for all in turn.
        to_label: the class in which walks end, one for all or one for each; None where they stay in theirs.
        options: what was given that changes it, by the options' names.
    """

    kind: What
    count: int
    columns: int | None
    label: int | list[int] | None
    to_label: int | list[int] | None
    options: Mapping[str, Any]


def generate(
    model: Subject,
    what: Kind = None,
    out: Out = None,
    count: Count = None,
    seed: Seed = 0,
    label: Class = None,
    to_label: ToClass = None,
    columns: Columns = None,
    scale: Scale = 1,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Generate images or sounds with a trained model.

    A sound is a WAV file, and a PNG of its spectrogram beside it. Every file records the model, its settings, the seed
    and the command in its metadata: aigc-fast provenance FILE shows them.

    Example:  aigc-fast generate runs/dcgan/model.safetensors --what grid --seed 7
    """
    place = chosen_device(device)
    path = model_file(model)
    generator = load_model(path, place)
    sounds = isinstance(generator, SoundModel)
    given = {"count": count, "class": label, "to-class": to_label, "columns": columns}
    wanted = _wanted(generator, what, {**given, "seed": seed or None, "scale": scale if scale != 1 else None})
    settings = {
        "command": _command(path, wanted, seed),
        "model_checksum": getattr(generator, "metadata", {}).get("checksum"),
        "device": place.type,
    }
    suffix = ".wav" if sounds else ".png"
    target = out or Path("out") / (_name(path, wanted) + ("" if wanted.kind is What.single else suffix))
    targets = _targets(target, wanted, suffix, overwrite)
    items = _checked_draw(generator, wanted, seed)
    if wanted.kind is What.single:
        pieces = [(piece, {"index": index}) for index, piece in enumerate(items)]
    elif sounds:
        pieces = [(sound_sequence(items, generator.sample_rate), {})]
    else:
        pieces = [(image_grid(items, wanted.columns), {})]
    for file, (piece, index) in zip(targets, pieces, strict=True):
        record = provenance_of(generator, None if wanted.kind is What.manifold else seed, **index, **settings)
        if sounds:
            write_sound(file, piece, generator.sample_rate, record)
        else:
            write_png(file, piece, record, scale=scale)
    made = counted(len(targets), "sounds" if sounds else "images")
    told = f"{made} to {target}" if wanted.kind is What.single else str(target)
    console.print(f"Wrote {told}{_classes_told(generator, wanted)}", soft_wrap=True, markup=False)


def _wanted(model: LatentModel, what: What | None, given: Mapping[str, Any]) -> Wanted:
    sounds = isinstance(model, SoundModel)
    possible = _OF_SOUNDS if sounds else _OF_IMAGES
    kind = what or next(iter(possible))
    if kind not in possible:
        raise UserError(f"--what {kind.value}: {model.name} makes {', '.join(other.value for other in possible)}")
    if given["to-class"] is not None and kind is not What.interpolation:
        raise UserError(f"--to-class: only --what interpolation goes from class to class, not {kind.value}")
    label = class_of(model, given["class"])
    to_label = class_of(model, given["to-class"], "--to-class")
    across = class_columns(model, 0) if label is None else 0
    count = given["count"] or _count(kind, possible, across)
    if kind is What.interpolation and given["columns"] == 1:
        raise UserError("--columns 1: a walk has at least 2 steps")
    columns = given["columns"] or {What.grid: across or None, What.interpolation: _STEPS}.get(kind)
    if kind is What.interpolation and model.num_classes and label is None:
        # Within a class a walk may show little; from class to class it shows what the model has learned.
        label = [walk % model.num_classes for walk in range(count)]
        to_label = [(walk + 1) % model.num_classes for walk in range(count)] if to_label is None else to_label
    elif kind is What.manifold and model.num_classes and label is None:
        label = 0
    options = {name: value for name, value in given.items() if value is not None}
    return Wanted(kind, count, count if kind is What.manifold else columns, label, to_label, options)


def _count(kind: What, possible: Mapping[What, int], across: int) -> int:
    return {What.grid: _SQUARE * across, What.sequence: across}.get(kind) or possible[kind]


def _name(path: Path, wanted: Wanted) -> str:
    """The file's name unless one is given: the run's, what is made, and what else was asked for."""
    run = path.resolve().parent.name if path.name == MODEL_FILE else path.stem
    parts = [run, wanted.kind.value, *(f"{name}-{value}" for name, value in wanted.options.items())]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def _targets(target: Path, wanted: Wanted, suffix: str, overwrite: bool) -> list[Path]:
    """The files to write, checked before any work is done; a sound's spectrogram is written beside it."""
    if wanted.kind is What.single:
        width = len(str(wanted.count - 1))
        files = [make_folder(target) / f"{index:0{width}d}{suffix}" for index in range(wanted.count)]
    else:
        files = [target]
    if files[0].suffix.lower() not in _SUFFIXES[suffix] and not target.is_dir():
        raise UserError(f"{target}: expected the name of a {suffix[1:].upper()} file")
    for file in files:
        new_file(file, overwrite)
        if suffix != ".png":
            new_file(file.with_suffix(".png"), overwrite)
    return files


def _checked_draw(model: LatentModel, wanted: Wanted, seed: int) -> Tensor:
    try:
        if wanted.kind is What.interpolation:
            between = {"labels": wanted.label, "to_labels": wanted.to_label}
            return interpolate(model, wanted.columns, rows=wanted.count, seed=seed, **between)
        if wanted.kind is What.manifold:
            return latent_manifold(model, wanted.count, labels=wanted.label)
        return draw(model, wanted.count, seed=seed, labels=wanted.label)
    except ValueError as error:
        raise UserError(str(error)) from None


def _command(path: Path, wanted: Wanted, seed: int) -> str:
    """The command that makes the same again; the model file by its name alone."""
    options = {"what": wanted.kind.value, "count": wanted.count, "seed": seed, **wanted.options}
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items()]
    return " ".join(["aigc-fast generate", shlex.quote(path.name), *words])


def _classes_told(model: LatentModel, wanted: Wanted) -> str:
    names = class_names(model)
    if wanted.kind is What.grid and names and wanted.label is None and wanted.columns == len(names):
        return f"; columns: {listed(names)}"
    if isinstance(wanted.label, list) and isinstance(wanted.to_label, list):
        walks = [f"{names[start]} to {names[end]}" for start, end in zip(wanted.label, wanted.to_label, strict=True)]
        return f"; rows: {listed(walks)}"
    return f"; of class {names[wanted.label]}" if wanted.kind is What.manifold and names else ""
